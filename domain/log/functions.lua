#!lua name=muster_1
--
-- The functions that write. Each checks everything before it writes anything, because an error in the middle keeps what was
-- written before it. Their names end in the wire version; what a version means never changes.
--
-- Keys (all of one partition, so of one slot):
--   meta      hash    store, epoch, partition, partitions, total (running number of events), at (server ms of the last of them),
--                     max_events, max_bytes; while memory is short: pressure ("<until server ms> <ms to wait between appends>", or
--                     "<until server ms> full"); read_only "<until, server ms, or 0> <since, server ms> <JSON: who, why>", or ""
--   sessions  zset    every session, score 0
--   feed      stream  <total>-0: t server ms, c packed {{session, from, to, bytes}, ...}
--   log       stream  <last seq>-<n>: t server ms, d digest, b body, c traceparent (optional)
--   head      string  "<last seq> <digest> <gate> <server ms> <flags>", flags "-" or letters: q quarantined, s strict, l leased,
--                     a archived up to a horizon, c cold: nothing came since, m its writer is elsewhere
--   hold      hash    what the flags point at: code, first_bad_seq; policy; holder, token, deadline (server ms), ttl, counter;
--                     of a fork that is being made: fork_parent, fork_seq, fork_digest; of what is archived: horizon (the log holds
--                     what comes after this seq), horizon_digest (there), segments (a name a line);
--                     of a session that a migration moves: moved_to or moved_from (a place), moved_task, moved_by (the token of who
--                     works on the task), moved_at, moved_token (a lease's, put aside); of its copy moved_seq, moved_digest,
--                     moved_bytes; of one that was opened opened_by (task), opened_seq, opened_digest
--   arriving  stream  as log: a copy that is not whole yet, which becomes the log in one step
--   graft     stream  what a damaged log is to be, as far as it is built (muster_graft_1)
--   owner     hash    worker, token, deadline (server ms), counter; while its workers die: crashes, try:<seq> <session>
--   cursor    hash    position (feed total applied), events, at (server ms of the last move)
--   lost      hash    "<session> <witness>" -> what it knows of commits that were lost
--   beats     zset    "<session> <agent>", score: the server ms from which on the agent counts as silent

local DIGEST_LENGTH = 20
-- What stands before a session in the entry that says it is quarantined (projections/indexing.py).
local QUARANTINED = 'quarantined\0\0'
local SEARCH_LIMIT = 256
-- Arguments of a commit in a call of the append function.
local ARGUMENTS = 10

-- The transition table of domain/session.py: gate -> kind -> gate after it; what is not listed is refused.
local GATE = {
  o = { s = 'o', l = 'o', k = 'o', b = 'o', ['.'] = 'o', c = 'c', x = 'e' },
  c = { s = 'o', l = 'c', k = 'c', ['.'] = 'c', x = 'e' },
  e = { s = 'o' },
}

-- Numbers as text. Making one costs more than most else that a commit needs, so the small ones are made when the library is
-- loaded, and of times the last one is kept.
local TEXT = {}
for number = 0, 1000 do
  TEXT[number] = number .. ''
end

local function integer(value)
  return TEXT[value] or string.format('%.0f', value)
end

local last_time, last_time_text
local function time_text(ms)
  if ms ~= last_time then
    last_time, last_time_text = ms, integer(ms)
  end
  return last_time_text
end

-- The number that a text of digits is; nil for any other text, and for one that a double cannot hold exactly.
local function whole(text)
  return text and #text <= 15 and string.match(text, '^%d+$') and tonumber(text) or nil
end

local function is_integer(text)
  return #text <= 15 and string.match(text, '^%-?%d+$') ~= nil
end

-- An error reply unless there are so many keys and arguments. Nil where they should be would fail half-way.
local function miscounted(keys, args, key_count, argument_count)
  if #keys ~= key_count or #args ~= argument_count then
    return redis.error_reply('ARGUMENTS_INVALID it takes ' .. key_count .. ' keys and ' .. argument_count .. ' arguments')
  end
end

local function server_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- A head as it is stored. The commits of a call move it on; `stored` and `stored_digest` stay where the log stands by now.
-- While a call moves it: `reply` and `body` of the last commit that is to be written; where there are several, `pending`, the replies
-- to all of them by body; `lease`, and whether that `lease_moved`.
local function head_at(seq, digest, gate, ms, flags)
  return { seq = seq, digest = digest, gate = gate, ms = ms, flags = flags, stored = seq, stored_digest = digest, reply = false }
end

local function read_head(key)
  local packed = redis.call('GET', key)
  if not packed then
    return nil
  end
  local seq, digest, gate, ms, flags = string.match(packed, '^(%d+) (%x+) ([oce]) (%d+) (%S+)$')
  if not seq or #seq > 15 or #ms > 15 then
    return nil, true
  end
  return head_at(tonumber(seq), digest, gate, tonumber(ms), flags)
end

local function has(head, flag)
  return string.find(head.flags, flag, 1, true) ~= nil
end

local function with_flag(head, flag, is_set)
  local others = string.gsub(string.gsub(head.flags, flag, ''), '%-', '')
  head.flags = is_set and others .. flag or others
  if head.flags == '' then
    head.flags = '-'
  end
end

local function pack_head(head)
  return integer(head.seq) .. ' ' .. head.digest .. ' ' .. head.gate .. ' ' .. integer(head.ms) .. ' ' .. head.flags
end

local function field(entry, name)
  local fields = entry[2]
  for index = 1, #fields, 2 do
    if fields[index] == name then
      return fields[index + 1]
    end
  end
end

-- The receipt of an entry that is this very commit; nil if the entry is another.
local function receipt_of(entry, body)
  if entry and field(entry, 'b') == body then
    local last, count = string.match(entry[1], '^(%d+)%-(%d+)$')
    return { 'DUPLICATE', integer(tonumber(last) - tonumber(count) + 1), last, field(entry, 'd'), field(entry, 't') }
  end
end

-- `whole` of what stays as it is while a store lives, so that it need be read only once.
local SETTINGS = {}
local function setting(text)
  local number = SETTINGS[text]
  if not number then
    number = whole(text)
    SETTINGS[text] = number
  end
  return number
end

-- The store here, or an error reply: none, another one, or at another epoch.
local function open_store(key, store, epoch)
  local stored = redis.call('HMGET', key, 'store', 'epoch', 'partition', 'partitions', 'total', 'max_events', 'max_bytes',
    'at', 'pressure', 'read_only')
  if not stored[1] then
    return nil, redis.error_reply('STORE_MISSING there is no store here')
  elseif stored[1] ~= store then
    return nil, redis.error_reply('STORE_CHANGED the store here is ' .. stored[1])
  elseif epoch ~= stored[2] and tonumber(epoch) < tonumber(stored[2]) then
    return nil, redis.error_reply('EPOCH_CHANGED the store is at epoch ' .. stored[2])
  end
  local meta = {
    partition = setting(stored[3]),
    partitions = setting(stored[4]),
    total = whole(stored[5]) or 0, -- the feed knows better, see there
    max_events = setting(stored[6]),
    max_bytes = setting(stored[7]),
    at = whole(stored[8]) or 0,
    pressure = stored[9],
    read_only = stored[10],
  }
  if not (meta.partition and meta.partitions and meta.partitions > 0 and meta.max_events and meta.max_bytes) then
    return nil, redis.error_reply('STORE_DAMAGED ' .. key .. ' lacks a number')
  end
  return meta
end

local function of_another_store(meta, store)
  if redis.call('HGET', meta, 'store') ~= store then
    return redis.error_reply('STORE_CHANGED the store here is another one')
  end
end

-- The refusal of a partition that is closed for appends; nil if it takes them. What was closed by itself lapses.
local function closed(meta, now)
  if not meta.read_only or meta.read_only == '' then
    return nil
  end
  local until_ms, since, reason = string.match(meta.read_only, '^(%d+) (%d+) (.*)$')
  if not until_ms or until_ms == '0' or now < tonumber(until_ms) then
    return { 'REFUSED', 'READ_ONLY', since or '0', until_ms or '0', reason or '' }
  end
end

-- When what is written now is written: by the server's clock, and never before what the partition holds already. So times grow in
-- the order of the feed, and tell what came after a place in it. If the clock was set back, each call is one ms after the last.
local function written_at(meta, now)
  return now >= meta.at and now or meta.at + 1
end

-- The head of a session without events; or nil and why there can be none.
local function new_head(session, meta, sessions)
  if #session > 200 or not string.find(session, '^[%w._:@/+-]+$') then
    return nil, { 'REFUSED', 'SESSION_INVALID', 'the id is no identifier' }
  end
  local partition = tonumber(string.sub(redis.sha1hex(session), 1, 8), 16) % meta.partitions
  if partition ~= meta.partition then
    return nil, { 'REFUSED', 'PARTITION_WRONG', integer(partition) }
  end
  if redis.call('ZSCORE', sessions, session) then
    return nil, { 'DAMAGED', 'HEAD_MISSING' }
  end
  local digest = string.sub(redis.sha1hex(session), 1, DIGEST_LENGTH)
  return head_at(0, digest, 'o', 0, '-')
end

local function quarantined(hold)
  local reason = redis.call('HMGET', hold, 'code', 'first_bad_seq')
  return { 'DAMAGED', 'QUARANTINED', reason[1] or '?', whole(reason[2]) and reason[2] or '0' }
end

-- Where the writer of a session is that is closed because it is not here: it was moved away, or is still on its way here.
local function elsewhere(hold)
  local place = redis.call('HMGET', hold, 'moved_to', 'moved_from')
  if place[1] then
    return { 'REFUSED', 'MOVED_TO', place[1] }
  end
  return { 'REFUSED', 'SESSION_ARRIVING', place[2] or '?' }
end

-- The lease of a session; read once a call, then as the commits of the call leave it.
local function lease_of(head, hold)
  if not head.lease then
    local stored = redis.call('HMGET', hold, 'holder', 'token', 'deadline', 'ttl')
    head.lease = { holder = stored[1] or '', token = stored[2] or '', deadline = tonumber(stored[3]) or 0,
      ttl = tonumber(stored[4]) or 0 }
  end
  return head.lease
end

-- Up to where a session's commits are in the archive and no more in its log, and the digest there; 0 for none.
local function horizon_of(head, hold)
  if not head or head.flags == '-' or not has(head, 'a') then
    return 0, ''
  end
  local stored = redis.call('HMGET', hold, 'horizon', 'horizon_digest')
  return whole(stored[1]) or 0, stored[2] or ''
end

-- What a producer saw and the log does not hold (any more): nil if the log holds it, or the archive has to be asked.
local function lost(seen, seen_digest, head, log, hold)
  local stored = head and head.stored or 0
  if not seen or seen <= 0 or seen_digest == '' then
    return nil
  end
  local digest = head and head.stored_digest
  if seen ~= stored then
    local horizon, horizon_digest = horizon_of(head, hold)
    if seen < horizon then
      return nil
    end
    local entry = seen > horizon and redis.call('XRANGE', log, integer(seen), integer(seen), 'COUNT', 1)[1]
    digest = entry and field(entry, 'd') or seen == horizon and horizon_digest
    if seen > stored and digest == seen_digest then
      return { 'DAMAGED', head and 'LOG_AHEAD' or 'HEAD_MISSING' }
    end
  end
  if seen > stored then
    return { 'LOST', 'TAIL_LOST', integer(stored), head and head.stored_digest or '' }
  elseif digest ~= seen_digest then
    return { 'LOST', 'FORK', integer(stored), head.stored_digest }
  end
end

-- Whether a body may hold an event with this id: as MessagePack text, or as JSON text.
local function may_hold(body, id)
  local packed = #id < 32 and string.char(160 + #id) .. id or id
  return string.find(body, packed, 1, true) ~= nil or string.find(body, '"' .. id .. '"', 1, true) ~= nil
end

-- Looks for a commit of `count` events in what came after the seq its producer last knew. Returns its receipt; or nil, and
-- whether the library has to look: because that is further than the limit, or an event of the commit may be in another.
local function find_commit(log, known, count, ids, body)
  local entries = redis.call('XRANGE', log, integer(known + 1), '+', 'COUNT', SEARCH_LIMIT + 1)
  if #entries > SEARCH_LIMIT or ids ~= '' and #entries * count > 4 * SEARCH_LIMIT then
    return nil, true
  end
  local part = false
  for _, entry in ipairs(entries) do
    local receipt = receipt_of(entry, body)
    if receipt then
      return receipt, false
    end
    for id in string.gmatch(ids, '%S+') do
      part = part or may_hold(field(entry, 'b') or '', id)
    end
  end
  return nil, part
end

-- A commit of this call that is to be written already, before this one, if this one repeats it: its reply.
local function repeated(head, body, expected, known)
  local after = expected or known
  local earlier = head.pending and head.pending[body] or head.body == body and head.reply
  if after and earlier then
    local first = tonumber(earlier[2])
    if first == after + 1 or not expected and first > after then
      return { 'DUPLICATE', earlier[2], earlier[3], earlier[4], earlier[5] }
    end
  end
end

-- The lease after a commit with this token; or nil and why it is refused.
local function lease_after(head, hold, token, heir, now)
  if token == '' then
    return nil, { 'REFUSED', 'LEASE_REQUIRED', lease_of(head, hold).holder }
  end
  local lease = lease_of(head, hold)
  if token ~= lease.token or now > lease.deadline then
    return nil, { 'FENCED', lease.holder }
  elseif heir == '' then
    return { holder = lease.holder, token = lease.token, deadline = now + lease.ttl, ttl = lease.ttl }
  end
  return { holder = heir, token = '', deadline = now + lease.ttl, ttl = lease.ttl }
end

-- Decides on one commit, given the head as the commits before it in this call leave it, and what the call knows. Writes nothing,
-- but moves the head on if the commit is to be written. Returns a reply, and whether it is one of what this call writes.
local function decide(call, head, log, hold, session, expected_text, known_text, not_after, token, heir, ids, kinds, body)
  local count, meta = #kinds, call.meta
  if count == 0 or count > meta.max_events or #body > meta.max_bytes then
    return { 'REFUSED', 'COMMIT_TOO_LARGE', integer(count) .. ' events, ' .. integer(#body) .. ' bytes' }
  end

  local expected = nil
  if expected_text == 'new' then
    expected = 0
  elseif expected_text ~= 'any' then
    expected = whole(expected_text)
    if not expected then
      return { 'REFUSED', 'EXPECTED_INVALID', expected_text }
    end
  end

  -- What is on its way here counts for nothing yet. Of what was moved away, a repeat of a commit that is here is told so.
  local place = head and head.flags ~= '-' and has(head, 'm') and elsewhere(hold)
  if place and place[2] == 'SESSION_ARRIVING' then
    return place
  end

  local known, known_digest
  if head and known_text == integer(head.stored) .. ' ' .. head.stored_digest then
    known = head.stored
  else
    known, known_digest = string.match(known_text, '^(%d+) ?(%x*)$')
    known = tonumber(known)
    if place and known and known > head.stored then
      return place
    end
    local loss = lost(known, known_digest, head, log, hold)
    if loss then
      return loss
    end
  end
  if head then
    local after = expected or known
    if after and after < head.stored and head.flags ~= '-' and after < horizon_of(head, hold) then
      return { 'SEARCH', integer(head.seq), head.digest }
    elseif expected and expected < head.stored then
      local id = integer(expected + count) .. '-' .. integer(count)
      local receipt = receipt_of(redis.call('XRANGE', log, id, id)[1], body)
      if receipt then
        return receipt
      end
    elseif not expected and known and known < head.stored then
      local receipt, further = find_commit(log, known, count, ids, body)
      if receipt then
        return receipt
      elseif further then
        return { 'SEARCH', integer(head.seq), head.digest }
      end
    end
    local earlier = repeated(head, body, expected, known)
    if earlier then
      return earlier, true
    end
  end

  if place then
    return place
  end
  local now = call.now
  if not_after ~= '' and now > (whole(not_after) or -1) then
    return { 'REFUSED', 'TOO_LATE', integer(now) }
  end
  if call.wait == 'full' then
    return { 'REFUSED', 'MEMORY_HIGH' }
  end
  local refusal = closed(meta, now) -- what Muster states is refused too: read-only is no word more
  if refusal then
    return refusal
  end
  if not head then
    local why
    head, why = new_head(session, meta, call.sessions)
    if not head then
      return why
    end
  end
  local lease = nil
  if head.flags ~= '-' and has(head, 'q') then
    return quarantined(hold)
  elseif call.is_own then
    lease = nil -- what Muster states needs nobody's leave
  elseif head.flags ~= '-' and has(head, 'l') then
    local why
    lease, why = lease_after(head, hold, token, heir, now)
    if not lease then
      return why
    end
  elseif token ~= '' then
    return { 'FENCED', '' }
  elseif not expected and has(head, 's') then
    return { 'REFUSED', 'EXPECTED_REQUIRED', integer(head.seq) }
  end
  local seq = head.seq
  if expected and expected ~= seq then
    return { 'CONFLICT', integer(seq), head.digest }
  end
  -- A log that is ahead of its head refuses the id of a single event, but a longer commit could end beyond it.
  if count > 1 and seq == head.stored and redis.call('XRANGE', log, integer(seq + 1), '+', 'COUNT', 1)[1] then
    return { 'DAMAGED', 'LOG_AHEAD' }
  end

  local gate = head.gate
  for index = 1, count do
    gate = GATE[gate][string.sub(kinds, index, index)]
    if not gate then
      return { 'REFUSED', 'GATE_REFUSED', integer(index), head.gate, integer(seq) }
    end
  end

  local ms = math.max(call.at, head.ms)
  local first, last, at = integer(seq + 1), integer(seq + count), time_text(ms)
  local digest = string.sub(redis.sha1hex(head.digest .. '|1|' .. session .. '|' .. first .. '|' .. integer(count) .. '|' .. at .. '|'
    .. body), 1, DIGEST_LENGTH)
  local reply = { 'APPENDED', first, last, digest, at }
  if call.wait then
    reply[6] = call.wait
  end
  if head.flags ~= '-' then
    with_flag(head, 'c', false)
  end
  if head.reply and not head.pending then
    head.pending = { [head.body] = head.reply }
  end
  if head.pending then
    head.pending[body] = reply
  end
  head.seq, head.digest, head.gate, head.ms, head.reply, head.body = seq + count, digest, gate, ms, reply, body
  if lease then
    head.lease, head.lease_moved, call.has_lease = lease, true, true
  end
  call.heads[session], call.has_new = head, call.has_new or head.stored == 0
  return reply, true
end

-- Decides on one commit as the commits before it in the call leave its session.
local function judge(call, log, head_key, hold, session, expected, ...)
  local head, unreadable = call.heads[session], false
  if not head then
    head, unreadable = read_head(head_key)
  end
  if unreadable then
    return { 'DAMAGED', 'HEAD_MISSING' }
  elseif call.searching[session] and expected == 'any' then
    -- The library sends the commit before this one again, and this one after it: their order is the caller's.
    return { 'SEARCH', integer(head and head.seq or 0), head and head.digest or '' }
  end
  local reply, is_accepted = decide(call, head, log, hold, session, expected, ...)
  if reply[1] == 'SEARCH' then
    call.searching[session] = true
  end
  return reply, is_accepted
end

-- A function has the rights of its caller, and one that is missing in the middle would leave half an append behind: so they
-- are asked for before anything is written. What a reader lacks would look like damage.
local function may_read(keys)
  local may = redis.acl_check_cmd
  return may('GET', keys[5]) and may('XRANGE', keys[4], '-', '+') and may('HMGET', keys[6], 'code')
    and may('ZSCORE', keys[2], '') and may('XLEN', keys[3]) and may('ZCARD', keys[2])
end

local function may_append(keys, has_new, has_lease)
  local may = redis.acl_check_cmd
  return may('XADD', keys[4], '*', 'b', '') and may('SET', keys[5], '') and may('XADD', keys[3], '*', 't', '')
    and may('HSET', keys[1], 'total', '') and (not has_new or may('ZADD', keys[2], '0', ''))
    and (not has_lease or may('HSET', keys[6], 'token', ''))
end

local function denied()
  return redis.error_reply('ACCESS_DENIED the user may not do all that an append does')
end

-- The running total at which a feed ends.
local function feed_end(stream)
  local info = redis.call('XINFO', 'STREAM', stream)
  for index = 1, #info, 2 do
    if info[index] == 'last-generated-id' then
      return tonumber(string.match(info[index + 1], '^%d+'))
    end
  end
end

-- Adds one entry to the feed and moves the running total. A total that was rolled back behind the feed must not lose the
-- entry of commits that are written already: then the total is taken from the feed.
local function feed(meta, stream, total, count, at, packed)
  local position, at_text = integer(total + count), time_text(at)
  if type(redis.pcall('XADD', stream, position .. '-0', 't', at_text, 'c', packed)) == 'table' then
    position = integer(feed_end(stream) + count)
    redis.call('XADD', stream, position .. '-0', 't', at_text, 'c', packed)
  end
  redis.call('HSET', meta, 'total', position, 'at', at_text)
end

-- Writes where the last commit of a session in a call leaves it.
local function settle(head, session, sessions, head_key, hold)
  local reply = head.reply
  redis.call('SET', head_key, reply[3] .. ' ' .. reply[4] .. ' ' .. head.gate .. ' ' .. reply[5] .. ' ' .. head.flags)
  if head.stored == 0 then
    redis.call('ZADD', sessions, 0, session)
  end
  if head.lease_moved then
    local lease = head.lease
    redis.call('HSET', hold, 'holder', lease.holder, 'token', lease.token, 'deadline', integer(lease.deadline))
  end
end

-- Writes the commits that were accepted, and tells the feed of them. Which is refused after all gets another reply.
local function write(call, keys, args, replies, accepted)
  local fed, failed, events_fed, at, at_text = {}, {}, 0, 0, nil
  for index = 1, #accepted do
    local number = accepted[index]
    local arg, reply = 2 + (number - 1) * ARGUMENTS, replies[number]
    local session, kinds, body, trace = args[arg + 1], args[arg + 8], args[arg + 9], args[arg + 10]
    local is_written = not failed[session]
    if is_written and reply[1] == 'APPENDED' then
      local log, id = keys[1 + number * 3], reply[3] .. '-' .. integer(#kinds)
      local added
      if trace == '' then
        added = redis.pcall('XADD', log, id, 't', reply[5], 'd', reply[4], 'b', body)
      else
        added = redis.pcall('XADD', log, id, 't', reply[5], 'd', reply[4], 'b', body, 'c', trace)
      end
      is_written = type(added) ~= 'table'
      if is_written then
        local last = tonumber(reply[3])
        events_fed = events_fed + #kinds
        fed[#fed + 1] = { session, last - #kinds + 1, last, #body }
        if reply[5] ~= at_text then
          at_text = reply[5]
          at = math.max(at, tonumber(at_text))
        end
        local head = call.heads[session]
        if head.reply == reply then
          settle(head, session, keys[2], keys[2 + number * 3], keys[3 + number * 3])
        end
      end
    end
    if not is_written then
      -- The one write that can fail: a log that is ahead of its head refuses the id. Of this session nothing is written then.
      failed[session] = true
      replies[number] = { 'DAMAGED', 'LOG_AHEAD' }
    end
  end
  if events_fed > 0 then
    feed(keys[1], keys[3], call.meta.total, events_fed, at, cmsgpack.pack(fed))
  end
end

-- How long whoever appends is to wait before the next time, in ms, or "full" where nothing is taken now; nil for no need.
local function wait_for_memory(pressure, now)
  local till, wait = string.match(pressure, '^(%d+) (%w+)$')
  return whole(till) and now <= tonumber(till) and wait or nil
end

-- What `muster_append_1` does with the first `count` commits of its arguments. Muster's own need no lease and no exact seq.
local function appended(keys, args, count, is_own)
  local meta, problem = open_store(keys[1], args[1], args[2])
  if not meta then
    return problem
  end
  local now = server_ms()
  if string.sub(keys[1], -5) ~= ':meta' then
    return redis.error_reply('ARGUMENTS_INVALID the keys are not those of one partition')
  end
  local tag = string.sub(keys[1], 1, -5)
  if keys[2] ~= tag .. 'sessions' or keys[3] ~= tag .. 'feed' then
    return redis.error_reply('ARGUMENTS_INVALID the keys are not those of one partition')
  end
  local log_tag, head_tag, hold_tag = tag .. 'log:', tag .. 'head:', tag .. 'hold:'

  local call = { meta = meta, now = now, at = written_at(meta, now), sessions = keys[2], heads = {}, searching = {},
    has_new = false, has_lease = false, is_own = is_own }
  if meta.pressure and not is_own then
    call.wait = wait_for_memory(meta.pressure, now)
  end
  local replies, accepted = {}, {}
  for number = 1, count do
    local arg, key = 2 + (number - 1) * ARGUMENTS, 3 + (number - 1) * 3
    local session, log, head, hold = args[arg + 1], keys[key + 1], keys[key + 2], keys[key + 3]
    if log ~= log_tag .. session or head ~= head_tag .. session or hold ~= hold_tag .. session then
      return redis.error_reply('ARGUMENTS_INVALID the keys of commit ' .. number .. ' are not those of its session')
    end
    -- Nothing was written yet, so whatever fails in here (a key of another type) is the trouble of this session alone.
    local is_whole, reply, is_accepted = pcall(judge, call, log, head, hold, unpack(args, arg + 1, arg + ARGUMENTS - 1))
    if not is_whole and not may_read(keys) then
      return denied()
    end
    replies[number] = is_whole and reply or { 'DAMAGED', 'KEY_DAMAGED' }
    if is_whole and is_accepted then
      accepted[#accepted + 1] = number
    end
  end
  if #accepted == 0 then
    return replies
  end
  -- What all sessions share can fail only by its type, or for lack of rights.
  if not may_append(keys, call.has_new, call.has_lease) then
    return denied()
  elseif type(redis.pcall('XLEN', keys[3])) == 'table' or call.has_new and type(redis.pcall('ZCARD', keys[2])) == 'table' then
    return redis.error_reply('STORE_DAMAGED the feed or the registry is of another type')
  end
  write(call, keys, args, replies, accepted)
  return replies
end

-- muster_append_1: appends commits, each on its own, in the order given.
--   KEYS  meta sessions feed, then log head hold for each commit
--   ARGV  store, epoch, then for each commit: session, expected ("any", "new" or a seq), known ("<seq>" or "<seq> <digest>",
--         what the producer last knew, or ""), not_after (server ms, or ""), token (of a lease, or ""), heir (whom the lease
--         passes to with the commit, or ""), ids (those of its events that may be in another commit too, by spaces, or ""),
--         kinds (a letter an event, see GATE), body, traceparent (or "")
--   Reply one array a commit: APPENDED or DUPLICATE first last digest ms (and, while memory is short, for how many ms to wait
--         before the next append to the partition); CONFLICT seq digest; FENCED holder; REFUSED code ...;
--         DAMAGED code ...; LOST code seq digest; SEARCH seq digest
local function append(keys, args)
  local count = (#args - 2) / ARGUMENTS
  if count ~= math.floor(count) or #keys ~= 3 + 3 * count then
    return redis.error_reply('ARGUMENTS_INVALID a commit has 3 keys and ' .. ARGUMENTS .. ' arguments')
  end
  return appended(keys, args, count, false)
end

-- muster_beat_1: an agent says that it is there, and how long it may be silent from now on; with 0, that it is no more.
--   KEYS meta head beats   ARGV store session agent silent_ms
--   Reply 1 if it was known to be there; 0 if not, be it new or reported as gone; UNKNOWN where no such session is
local function beat(keys, args)
  local problem = miscounted(keys, args, 3, 4) or of_another_store(keys[1], args[1])
  if problem then
    return problem
  end
  local tag = string.match(keys[1], '^(.*:)meta$')
  if not tag or keys[2] ~= tag .. 'head:' .. args[2] or keys[3] ~= tag .. 'beats' then
    return redis.error_reply('ARGUMENTS_INVALID the keys are not those of the session')
  elseif not whole(args[4]) or #args[3] > 200 or not string.find(args[3], '^[%w._:@/+-]+$') then
    return redis.error_reply('ARGUMENTS_INVALID an agent gives a sign of life for a time in ms')
  end
  local member = args[2] .. ' ' .. args[3]
  local was_there = redis.call('ZSCORE', keys[3], member) and 1 or 0
  if args[4] == '0' then
    redis.call('ZREM', keys[3], member)
  elseif not redis.call('GET', keys[2]) then
    return 'UNKNOWN'
  else
    redis.call('ZADD', keys[3], integer(server_ms() + tonumber(args[4])), member)
  end
  return was_there
end

-- muster_gone_1: appends that an agent is gone, unless it gave a sign of life since it was found silent; once.
--   KEYS as of muster_append_1 with one commit, then beats   ARGV as of muster_append_1 with one commit, then agent and the time
--        (server ms) since which it is silent. Without a body it is only forgotten.
--   Reply as to a commit of muster_append_1; {MOVED} if it is not silent since then
local function gone(keys, args)
  local problem = miscounted(keys, args, 7, 2 + ARGUMENTS + 2)
  if problem then
    return problem
  end
  local member, since = args[3] .. ' ' .. args[13], whole(args[14])
  if keys[7] ~= (string.match(keys[1], '^(.*:)meta$') or '') .. 'beats' then
    return redis.error_reply('ARGUMENTS_INVALID the keys are not those of one partition')
  elseif not since or tonumber(redis.call('ZSCORE', keys[7], member) or -1) ~= since then
    return { 'MOVED' }
  elseif not redis.acl_check_cmd('ZREM', keys[7], member) then
    return denied()
  end
  local replies = { { 'FORGOTTEN' } }
  if args[11] ~= '' then
    replies = appended(keys, args, 1, true)
    if replies.err then
      return replies
    end
  end
  -- Of a session that is damaged it is said later, when that is mended; so it is of a partition that is closed.
  if replies[1][1] ~= 'DAMAGED' and replies[1][2] ~= 'READ_ONLY' then
    redis.call('ZREM', keys[7], member)
  end
  return replies[1]
end

-- muster_init_1: makes a partition's store unless it has one. Reply: the store id that is there now.
--   KEYS meta   ARGV store epoch partition partitions wire max_events max_bytes
local function init(keys, args)
  local problem = miscounted(keys, args, 1, 7)
  if problem then
    return problem
  end
  for index = 2, 7 do
    if not whole(args[index]) then
      return redis.error_reply('ARGUMENTS_INVALID ' .. args[index] .. ' is no number')
    end
  end
  local store = redis.call('HGET', keys[1], 'store')
  if store then
    return store
  end
  redis.call('HSET', keys[1], 'store', args[1], 'epoch', args[2], 'partition', args[3], 'partitions', args[4],
    'wire', args[5], 'max_events', args[6], 'max_bytes', args[7], 'total', '0')
  return args[1]
end

-- An error reply unless the keys are meta, sessions, head and hold of one partition and of the session.
local function not_of_session(keys, session)
  local tag = string.match(keys[1], '^(.*:)meta$')
  if not tag or keys[2] ~= tag .. 'sessions' or keys[3] ~= tag .. 'head:' .. session or keys[4] ~= tag .. 'hold:' .. session then
    return redis.error_reply('ARGUMENTS_INVALID the keys are not those of the session')
  end
end

-- The head of the session that args name in the store that args name, made if it has none yet; or nil and why there is none
-- to be changed: another store or epoch, a session that is quarantined, or one that cannot be here.
local function held_head(keys, args)
  local meta, problem = open_store(keys[1], args[1], args[2])
  if not meta then
    return nil, problem
  end
  local head, unreadable = read_head(keys[3])
  if unreadable then
    return nil, { 'DAMAGED', 'HEAD_MISSING' }
  elseif not head then
    return new_head(args[3], meta, keys[2])
  elseif has(head, 'q') then
    return nil, quarantined(keys[4])
  elseif has(head, 'm') then
    return nil, elsewhere(keys[4])
  end
  return head
end

-- How long somebody else may still hold the lease: who, and ms; nil if the lease is free.
local function held_by_another(lease, agent, now)
  if lease.holder ~= '' and lease.holder ~= agent and lease.deadline >= now then
    return { 'HELD', lease.holder, integer(lease.deadline - now) }
  end
end

-- muster_lease_1: takes a session's lease, if it is free, past its deadline, or the same agent's; its writers' policy is
-- leased from then on.
--   KEYS meta sessions head hold   ARGV store epoch session agent nonce ttl_ms
--   Reply LEASED token deadline; HELD holder, ms until its deadline; REFUSED or DAMAGED code ...
local function lease(keys, args)
  local problem = miscounted(keys, args, 4, 6) or not_of_session(keys, args[3])
  if problem then
    return problem
  elseif not whole(args[6]) or args[4] == '' then
    return redis.error_reply('ARGUMENTS_INVALID a lease has an agent and a time in ms')
  end
  local head, why = held_head(keys, args)
  if not head then
    return why
  end
  local now = server_ms()
  local held = held_by_another(lease_of(head, keys[4]), args[4], now)
  if held then
    return held
  end
  local token = integer(redis.call('HINCRBY', keys[4], 'counter', 1)) .. '-' .. args[5]
  local deadline = integer(now + tonumber(args[6]))
  redis.call('HSET', keys[4], 'policy', 'leased', 'holder', args[4], 'token', token, 'deadline', deadline, 'ttl', args[6])
  with_flag(head, 's', false)
  with_flag(head, 'l', true)
  redis.call('SET', keys[3], pack_head(head))
  return { 'LEASED', token, deadline }
end

-- muster_policy_1: says who may append to a session: any, strict (with an exact seq), leased (with a lease).
--   KEYS meta sessions head hold   ARGV store epoch session policy
--   Reply OK; HELD holder, ms until its deadline; REFUSED or DAMAGED code ...
local function policy(keys, args)
  local problem = miscounted(keys, args, 4, 4) or not_of_session(keys, args[3])
  if problem then
    return problem
  elseif args[4] ~= 'any' and args[4] ~= 'strict' and args[4] ~= 'leased' then
    return redis.error_reply('ARGUMENTS_INVALID there is no policy ' .. args[4])
  end
  local head, why = held_head(keys, args)
  if not head then
    return why
  end
  local held = has(head, 'l') and held_by_another(lease_of(head, keys[4]), '', server_ms())
  if held and args[4] ~= 'leased' then
    return held
  end
  redis.call('HSET', keys[4], 'policy', args[4])
  with_flag(head, 's', args[4] == 'strict')
  with_flag(head, 'l', args[4] == 'leased')
  redis.call('SET', keys[3], pack_head(head))
  return { 'OK' }
end

-- muster_touch_1: writes something, so that replicas and the disk can be waited for. KEYS meta, ARGV store. Reply OK.
local function touch(keys, args)
  local problem = miscounted(keys, args, 1, 1) or of_another_store(keys[1], args[1])
  if problem then
    return problem
  end
  redis.call('HINCRBY', keys[1], 'touched', 1)
  return 'OK'
end

-- muster_press_1: has whoever appends to a partition wait, or be refused, because the server's memory is short, for some time.
--   KEYS meta   ARGV store, for how long (ms; 0 to end it), ms to wait between appends ("full": they are refused)   Reply OK
local function press(keys, args)
  local problem = miscounted(keys, args, 1, 3) or of_another_store(keys[1], args[1])
  if problem then
    return problem
  elseif not whole(args[2]) or args[3] ~= 'full' and not whole(args[3]) then
    return redis.error_reply('ARGUMENTS_INVALID pressure has a time in ms, and a wait in ms')
  elseif args[2] == '0' then
    redis.call('HDEL', keys[1], 'pressure')
  else
    redis.call('HSET', keys[1], 'pressure', integer(server_ms() + tonumber(args[2])) .. ' ' .. args[3])
  end
  return 'OK'
end

-- muster_read_only_1: closes a partition for appends, or opens it. With a lapse it is by itself, and leaves what a person said.
--   KEYS meta   ARGV store lapse_ms (0: a person's word) reason (JSON; "" opens)   Reply 1 if that is news, else 0
local function read_only(keys, args)
  local problem = miscounted(keys, args, 1, 3) or of_another_store(keys[1], args[1])
  if problem then
    return problem
  elseif not whole(args[2]) then
    return redis.error_reply('ARGUMENTS_INVALID a lapse is a time in ms')
  end
  local now, lapse = server_ms(), tonumber(args[2])
  local stands = closed({ read_only = redis.call('HGET', keys[1], 'read_only') }, now)
  if stands and stands[4] == '0' and lapse > 0 then
    return 0
  end
  local text = ''
  if args[3] ~= '' then
    local since = stands and lapse > 0 and stands[3] or integer(now)
    text = integer(lapse > 0 and now + lapse or 0) .. ' ' .. since .. ' ' .. args[3]
  elseif not stands then
    return 0
  end
  redis.call('HSET', keys[1], 'read_only', text)
  return stands and lapse > 0 and text ~= '' and 0 or 1
end

-- muster_report_1: keeps what a witness knows of a session that lost commits, until an operator accepts the loss.
--   KEYS meta lost   ARGV store session witness report (JSON; "" takes it back)   Reply OK
local function report(keys, args)
  local problem = miscounted(keys, args, 2, 4) or of_another_store(keys[1], args[1])
  if problem then
    return problem
  end
  local name = args[2] .. ' ' .. args[3]
  if args[4] == '' then
    redis.call('HDEL', keys[2], name)
  else
    redis.call('HSET', keys[2], name, args[4])
  end
  return 'OK'
end

-- muster_raise_1: raises a partition's epoch, unless it is there already. What was reported lost goes to the audit stream.
--   KEYS meta lost audit   ARGV store epoch who   Reply: how many reports were accepted
local function raise(keys, args)
  local problem = miscounted(keys, args, 3, 3) or of_another_store(keys[1], args[1])
  if problem then
    return problem
  elseif not whole(args[2]) then
    return redis.error_reply('ARGUMENTS_INVALID an epoch is a number')
  end
  local reports = redis.call('HGETALL', keys[2])
  redis.call('XLEN', keys[3]) -- fails before anything is written if the key is no stream
  for index = 1, #reports, 2 do
    redis.call('XADD', keys[3], '*', 'who', args[3], 'what', 'loss accepted', 'epoch', args[2], 'session',
      string.match(reports[index], '^%S+') or '', 'report', reports[index + 1])
  end
  redis.call('DEL', keys[2])
  if (whole(redis.call('HGET', keys[1], 'epoch')) or 0) < whole(args[2]) then
    redis.call('HSET', keys[1], 'epoch', args[2])
  end
  return #reports / 2
end

-- Deletes a derived key that is of another type than it should be: it is damaged, and would fail the step half-way.
local function clear_unless(key, needs)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= needs then
    redis.call('DEL', key)
  end
end

-- muster_live_1: a worker process says that it lives, and of itself. Who frees memory must be able to say so when there is none.
--   KEYS living, about (without about: nothing is said of itself)   ARGV worker, for how long (ms), then field, value, …
--   Reply all that live, by name
local function live(keys, args)
  if #keys < 1 or #keys > 2 or #args < 2 or not whole(args[2]) or #args % 2 == 1 or (#args > 2) ~= (#keys == 2) then
    return redis.error_reply('ARGUMENTS_INVALID it takes 1 or 2 keys, a worker, a time in ms, and fields of itself')
  end
  local now = server_ms()
  redis.call('ZREMRANGEBYSCORE', keys[1], '-inf', integer(now))
  redis.call('ZADD', keys[1], integer(now + tonumber(args[2])), args[1])
  if keys[2] then
    clear_unless(keys[2], 'hash')
    redis.call('HSET', keys[2], 'heartbeat_at', integer(now), unpack(args, 3))
    redis.call('PEXPIRE', keys[2], args[2])
  end
  return redis.call('ZRANGE', keys[1], '-inf', '+inf', 'BYSCORE')
end

-- muster_claim_1: takes a partition's lease if it is free, past its deadline, already the caller's, or `force` is "1".
-- A lease that ran out and was not given back is that of a holder who died: it is counted.
--   KEYS owner   ARGV worker nonce ttl_ms force
--   Reply the token, or {holder, ms until its deadline}
local function claim(keys, args)
  local problem = miscounted(keys, args, 1, 4)
  if problem then
    return problem
  elseif not whole(args[3]) then
    return redis.error_reply('ARGUMENTS_INVALID a lease has a time in ms')
  end
  local now = server_ms()
  local holder = redis.call('HMGET', keys[1], 'worker', 'deadline', 'token', 'crashes')
  local left = (tonumber(holder[2]) or 0) - now
  if holder[1] and holder[1] ~= args[1] and left > 0 and args[4] ~= '1' then
    return { holder[1], left }
  end
  if holder[1] and holder[1] ~= args[1] and holder[3] and left <= 0 then
    redis.call('HSET', keys[1], 'crashes', integer((whole(holder[4]) or 0) + 1))
  end
  local token = integer(redis.call('HINCRBY', keys[1], 'counter', 1)) .. '-' .. args[2]
  redis.call('HSET', keys[1], 'worker', args[1], 'token', token, 'deadline', integer(now + tonumber(args[3])))
  return token
end

-- Whether the lease is held with this token; one that was given back is held with none.
local function holds(owner, token)
  return token ~= '' and redis.call('HGET', owner, 'token') == token
end

-- Forgets who died here and over what: a worker was not killed, or got further.
local function forget_crashes(owner)
  if redis.call('HDEL', owner, 'crashes') == 1 then
    for _, name in ipairs(redis.call('HKEYS', owner)) do
      if string.sub(name, 1, 4) == 'try:' then
        redis.call('HDEL', owner, name)
      end
    end
  end
end

-- muster_try_1: notes which commit a worker is about to fold, so that whoever comes after it knows what it died of.
--   KEYS owner   ARGV token, commit that is done ("" for none), commit that is next ("" for none), each as "<seq> <session>"
--   Reply how many holders of the lease, with this one, have tried this commit, one after another; 0 if the lease is lost
local function try(keys, args)
  local problem = miscounted(keys, args, 1, 3)
  if problem then
    return problem
  end
  if not holds(keys[1], args[1]) then
    return 0
  end
  if args[2] ~= '' then
    redis.call('HDEL', keys[1], 'try:' .. args[2])
  end
  if args[3] == '' then
    return 1
  end
  local times, token = string.match(redis.call('HGET', keys[1], 'try:' .. args[3]) or '', '^(%d+) (.*)$')
  times = whole(times) or 0
  if times == 0 or token ~= args[1] then
    times = times + 1
    redis.call('HSET', keys[1], 'try:' .. args[3], integer(times) .. ' ' .. args[1])
  end
  return times
end

-- muster_renew_1: moves the deadline of a lease that nobody took, a partition's or a session's. KEYS owner or hold, ARGV token
--   ttl_ms. Reply 1, or 0 if it is lost; {REFUSED, MOVED_TO, place} if it went elsewhere with its session.
local function renew(keys, args)
  local problem = miscounted(keys, args, 1, 2)
  if problem then
    return problem
  elseif not whole(args[2]) then
    return redis.error_reply('ARGUMENTS_INVALID a lease has a time in ms')
  end
  if not holds(keys[1], args[1]) then
    local aside = redis.call('HMGET', keys[1], 'moved_token', 'moved_to')
    return args[1] ~= '' and aside[1] == args[1] and aside[2] and { 'REFUSED', 'MOVED_TO', aside[2] } or 0
  end
  redis.call('HSET', keys[1], 'deadline', integer(server_ms() + tonumber(args[2])))
  return 1
end

-- muster_release_1: gives a lease back. KEYS owner or hold, ARGV token. Reply 1, or 0 if it was not the caller's any more.
local function release(keys, args)
  local problem = miscounted(keys, args, 1, 1)
  if problem then
    return problem
  end
  if not holds(keys[1], args[1]) then
    return 0
  end
  redis.call('HDEL', keys[1], 'token')
  redis.call('HSET', keys[1], 'deadline', '0')
  forget_crashes(keys[1])
  return 1
end

-- The commands a projection's step may run, with the type of key each needs (any type where false).
local STEP = {
  SET = false, DEL = false, PEXPIRE = false,
  HSET = 'hash', HDEL = 'hash', ZADD = 'zset', ZREM = 'zset', XADD = 'stream',
}
-- More arguments than this do not fit on Lua's stack when the command is called.
local STEP_ARGUMENTS = 4000

-- Whether a command of a step will succeed on a key of its type. `is_first`: nothing of the step was written before it.
local function fits(command, arguments, is_first)
  local count = #arguments
  if count > STEP_ARGUMENTS then
    return false
  elseif command == 'DEL' then
    return count == 0
  elseif command == 'SET' then
    return count == 1
  elseif command == 'PEXPIRE' then
    return count == 1 and whole(arguments[1])
  elseif command == 'HDEL' or command == 'ZREM' then
    return count >= 1
  elseif command == 'XADD' then
    -- A stream that stands further already refuses an id: then nothing else may be written yet.
    return count >= 3 and count % 2 == 1 and (arguments[1] == '*' or is_first and string.match(arguments[1], '^%d+%-%d+$'))
  end
  for index = 1, count, 2 do
    if command == 'ZADD' and not whole(arguments[index]) then
      return false
    end
  end
  return count >= 2 and count % 2 == 0
end

-- The first of the writes of a step that its caller may not do; nil if he may do all. Asked before anything is written: half
-- a step would move views and not the totals they contribute to. One key speaks for all of its kind (`view:session:…`).
local function not_allowed(operations, cursor)
  local may, asked = redis.acl_check_cmd, {}
  for _, operation in ipairs(operations) do
    local command, key = operation[1], operation[2]
    local kind = command .. (string.match(key, '^[^}]*}:[^:]*:[^:]*:') or key)
    if not asked[kind] then
      asked[kind] = true
      if not (command == 'DEL' and may(command, key) or command ~= 'DEL' and may(command, key, '', '')) then
        return command .. ' ' .. key
      end
    end
  end
  return not (may('HSET', cursor, '', '') and may('HINCRBY', cursor, '', '')) and 'HSET and HINCRBY ' .. cursor or nil
end

-- muster_step_1: writes what a projection derived, and moves its cursor, in one step; or nothing.
--   KEYS owner cursor, then the keys the operations name
--   ARGV token, cursor from ("" for no cursor yet), cursor to ("" to leave it), events, then for each operation: command,
--        index of its key, number of arguments, arguments
--   Reply OK; LEASE_TAKEN; or {CURSOR_MOVED, position}
local function step(keys, args)
  local malformed = redis.error_reply('ERR malformed step')
  if #keys < 2 or #args < 4 or args[3] ~= '' and not (whole(args[3]) and is_integer(args[4])) then
    return malformed
  end
  local operations, at = {}, 5
  while at <= #args do
    local command, key, count = args[at], keys[whole(args[at + 1]) or 0], whole(args[at + 2])
    if STEP[command] == nil or not key or key == keys[1] or key == keys[2] or not count or at + 2 + count > #args then
      return malformed
    end
    local arguments = {}
    for index = 1, count do
      arguments[index] = args[at + 2 + index]
    end
    if not fits(command, arguments, #operations == 0) then
      return malformed
    end
    operations[#operations + 1] = { command, key, unpack(arguments) }
    at = at + 3 + count
  end
  local owner = redis.call('HMGET', keys[1], 'token', 'crashes')
  if args[1] == '' or owner[1] ~= args[1] then
    return { 'LEASE_TAKEN' }
  end
  clear_unless(keys[2], 'hash')
  local stored = redis.call('HMGET', keys[2], 'position', 'events')
  local position = string.match(stored[1] or '', '^%d+$') or ''
  if position ~= args[2] then
    return { 'CURSOR_MOVED', position }
  end
  local lacking = not_allowed(operations, keys[2])
  if lacking then
    return redis.error_reply('ACCESS_DENIED the user may not ' .. lacking)
  end
  for _, operation in ipairs(operations) do
    local needs = STEP[operation[1]]
    if needs then
      clear_unless(operation[2], needs)
    end
    redis.call(unpack(operation))
  end
  if args[3] ~= '' then
    if stored[2] and not is_integer(stored[2]) then
      redis.call('HDEL', keys[2], 'events')
    end
    redis.call('HSET', keys[2], 'position', args[3], 'at', integer(server_ms()))
    redis.call('HINCRBY', keys[2], 'events', args[4])
    if owner[2] then
      forget_crashes(keys[1])
    end
  end
  return { 'OK' }
end

-- muster_quarantine_1: closes a session for appends and notes why; the log stays as it is.
--   KEYS head hold index   ARGV session code first_bad_seq   (without index: of a library that has none)
local function quarantine(keys, args)
  local problem = miscounted(keys, args, #keys == 2 and 2 or 3, 3)
  if problem then
    return problem
  elseif not whole(args[3]) then
    return redis.error_reply('ARGUMENTS_INVALID ' .. args[3] .. ' is no seq')
  end
  local head = read_head(keys[1])
    or { seq = 0, digest = string.sub(redis.sha1hex(args[1]), 1, DIGEST_LENGTH), gate = 'o', ms = 0, flags = '-' }
  with_flag(head, 'q', true)
  if keys[3] then
    clear_unless(keys[3], 'zset')
    redis.call('ZADD', keys[3], 0, QUARANTINED .. args[1])
  end
  redis.call('HSET', keys[2], 'code', args[2], 'first_bad_seq', args[3])
  redis.call('SET', keys[1], pack_head(head))
  return 'OK'
end

-- muster_mend_head_1: puts a head in the place of a damaged one, unless the head or the log moved since they were read.
--   KEYS head log   ARGV head as it was read ("" for none), id of the log's last entry ("" for none), new head
--   Reply 1, or 0 if something moved
local function mend_head(keys, args)
  local problem = miscounted(keys, args, 2, 3)
  if problem then
    return problem
  end
  local last = redis.call('XREVRANGE', keys[2], '+', '-', 'COUNT', 1)[1]
  if (redis.call('GET', keys[1]) or '') ~= args[1] or (last and last[1] or '') ~= args[2] then
    return 0
  end
  redis.call('SET', keys[1], args[3])
  return 1
end

-- muster_mend_total_1: raises a running total that was rolled back to where the feed ends; the next append would do the same.
--   KEYS meta feed   Reply the total
local function mend_total(keys, args)
  local problem = miscounted(keys, args, 2, 0)
  if problem then
    return problem
  end
  local total, last = whole(redis.call('HGET', keys[1], 'total')) or 0, 0
  if redis.call('TYPE', keys[2]).ok == 'stream' then
    last = feed_end(keys[2])
  end
  if last <= total then
    return integer(total)
  end
  redis.call('HSET', keys[1], 'total', integer(last))
  return integer(last)
end

-- muster_state_1: appends what Muster states of a session, if that stands where it was seen. Needs no lease and no exact writer.
--   KEYS and ARGV as of muster_append_1 with one commit, expected a seq   Reply as to a commit of muster_append_1
local function state(keys, args)
  local problem = miscounted(keys, args, 6, 2 + ARGUMENTS)
  if problem then
    return problem
  elseif not whole(args[4]) then
    return redis.error_reply('ARGUMENTS_INVALID what is stated is stated of a seq')
  end
  local replies = appended(keys, args, 1, true)
  return replies.err and replies or replies[1]
end

-- An error reply unless the caller may do all of these writes.
local function may_not(writes)
  for _, write in ipairs(writes) do
    if not redis.acl_check_cmd(unpack(write)) then
      return redis.error_reply('ACCESS_DENIED the user may not ' .. write[1] .. ' ' .. write[2])
    end
  end
end

-- Where commits that were appended elsewhere leave a session that stands at `from`: seq, digest, ms, bytes, the digests at the
-- ends of commits by seq; or nil and the reply, for one whose digest is not that of its content. They are the arguments from
-- `first` on, five each: number of events, server ms, digest, body, traceparent (or "").
local function chained(args, first, session, from)
  local seq, digest, ms, bytes, digests = from.seq, from.digest, from.ms, 0, {}
  for at = first, #args, 5 do
    local events = whole(args[at])
    if not events or events < 1 or not whole(args[at + 1]) then
      return nil, redis.error_reply('ARGUMENTS_INVALID a commit has a number of events and a time in ms')
    end
    ms, bytes = math.max(ms, whole(args[at + 1])), bytes + #args[at + 3]
    digest = string.sub(redis.sha1hex(digest .. '|1|' .. session .. '|' .. integer(seq + 1) .. '|' .. args[at] .. '|' .. args[at + 1]
      .. '|' .. args[at + 3]), 1, DIGEST_LENGTH)
    if digest ~= args[at + 2] then
      return nil, { 'CHAIN', integer(seq + 1) }
    end
    seq = seq + events
    digests[seq] = digest
  end
  if not whole(integer(seq)) then
    return nil, redis.error_reply('ARGUMENTS_INVALID no log is so long')
  end
  return { seq = seq, digest = digest, ms = ms, bytes = bytes, digests = digests }
end

-- Writes those commits, as they are, into a log that ends at a seq.
local function add_copies(log, args, first, seq)
  for at = first, #args, 5 do
    seq = seq + whole(args[at])
    local entry = { 'XADD', log, integer(seq) .. '-' .. args[at], 't', args[at + 1], 'd', args[at + 2], 'b', args[at + 3] }
    if args[at + 4] ~= '' then
      entry[#entry + 1] = 'c'
      entry[#entry + 1] = args[at + 4]
    end
    redis.call(unpack(entry))
  end
end

-- muster_copy_1: writes commits of a session as they were appended elsewhere, into a store that is being restored and that nobody
-- can open yet.
--   KEYS meta sessions log head
--   ARGV store session, seq and digest at which the session stands here, gate and flags after the commits, then for each commit:
--        number of events, server ms, digest, body, traceparent (or "")
--   Reply {COPIED seq}; {MOVED seq digest} if it stands elsewhere; {CHAIN seq} for a commit whose digest is not that of its content
local function copy(keys, args)
  local count = (#args - 6) / 5
  if #keys ~= 4 or count < 1 or count ~= math.floor(count) or not whole(args[3]) or not GATE[args[5]] then
    return redis.error_reply('ARGUMENTS_INVALID it takes 4 keys, 6 arguments, and 5 for each commit')
  end
  local meta = redis.call('HMGET', keys[1], 'store', 'restoring', 'at')
  if meta[1] or meta[2] ~= args[1] then
    return redis.error_reply('STORE_CHANGED the store here is not one that is being restored as ' .. args[1])
  end
  local head = read_head(keys[4]) or head_at(0, string.sub(redis.sha1hex(args[2]), 1, DIGEST_LENGTH), 'o', 0, '-')
  if head.seq ~= whole(args[3]) or head.digest ~= args[4] then
    return { 'MOVED', integer(head.seq), head.digest }
  end
  local chain, why = chained(args, 7, args[2], head)
  if not chain then
    return why
  end
  -- All that can fail, before anything is written.
  if #redis.call('XRANGE', keys[3], integer(head.seq + 1), '+', 'COUNT', 1) > 0 then
    return { 'MOVED', integer(head.seq), head.digest }
  end
  redis.call('ZCARD', keys[2])
  add_copies(keys[3], args, 7, head.seq)
  head.seq, head.digest, head.gate, head.ms, head.flags = chain.seq, chain.digest, args[5], chain.ms, args[6]
  redis.call('SET', keys[4], pack_head(head))
  redis.call('ZADD', keys[2], 0, args[2])
  redis.call('HSET', keys[1], 'at', integer(math.max(whole(meta[3]) or 0, chain.ms)))
  return { 'COPIED', integer(chain.seq) }
end

-- muster_trim_1: drops the beginning of a session's log, which is in the archive and was read back from there. What is archived
-- to its end leaves no log behind, and no checkpoints. The head stays, and says where the log begins.
--   KEYS meta head hold log checkpoints
--   ARGV store epoch session; seq up to which it was archived before; seq up to which it is now, which ends a commit, and the digest
--        there; names of the segments in between, a line each
--   Reply {TRIMMED seq}; {MOVED} if the session is not what was archived; as muster_append_1: DAMAGED code ...
local function trim(keys, args)
  local problem = miscounted(keys, args, 5, 7)
  if problem then
    return problem
  end
  local meta, why = open_store(keys[1], args[1], args[2])
  if not meta then
    return why
  end
  local session, from, upto, digest = args[3], whole(args[4]), whole(args[5]), args[6]
  local tag = string.match(keys[1], '^(.*:)meta$')
  if not tag or keys[2] ~= tag .. 'head:' .. session or keys[3] ~= tag .. 'hold:' .. session or keys[4] ~= tag .. 'log:' .. session
    or keys[5] ~= tag .. 'ckpt:' .. session then
    return redis.error_reply('ARGUMENTS_INVALID the keys are not those of the session')
  elseif not (from and upto) or upto <= from or args[7] == '' then
    return redis.error_reply('ARGUMENTS_INVALID what is trimmed has a beginning, an end, and segments')
  end
  local denial = may_not({
    { 'HSET', keys[3], 'horizon', '' }, { 'SET', keys[2], '' }, { 'XTRIM', keys[4], 'MINID', '0' }, { 'UNLINK', keys[4] },
    { 'UNLINK', keys[5] },
  })
  if denial then
    return denial
  end
  local head, unreadable = read_head(keys[2])
  if unreadable then
    return { 'DAMAGED', 'HEAD_MISSING' }
  elseif head and has(head, 'q') then
    return quarantined(keys[3])
  elseif not head or has(head, 'm') or upto > head.seq or horizon_of(head, keys[3]) ~= from then
    return { 'MOVED' }
  end
  local entry = redis.call('XRANGE', keys[4], integer(upto), integer(upto), 'COUNT', 1)[1]
  if not entry or field(entry, 'd') ~= digest or upto == head.seq and head.digest ~= digest then
    return { 'MOVED' }
  end
  local earlier = redis.call('HGET', keys[3], 'segments')
  redis.call('HSET', keys[3], 'horizon', integer(upto), 'horizon_digest', digest, 'segments',
    earlier and from > 0 and earlier .. '\n' .. args[7] or args[7])
  with_flag(head, 'a', true)
  with_flag(head, 'c', upto == head.seq)
  redis.call('SET', keys[2], pack_head(head))
  if upto == head.seq then
    redis.call('UNLINK', keys[4])
    redis.call('UNLINK', keys[5])
  else
    redis.call('XTRIM', keys[4], 'MINID', integer(upto + 1))
  end
  return { 'TRIMMED', integer(upto) }
end

-- The first of the writes of a repair that its caller may not do; nil if he may do all.
local function may_not_repair(keys)
  local writes = {
    { 'RENAME', keys[4], keys[9] }, { 'XADD', keys[4], '*', 'b', '' }, { 'SET', keys[5], '' }, { 'HDEL', keys[6], 'code' },
    { 'ZADD', keys[2], '0', '' }, { 'XADD', keys[3], '*', 't', '' }, { 'HSET', keys[1], 'total', '' },
    { 'HDEL', keys[7], '' }, { 'XADD', keys[8], '*', 'who', '' },
  }
  if keys[10] then
    writes[#writes + 1] = { 'ZREM', keys[10], '' }
  end
  return may_not(writes)
end

-- muster_repair_1: an operator accepts that a quarantined session lost what follows its longest verified prefix. The log as it
-- was is put aside; the session goes on after the prefix, with one event that says so.
--   KEYS meta sessions feed log head hold lost audit aside index   (without index: of a library that has none)
--   ARGV store epoch session, id of the log's last entry ("" for no log); seq, digest and gate of the prefix; body (one event),
--        who, why
--   Reply {REPAIRED seq digest ms}, or {MOVED} if it is not quarantined or not what it was when it was read
local function repair(keys, args)
  local problem = miscounted(keys, args, #keys == 9 and 9 or 10, 10)
  if problem then
    return problem
  end
  local meta, why = open_store(keys[1], args[1], args[2])
  if not meta then
    return why
  end
  local session, seq, digest, gate, body, ms = args[3], whole(args[5]), args[6], args[7], args[8], 0
  local tag = string.match(keys[1], '^(.*:)meta$')
  if not tag or keys[4] ~= tag .. 'log:' .. session or keys[5] ~= tag .. 'head:' .. session or keys[6] ~= tag .. 'hold:' .. session then
    return redis.error_reply('ARGUMENTS_INVALID the keys are not those of the session')
  elseif not (seq and GATE[gate]) or seq == 0 and digest ~= string.sub(redis.sha1hex(session), 1, DIGEST_LENGTH) then
    return redis.error_reply('ARGUMENTS_INVALID the prefix needs a seq, its digest and a gate')
  end
  local denial = may_not_repair(keys)
  if denial then
    return denial
  end
  local kind, head = redis.call('TYPE', keys[4]).ok, read_head(keys[5])
  local is_there = kind == 'stream'
  local last = is_there and redis.call('XREVRANGE', keys[4], '+', '-', 'COUNT', 1)[1]
  if not head or not has(head, 'q') or has(head, 'm') or (last and last[1] or '') ~= args[4]
    or not is_there and kind ~= 'none' then
    return { 'MOVED' }
  end
  local horizon, horizon_digest = horizon_of(head, keys[6])
  if seq < horizon then
    return { 'MOVED' }
  elseif seq > horizon then
    local found = redis.call('XREVRANGE', keys[4], integer(seq), integer(seq), 'COUNT', 1)[1]
    ms = found and whole(field(found, 't'))
    if not ms or field(found, 'd') ~= digest then
      return { 'MOVED' }
    end
  elseif seq > 0 and digest ~= horizon_digest then
    return { 'MOVED' }
  end
  -- All that can fail, before anything is written.
  redis.call('XLEN', keys[3])
  redis.call('ZCARD', keys[2])
  redis.call('XLEN', keys[8])
  redis.call('HLEN', keys[6])
  local reports = redis.call('HGETALL', keys[7])
  if redis.call('EXISTS', keys[9]) == 1 then
    return redis.error_reply('ARGUMENTS_INVALID a log was put aside under this name before')
  end

  if is_there then
    redis.call('RENAME', keys[4], keys[9])
  end
  local from = '-'
  while seq > 0 and from do
    local page = redis.call('XRANGE', keys[9], from, integer(seq), 'COUNT', 512)
    for _, entry in ipairs(page) do
      redis.call('XADD', keys[4], entry[1], unpack(entry[2]))
      from = '(' .. entry[1]
    end
    from = #page == 512 and from or nil
  end
  local at = math.max(written_at(meta, server_ms()), ms)
  local chained = digest .. '|1|' .. session .. '|' .. integer(seq + 1) .. '|1|' .. integer(at) .. '|' .. body
  local after = string.sub(redis.sha1hex(chained), 1, DIGEST_LENGTH)
  redis.call('XADD', keys[4], integer(seq + 1) .. '-1', 't', integer(at), 'd', after, 'b', body)
  head.seq, head.digest, head.gate, head.ms = seq + 1, after, gate, at
  with_flag(head, 'q', false)
  with_flag(head, 'c', false)
  redis.call('SET', keys[5], pack_head(head))
  redis.call('HDEL', keys[6], 'code', 'first_bad_seq')
  if keys[10] and redis.call('TYPE', keys[10]).ok == 'zset' then
    redis.call('ZREM', keys[10], QUARANTINED .. session)
  end
  redis.call('ZADD', keys[2], 0, session)
  feed(keys[1], keys[3], meta.total, 1, at, cmsgpack.pack({ { session, seq + 1, seq + 1, #body } }))
  for index = 1, #reports, 2 do
    if string.match(reports[index], '^%S+') == session then
      redis.call('XADD', keys[8], '*', 'who', args[9], 'what', 'loss accepted', 'session', session, 'report', reports[index + 1])
      redis.call('HDEL', keys[7], reports[index])
    end
  end
  redis.call('XADD', keys[8], '*', 'who', args[9], 'what', 'log repaired', 'session', session, 'seq', integer(seq + 1),
    'digest', after, 'aside', is_there and keys[9] or '', 'why', args[10])
  return { 'REPAIRED', integer(seq + 1), after, integer(at) }
end

-- The first of the writes of a fork's step that its caller may not do; nil if he may do all.
local function may_not_fork(keys, is_audited, has_skips)
  local writes = {
    { 'XADD', keys[4], '*', 'b', '' }, { 'SET', keys[5], '' }, { 'HSET', keys[6], 'code', '' }, { 'HDEL', keys[6], 'code' },
    { 'ZADD', keys[2], '0', '' }, { 'XADD', keys[3], '*', 't', '' }, { 'HSET', keys[1], 'total', '' },
    { 'ZREM', keys[9], '' },
  }
  if is_audited then
    writes[#writes + 1] = { 'XADD', keys[7], '*', 'who', '' }
  end
  if has_skips then
    writes[#writes + 1] = { 'HSET', keys[8], '', '' }
  end
  return may_not(writes)
end

-- muster_fork_1: one step of copying a session's beginning into a new one. All but the last step leave the new session
-- quarantined, with what it is to be a fork of, so that nobody appends to it and nobody takes it for whole; the last step adds
-- the event that says where it comes from, and lifts that. Bodies, traces and cuts of commits are the parent's; digests and times
-- are those of any append.
--   KEYS meta sessions feed log head hold audit skips index
--   ARGV store epoch session; parent, its seq up to which it is copied, its digest there; seq and digest at which the session
--        stands now; gate after this step; body of the last event ("" unless this is the last step); who (for the audit stream; ""
--        for no entry); then for each commit: number of events, body, traceparent (or ""), "1" if it was discarded in the parent
--   Reply {COPIED seq digest ms} or {FORKED seq digest ms}; {MOVED} if the session stands elsewhere; {TAKEN} if it is another
--         session; or as muster_append_1: REFUSED or DAMAGED code ...
local function fork(keys, args)
  local count = (#args - 11) / 4
  if #keys ~= 9 or count < 0 or count ~= math.floor(count) then
    return redis.error_reply('ARGUMENTS_INVALID it takes 9 keys, 11 arguments, and 4 more for each commit')
  end
  local meta, problem = open_store(keys[1], args[1], args[2])
  if not meta then
    return problem
  end
  local session, parent, end_seq, from, gate, mark, who = args[3], args[4], whole(args[5]), whole(args[7]), args[9], args[10], args[11]
  local tag = string.match(keys[1], '^(.*:)meta$')
  if not tag or keys[2] ~= tag .. 'sessions' or keys[3] ~= tag .. 'feed' or keys[4] ~= tag .. 'log:' .. session
    or keys[5] ~= tag .. 'head:' .. session or keys[6] ~= tag .. 'hold:' .. session or keys[7] ~= tag .. 'audit'
    or keys[8] ~= tag .. 'skips' or keys[9] ~= tag .. 'index:sessions' then
    return redis.error_reply('ARGUMENTS_INVALID the keys are not those of the session')
  elseif not (end_seq and from and GATE[gate]) or count == 0 and mark == '' then
    return redis.error_reply('ARGUMENTS_INVALID a step has seqs, a gate, and something to write')
  end
  local commits, seq, has_skips = {}, from, false
  for number = 1, count do
    local at = 11 + (number - 1) * 4
    local commit = { events = whole(args[at + 1]), body = args[at + 2], trace = args[at + 3], skipped = args[at + 4] == '1' }
    if not commit.events or commit.events == 0 or commit.events > meta.max_events or #commit.body > meta.max_bytes then
      return redis.error_reply('ARGUMENTS_INVALID a commit holds events, within the limits of the store')
    end
    commits[number], seq, has_skips = commit, seq + commit.events, has_skips or commit.skipped
  end
  if seq > end_seq or mark ~= '' and seq ~= end_seq then
    return redis.error_reply('ARGUMENTS_INVALID the step does not end where the fork does')
  end
  local is_audited = has_skips or mark ~= '' and who ~= ''
  local denial = may_not_fork(keys, is_audited, has_skips) or closed(meta, server_ms())
  if denial then
    return denial
  end

  local head, unreadable = read_head(keys[5])
  if unreadable then
    return { 'DAMAGED', 'HEAD_MISSING' }
  elseif not head then
    head, problem = new_head(session, meta, keys[2])
    if not head then
      return problem
    end
  end
  if has(head, 'm') then
    return elsewhere(keys[6])
  end
  local hold = redis.call('HMGET', keys[6], 'code', 'fork_parent', 'fork_seq', 'fork_digest')
  local is_ours = has(head, 'q') and hold[1] == 'FORK_UNFINISHED'
  if not is_ours and (head.seq > 0 or has(head, 'q')) then
    return { 'TAKEN' }
  elseif is_ours and (hold[2] ~= parent or hold[3] ~= args[5] or hold[4] ~= args[6]) then
    return { 'TAKEN' }
  elseif head.seq ~= from or head.digest ~= args[8] then
    return { 'MOVED' }
  end
  -- All that can fail, before anything is written.
  if redis.call('XRANGE', keys[4], integer(from + 1), '+', 'COUNT', 1)[1] then
    return { 'DAMAGED', 'LOG_AHEAD' }
  end
  redis.call('XLEN', keys[3])
  redis.call('ZCARD', keys[2])
  if is_audited then
    redis.call('XLEN', keys[7])
  end
  local skips = redis.call('HGET', keys[8], session)
  skips = has_skips and skips and cjson.decode(skips) or {}

  local at, spans = math.max(written_at(meta, server_ms()), head.ms), {}
  local function add(events, body, trace)
    local first, last = head.seq + 1, head.seq + events
    local place = '|1|' .. session .. '|' .. integer(first) .. '|' .. integer(events) .. '|' .. integer(at) .. '|'
    head.seq, head.digest = last, string.sub(redis.sha1hex(head.digest .. place .. body), 1, DIGEST_LENGTH)
    local entry = { 'XADD', keys[4], integer(last) .. '-' .. integer(events), 't', integer(at), 'd', head.digest, 'b', body }
    if trace ~= '' then
      entry[#entry + 1] = 'c'
      entry[#entry + 1] = trace
    end
    redis.call(unpack(entry))
    spans[#spans + 1] = { session, first, last, #body }
    return first
  end
  for _, commit in ipairs(commits) do
    local first = add(commit.events, commit.body, commit.trace)
    if commit.skipped then
      local why = 'discarded in ' .. parent
      skips[#skips + 1] = { from_seq = first, to_seq = head.seq, digest = head.digest, who = who, why = why, at = at }
      redis.call('XADD', keys[7], '*', 'who', who, 'what', 'commit discarded', 'session', session, 'seq', integer(first),
        'to_seq', integer(head.seq), 'digest', head.digest, 'why', why)
    end
  end
  if has_skips then
    redis.call('HSET', keys[8], session, cjson.encode(skips))
  end
  if mark ~= '' then
    add(1, mark, '')
    redis.call('HDEL', keys[6], 'code', 'first_bad_seq', 'fork_parent', 'fork_seq', 'fork_digest')
    if redis.call('TYPE', keys[9]).ok == 'zset' then
      redis.call('ZREM', keys[9], QUARANTINED .. session) -- where a recovery met it unfinished
    end
    if who ~= '' then
      redis.call('XADD', keys[7], '*', 'who', who, 'what', 'session forked', 'session', session, 'parent', parent, 'seq', args[5],
        'digest', args[6])
    end
  else
    redis.call('HSET', keys[6], 'code', 'FORK_UNFINISHED', 'first_bad_seq', integer(head.seq + 1), 'fork_parent', parent,
      'fork_seq', args[5], 'fork_digest', args[6])
  end
  with_flag(head, 'q', mark == '')
  head.gate, head.ms = gate, at
  redis.call('SET', keys[5], pack_head(head))
  redis.call('ZADD', keys[2], 0, session)
  feed(keys[1], keys[3], meta.total, head.seq - from, at, cmsgpack.pack(spans))
  return { mark ~= '' and 'FORKED' or 'COPIED', integer(head.seq), head.digest, integer(at) }
end

-- muster_graft_1: one step of completing a damaged log from elsewhere. What the log is to be is built beside it, each digest
-- computed again; the last step puts it in the log's place, if nothing came meanwhile, and lifts the quarantine. Until then the
-- session is as it was. A log that holds anything else is put aside as it was. What is built lapses a day after its last step, so
-- that nothing is left of who never comes back; who comes later begins anew.
--   KEYS meta sessions feed log head hold lost audit aside graft index
--   ARGV store epoch session; seq and digest after which the log begins (0 and its genesis, or the horizon); seq and digest at
--        which what is built stands (those it begins after: it is begun anew); "" unless this is the last step, then "aside" to
--        put the log aside, or "over" where it holds nothing else; the head as it was read ("" for none); id of the log's last
--        entry ("" for none); gate in the end; seq up to which the views know the session; who; why; number of spans of what
--        nobody was told of yet, then for each its last seq and its bytes; then for each commit: number of events, server ms,
--        digest, body, traceparent (or "")
--   Reply {BUILT seq digest} or {GRAFTED seq digest}; {MOVED} if the session is not what it was when it was read, {MOVED seq
--         digest} if what is built stands elsewhere; {CHAIN seq} for a commit that does not follow; {FORK seq} if the head says
--         otherwise there
local GRAFT_MS = '86400000'
local function graft(keys, args)
  local spans = #args >= 15 and whole(args[15])
  local count = spans and (#args - 15 - 2 * spans) / 5
  if #keys ~= 11 or not count or count < 0 or count ~= math.floor(count) then
    return redis.error_reply('ARGUMENTS_INVALID it takes 11 keys, 15 arguments, 2 for each span, and 5 for each commit')
  end
  local session, base, from, how, gate, known = args[3], whole(args[4]), whole(args[6]), args[8], args[11], whole(args[12])
  local tag = string.match(keys[1], '^(.*:)meta$')
  if not tag or keys[2] ~= tag .. 'sessions' or keys[3] ~= tag .. 'feed' or keys[4] ~= tag .. 'log:' .. session
    or keys[5] ~= tag .. 'head:' .. session or keys[6] ~= tag .. 'hold:' .. session or keys[7] ~= tag .. 'lost'
    or keys[8] ~= tag .. 'audit' or string.sub(keys[9], 1, #tag) ~= tag
    or string.match(string.sub(keys[9], #tag + 1), '^damaged:%d+:(.*)$') ~= session or keys[10] ~= tag .. 'graft:' .. session
    or keys[11] ~= tag .. 'index:sessions' then
    return redis.error_reply('ARGUMENTS_INVALID the keys are not those of the session')
  elseif not (base and from and known) or from < base or count == 0 and (how == '' or from == base)
    or how ~= '' and (not GATE[gate] or how ~= 'aside' and how ~= 'over') then
    return redis.error_reply('ARGUMENTS_INVALID a step has seqs, a gate, and something to write')
  end
  local meta, problem = open_store(keys[1], args[1], args[2])
  if not meta then
    return problem
  end
  local denial = may_not({
    { 'DEL', keys[10] }, { 'XADD', keys[10], '*', 'b', '' }, { 'RENAME', keys[4], keys[9] }, { 'RENAME', keys[10], keys[4] },
    { 'PEXPIRE', keys[10], GRAFT_MS }, { 'PERSIST', keys[10] },
    { 'SET', keys[5], '' }, { 'HDEL', keys[6], 'code' }, { 'ZADD', keys[2], '0', '' }, { 'XADD', keys[3], '*', 't', '' },
    { 'HSET', keys[1], 'total', '' }, { 'HDEL', keys[7], '' }, { 'XADD', keys[8], '*', 'who', '' }, { 'ZREM', keys[11], '' },
  })
  if denial then
    return denial
  end

  -- Where the log begins.
  local head = read_head(keys[5])
  if head and has(head, 'm') then
    return { 'MOVED' }
  end
  local begins = redis.call('HMGET', keys[6], 'horizon', 'horizon_digest')
  local is_archived = begins[1] and begins[2]
  if not is_archived then
    begins = { '0', string.sub(redis.sha1hex(session), 1, DIGEST_LENGTH) }
  end
  if args[4] ~= begins[1] or args[5] ~= begins[2] then
    return { 'MOVED' }
  end
  -- Where what is built stands.
  local is_new = from == base
  if is_new and args[7] ~= args[5] then
    return { 'MOVED', args[4], args[5] }
  elseif not is_new then
    if redis.call('TYPE', keys[10]).ok ~= 'stream' then
      return { 'MOVED', args[4], args[5] }
    end
    local first = redis.call('XRANGE', keys[10], '-', '+', 'COUNT', 1)[1]
    local last = redis.call('XREVRANGE', keys[10], '+', '-', 'COUNT', 1)[1]
    local seq, events = string.match(first and first[1] or '', '^(%d+)%-(%d+)$')
    local stands = string.match(last and last[1] or '', '^(%d+)%-')
    if not seq or tonumber(seq) - tonumber(events) ~= base then
      return { 'MOVED', args[4], args[5] }
    elseif tonumber(stands) ~= from or field(last, 'd') ~= args[7] then
      return { 'MOVED', stands, field(last, 'd') or '' }
    end
  end
  local step, why = chained(args, 16 + 2 * spans, session, { seq = from, digest = args[7], ms = 0 })
  if not step then
    return why
  end

  local end_ms, known_seq, kind = step.ms, 0, nil
  if how ~= '' then
    kind = redis.call('TYPE', keys[4]).ok
    local last = kind == 'stream' and redis.call('XREVRANGE', keys[4], '+', '-', 'COUNT', 1)[1]
    if kind ~= 'stream' and kind ~= 'none' or (redis.call('GET', keys[5]) or '') ~= args[9] or (last and last[1] or '') ~= args[10]
      or redis.call('HGET', keys[6], 'code') == 'FORK_UNFINISHED' then
      return { 'MOVED' }
    end
    if not head then
      local _, refusal = new_head(session, meta, keys[2])
      if refusal and refusal[1] == 'REFUSED' then
        return refusal
      end
    elseif head.seq > base then
      -- What the head says was acknowledged.
      local digest = step.digests[head.seq]
      if head.seq <= from then
        local entry = redis.call('XRANGE', keys[10], integer(head.seq), integer(head.seq), 'COUNT', 1)[1]
        digest = entry and field(entry, 'd')
      end
      if digest ~= head.digest then
        return { 'FORK', integer(head.seq) }
      end
    end
    if count == 0 then
      end_ms = whole(field(redis.call('XREVRANGE', keys[10], '+', '-', 'COUNT', 1)[1], 't')) or 0
    end
    known_seq = math.max(known, head and head.seq or 0, base)
    local told = known_seq
    for at = 16, 15 + 2 * spans, 2 do
      local to, bytes = whole(args[at]), whole(args[at + 1])
      if not to or not bytes or to <= told then
        return redis.error_reply('ARGUMENTS_INVALID spans have seqs that grow, and bytes')
      end
      told = to
    end
    if told ~= math.max(known_seq, spans > 0 and step.seq or 0) or spans == 0 and step.seq > known_seq then
      return redis.error_reply('ARGUMENTS_INVALID the spans are not of what nobody was told of')
    end
    -- All that can fail, before anything is written.
    redis.call('XLEN', keys[3])
    redis.call('ZCARD', keys[2])
    redis.call('XLEN', keys[8])
    redis.call('HLEN', keys[6])
    redis.call('HLEN', keys[7])
    if redis.call('EXISTS', keys[9]) == 1 then
      return redis.error_reply('ARGUMENTS_INVALID a log was put aside under this name before')
    end
  end

  if is_new then
    redis.call('DEL', keys[10])
  end
  add_copies(keys[10], args, 16 + 2 * spans, from)
  if how == '' then
    redis.call('PEXPIRE', keys[10], GRAFT_MS)
    return { 'BUILT', integer(step.seq), step.digest }
  end
  -- First of all: a key keeps its deadline when it is renamed, and a log has none.
  redis.call('PERSIST', keys[10])
  local is_aside = how == 'aside' and kind == 'stream'
  if is_aside then
    redis.call('RENAME', keys[4], keys[9])
  end
  redis.call('RENAME', keys[10], keys[4])
  if not head then
    local policy = redis.call('HGET', keys[6], 'policy')
    head = head_at(0, '', 'o', 0, policy == 'strict' and 's' or policy == 'leased' and 'l' or '-')
  end
  head.seq, head.digest, head.gate, head.ms = step.seq, step.digest, gate, math.max(head.ms, end_ms)
  with_flag(head, 'q', false)
  with_flag(head, 'a', is_archived)
  with_flag(head, 'c', false) -- cold: nothing came since it was archived
  redis.call('SET', keys[5], pack_head(head))
  redis.call('HDEL', keys[6], 'code', 'first_bad_seq')
  if redis.call('TYPE', keys[11]).ok == 'zset' then
    redis.call('ZREM', keys[11], QUARANTINED .. session)
  end
  redis.call('ZADD', keys[2], 0, session)
  local at = math.max(written_at(meta, server_ms()), end_ms)
  local total, told = meta.total, known_seq
  for place = 16, 15 + 2 * spans, 2 do
    local to = whole(args[place])
    feed(keys[1], keys[3], total, to - told, at, cmsgpack.pack({ { session, told + 1, to, whole(args[place + 1]) } }))
    total, told = total + to - told, to
  end
  redis.call('HSET', keys[1], 'at', integer(math.max(meta.at, at)))
  local reports = redis.call('HGETALL', keys[7])
  for index = 1, #reports, 2 do
    if string.match(reports[index], '^%S+') == session then
      local is_read, report = pcall(cjson.decode, reports[index + 1])
      local last = is_read and type(report) == 'table' and report.last
      local seq = type(last) == 'table' and tonumber(last.seq)
      local entry = seq and redis.call('XRANGE', keys[4], integer(seq), integer(seq), 'COUNT', 1)[1]
      if entry and field(entry, 'd') == last.digest then
        redis.call('HDEL', keys[7], reports[index])
      end
    end
  end
  redis.call('XADD', keys[8], '*', 'who', args[13], 'what', 'log grafted', 'session', session, 'seq', integer(step.seq), 'digest',
    step.digest, 'aside', is_aside and keys[9] or '', 'why', args[14])
  return { 'GRAFTED', integer(step.seq), step.digest }
end

-- The keys a move may name, by what they are; or an error reply unless they are those of the session.
local function keys_of_move(keys, session, names)
  local tag = string.match(keys[1] or '', '^(.*:)meta$')
  local of = { meta = keys[1] }
  if not tag or #keys ~= #names + 1 then
    return nil, redis.error_reply('ARGUMENTS_INVALID the keys are not those of the session')
  end
  for index, name in ipairs(names) do
    local is_own, key = name == 'log' or name == 'head' or name == 'hold' or name == 'arriving', keys[index + 1]
    local aside = name == 'aside' and string.match(key, '}:damaged:%d+:(.*)$')
    if name == 'aside' and (aside ~= session or string.sub(key, 1, #tag) ~= tag)
      or name ~= 'aside' and key ~= tag .. name .. (is_own and ':' .. session or '') then
      return nil, redis.error_reply('ARGUMENTS_INVALID the keys are not those of the session')
    end
    of[name] = key
  end
  return of
end

-- Whether a text may stand for a place, or a task: producers and people are told it.
local function is_told(text)
  return #text <= 500 and string.find(text, '^[\32-\126]+$') ~= nil
end

-- That a session is here, and no task's to be moved: or this other one's.
local function taken(head, hold)
  local told = redis.call('HMGET', hold, 'moved_task', 'moved_to', 'moved_from', 'opened_by', 'opened_seq', 'opened_digest')
  return { 'TAKEN', integer(head.seq), head.digest, head.flags, told[1] or '', told[2] or '', told[3] or '', told[4] or '',
    told[5] or '0', told[6] or '' }
end

-- muster_seal_1: closes a session for appends because its writer is to be elsewhere: `to` a place it moves to, or `from` one it
-- is kept equal with. A lease stays its holder's, there. It may be sent again; who did last (`by`) may open it.
--   KEYS meta log head hold   ARGV store epoch session task by direction place
--   Reply {SEALED seq digest gate ms flags policy holder token left_ms ttl counter}; if another task did, {TAKEN seq digest flags
--         task to from opened_by opened_seq opened_digest}; {ABSENT}; DAMAGED code ...
local function seal(keys, args)
  local of, problem = keys_of_move(keys, args[3] or '', { 'log', 'head', 'hold' })
  if not of or #args ~= 7 or (args[6] ~= 'to' and args[6] ~= 'from') or not (is_told(args[4]) and is_told(args[7])) then
    return problem or redis.error_reply('ARGUMENTS_INVALID a seal has a task, a direction and a place')
  end
  local meta, why = open_store(keys[1], args[1], args[2])
  if not meta then
    return why
  end
  local head, unreadable = read_head(of.head)
  if unreadable then
    return { 'DAMAGED', 'HEAD_MISSING' }
  elseif not head or head.seq == 0 and not has(head, 'm') then
    return redis.call('EXISTS', of.log) == 1 and { 'DAMAGED', 'HEAD_MISSING' } or { 'ABSENT' }
  elseif has(head, 'q') then
    return quarantined(of.hold)
  elseif head.seq == 0 then
    return taken(head, of.hold) -- a name that is held, and no session
  end
  local field_name = 'moved_' .. args[6]
  local hold = redis.call('HMGET', of.hold, 'moved_task', field_name, 'holder', 'token', 'deadline', 'ttl', 'counter', 'moved_token',
    'policy')
  local token = hold[8] or hold[4] or ''
  if has(head, 'm') and (hold[1] ~= args[4] or not hold[2]) then
    return taken(head, of.hold)
  elseif not has(head, 'm') then
    local last = redis.call('XREVRANGE', of.log, '+', '-', 'COUNT', 1)[1]
    local ends_at = last and string.match(last[1], '^%d+') or integer((horizon_of(head, of.hold)))
    if ends_at ~= integer(head.seq) then
      return { 'DAMAGED', 'LOG_AHEAD' }
    end
  end
  problem = may_not({ { 'SET', of.head, '' }, { 'HSET', of.hold, 'moved_to', '' }, { 'HDEL', of.hold, 'token' } })
  if problem then
    return problem
  end
  redis.call('HSET', of.hold, 'moved_by', args[5])
  if not has(head, 'm') then
    redis.call('HSET', of.hold, field_name, args[7], 'moved_task', args[4], 'moved_at', integer(server_ms()))
    if token ~= '' then
      redis.call('HSET', of.hold, 'moved_token', token)
      redis.call('HDEL', of.hold, 'token')
    end
    with_flag(head, 'm', true)
    redis.call('SET', of.head, pack_head(head))
  end
  local left = math.max(0, (whole(hold[5]) or 0) - server_ms())
  return { 'SEALED', integer(head.seq), head.digest, head.gate, integer(head.ms), head.flags, hold[9] or 'any', hold[3] or '', token,
    integer(left), hold[6] or '0', hold[7] or '0' }
end

-- muster_unseal_1: opens a session again that a task closed, for who closed it last.
--   KEYS meta log head hold   ARGV store epoch session task by
--   Reply {OPEN seq digest}, also if it was open; {TAKEN seq digest flags task to from} if another task closed it; {ABSENT}
local function unseal(keys, args)
  local of, problem = keys_of_move(keys, args[3] or '', { 'log', 'head', 'hold' })
  if not of or #args ~= 5 then
    return problem or redis.error_reply('ARGUMENTS_INVALID it takes 4 keys and 5 arguments')
  end
  local meta, why = open_store(keys[1], args[1], args[2])
  if not meta then
    return why
  end
  local head, unreadable = read_head(of.head)
  if unreadable then
    return { 'DAMAGED', 'HEAD_MISSING' }
  elseif not head then
    return { 'ABSENT' }
  elseif not has(head, 'm') then
    return { 'OPEN', integer(head.seq), head.digest }
  end
  local hold = redis.call('HMGET', of.hold, 'moved_task', 'moved_token', 'moved_seq', 'moved_by')
  if hold[1] ~= args[4] or hold[3] or hold[4] ~= args[5] or head.seq == 0 then
    return taken(head, of.hold)
  end
  problem = may_not({ { 'SET', of.head, '' }, { 'HSET', of.hold, 'token', '' }, { 'HDEL', of.hold, 'moved_to' } })
  if problem then
    return problem
  end
  with_flag(head, 'm', false)
  redis.call('SET', of.head, pack_head(head))
  if hold[2] then
    redis.call('HSET', of.hold, 'token', hold[2])
  end
  redis.call('HDEL', of.hold, 'moved_to', 'moved_from', 'moved_task', 'moved_by', 'moved_at', 'moved_token')
  return { 'OPEN', integer(head.seq), head.digest }
end

-- muster_stage_1: adds commits to a session's copy that arrives from elsewhere, as they were appended there; nobody sees it before
-- it is opened. Without commits it claims the session's name, and says who may go on (`by`). It may be sent again.
--   KEYS meta sessions head hold arriving
--   ARGV store epoch session task by place, seq and digest at which the copy stands, then for each commit: number of events, server
--        ms, digest, body, traceparent (or "")
--   Reply {STAGED seq digest}; {STANDS seq digest} if it stands elsewhere; {CHAIN seq} for a commit whose digest is not that of its
--         content; {TAKEN seq digest flags task to from} if the name is another session's; REFUSED or DAMAGED code ...
local function stage(keys, args)
  local of, problem = keys_of_move(keys, args[3] or '', { 'sessions', 'head', 'hold', 'arriving' })
  local count = (#args - 8) / 5
  if not of or count < 0 or count ~= math.floor(count) or not whole(args[7]) or not (is_told(args[4]) and is_told(args[6])) then
    return problem or redis.error_reply('ARGUMENTS_INVALID it takes 5 keys, 8 arguments, and 5 for each commit')
  end
  local meta, why = open_store(keys[1], args[1], args[2])
  if not meta then
    return why
  end
  local session = args[3]
  local head, unreadable = read_head(of.head)
  if unreadable then
    return { 'DAMAGED', 'HEAD_MISSING' }
  elseif not head then
    head, why = new_head(session, meta, of.sessions)
    if not head then
      return why
    end
  end
  local hold = redis.call('HMGET', of.hold, 'moved_task', 'moved_seq', 'moved_digest', 'moved_to', 'moved_by')
  local is_ours = has(head, 'm') and head.seq == 0 and hold[1] == args[4] and hold[2]
    and (count == 0 or hold[5] == args[5])
  -- The name that a rollback left behind, which says where the session is, may be taken anew.
  local is_left = has(head, 'm') and head.seq == 0 and hold[4] and not hold[2]
  if not is_ours and not is_left and (head.seq > 0 or head.flags ~= '-' or redis.call('EXISTS', of.hold) == 1) then
    return taken(head, of.hold)
  end
  local genesis = string.sub(redis.sha1hex(session), 1, DIGEST_LENGTH)
  local from = { seq = is_ours and whole(hold[2]) or 0, digest = is_ours and hold[3] or genesis, ms = 0 }
  if count > 0 and (from.seq ~= whole(args[7]) or from.digest ~= args[8]) then
    return { 'STANDS', integer(from.seq), from.digest }
  end
  local chain, broken = chained(args, 9, session, from)
  if not chain then
    return broken
  end
  problem = may_not({ { 'SET', of.head, '' }, { 'HSET', of.hold, 'moved_from', '' }, { 'HINCRBY', of.hold, 'moved_bytes', '1' },
    { 'HDEL', of.hold, 'moved_to' }, { 'XADD', of.arriving, '*', 'b', '' } })
  if problem then
    return problem
  end
  if redis.call('XRANGE', of.arriving, integer(from.seq + 1), '+', 'COUNT', 1)[1] then
    return { 'DAMAGED', 'LOG_AHEAD' }
  end
  add_copies(of.arriving, args, 9, from.seq)
  if not is_ours then
    redis.call('HDEL', of.hold, 'moved_to')
    redis.call('HSET', of.hold, 'moved_from', args[6], 'moved_task', args[4], 'moved_at', integer(server_ms()))
    head.seq, head.digest, head.gate, head.ms, head.flags = 0, genesis, 'o', 0, 'm'
    redis.call('SET', of.head, pack_head(head))
  end
  redis.call('HSET', of.hold, 'moved_seq', integer(chain.seq), 'moved_digest', chain.digest, 'moved_by', args[5])
  redis.call('HINCRBY', of.hold, 'moved_bytes', chain.bytes)
  return { 'STAGED', integer(chain.seq), chain.digest }
end

-- muster_open_1: makes the copy of a session, which is whole, the session: for appends, for workers, for everybody, in one step.
--   KEYS meta sessions feed log head hold arriving skips audit
--   ARGV store epoch session task by, then of the sealed session, as muster_seal_1 told: seq digest gate ms flags policy holder token
--        left_ms ttl counter; its skips (JSON, or ""); who
--   Reply {OPENED seq digest}, also if it was opened; {STANDS seq digest} if the copy is not whole; {TAKEN ...} if it is no copy
--         of this task
local function open(keys, args)
  local of, problem = keys_of_move(keys, args[3] or '',
    { 'sessions', 'feed', 'log', 'head', 'hold', 'arriving', 'skips', 'audit' })
  local seq, ms = whole(args[6]), whole(args[9])
  if not of or #args ~= 18 or not seq or seq < 1 or not ms or not GATE[args[8]] or not whole(args[14]) or not whole(args[15])
    or not whole(args[16]) then
    return problem or redis.error_reply('ARGUMENTS_INVALID it takes 9 keys and 18 arguments')
  end
  local meta, why = open_store(keys[1], args[1], args[2])
  if not meta then
    return why
  end
  local session, task = args[3], args[4]
  local head, unreadable = read_head(of.head)
  if unreadable or not head then
    return { 'DAMAGED', 'HEAD_MISSING' }
  end
  local hold = redis.call('HMGET', of.hold, 'moved_task', 'moved_seq', 'moved_digest', 'moved_bytes', 'opened_by', 'opened_digest',
    'moved_by')
  if not has(head, 'm') and hold[5] == task and hold[6] == args[7] then
    return { 'OPENED', args[6], args[7] }
  elseif not has(head, 'm') or hold[1] ~= task or not hold[2] or hold[7] ~= args[5]
    or redis.call('EXISTS', of.log) == 1 then
    return taken(head, of.hold)
  end
  local last = redis.call('XREVRANGE', of.arriving, '+', '-', 'COUNT', 1)[1]
  if hold[2] ~= args[6] or hold[3] ~= args[7] or not last or string.match(last[1], '^%d+') ~= args[6]
    or field(last, 'd') ~= args[7] or field(last, 't') ~= args[9] then
    return { 'STANDS', hold[2], hold[3] }
  end
  local skips = args[17] ~= '' and cjson.decode(args[17]) or {}
  local writes = {
    { 'RENAME', of.arriving, of.log }, { 'SET', of.head, '' }, { 'HSET', of.hold, 'policy', '' }, { 'HDEL', of.hold, 'moved_seq' },
    { 'ZADD', of.sessions, '0', '' }, { 'XADD', of.feed, '*', 't', '' }, { 'HSET', of.meta, 'total', '' },
    { 'XADD', of.audit, '*', 'who', '' },
  }
  if #skips > 0 then
    writes[#writes + 1] = { 'HSET', of.skips, '', '' }
  end
  problem = may_not(writes)
  if problem then
    return problem
  end
  -- All that can fail, before anything is written.
  redis.call('XLEN', of.feed)
  redis.call('ZCARD', of.sessions)
  redis.call('XLEN', of.audit)
  redis.call('HLEN', of.skips)

  redis.call('RENAME', of.arriving, of.log)
  local flags = string.gsub(args[10], '[^sl]', '')
  head.seq, head.digest, head.gate, head.ms, head.flags = seq, args[7], args[8], ms, flags ~= '' and flags or '-'
  redis.call('SET', of.head, pack_head(head))
  redis.call('HDEL', of.hold, 'moved_from', 'moved_task', 'moved_by', 'moved_at', 'moved_seq', 'moved_digest',
    'moved_bytes')
  redis.call('HSET', of.hold, 'policy', args[11], 'opened_by', task, 'opened_seq', args[6], 'opened_digest', args[7])
  if args[12] ~= '' then
    redis.call('HSET', of.hold, 'holder', args[12], 'deadline', integer(server_ms() + whole(args[14])), 'ttl', args[15],
      'counter', args[16])
    if args[13] ~= '' then
      redis.call('HSET', of.hold, 'token', args[13])
    end
  end
  if #skips > 0 then
    redis.call('HSET', of.skips, session, args[17])
    for _, skip in ipairs(skips) do
      redis.call('XADD', of.audit, '*', 'who', args[18], 'what', 'commit discarded', 'session', session, 'seq',
        integer(skip.from_seq), 'to_seq', integer(skip.to_seq), 'digest', skip.digest, 'why', 'discarded where it came from')
    end
  end
  redis.call('ZADD', of.sessions, 0, session)
  local at = math.max(written_at(meta, server_ms()), ms)
  feed(of.meta, of.feed, meta.total, seq, at, cmsgpack.pack({ { session, 1, seq, whole(hold[4]) or 0 } }))
  redis.call('XADD', of.audit, '*', 'who', args[18], 'what', 'session moved here', 'session', session, 'task', task, 'seq', args[6],
    'digest', args[7])
  return { 'OPENED', args[6], args[7] }
end

-- muster_bring_1: appends commits to a session that a task closed, as they were appended elsewhere; everybody sees them. A session
-- that is not here is made, where a place is given that it is kept equal with. It may be sent again.
--   KEYS meta sessions feed log head hold
--   ARGV store epoch session task place (or ""), seq and digest at which the session stands, gate after the commits, policy
--        (any, strict, leased; "" leaves it), then the commits as for muster_stage_1
--   Reply {BROUGHT seq digest}; {STANDS seq digest}; {CHAIN seq}; {TAKEN ...}; {ABSENT}; REFUSED or DAMAGED code ...
local function bring(keys, args)
  local of, problem = keys_of_move(keys, args[3] or '', { 'sessions', 'feed', 'log', 'head', 'hold' })
  local count = (#args - 9) / 5
  if not of or count < 0 or count ~= math.floor(count) or not whole(args[6]) or not GATE[args[8]]
    or not is_told(args[4]) or args[5] ~= '' and not is_told(args[5])
    or args[9] ~= '' and args[9] ~= 'any' and args[9] ~= 'strict' and args[9] ~= 'leased' then
    return problem or redis.error_reply('ARGUMENTS_INVALID it takes 6 keys, 9 arguments, and 5 for each commit')
  end
  local meta, why = open_store(keys[1], args[1], args[2])
  if not meta then
    return why
  end
  local session, is_new = args[3], false
  local head, unreadable = read_head(of.head)
  if unreadable then
    return { 'DAMAGED', 'HEAD_MISSING' }
  elseif not head and args[5] == '' then
    return { 'ABSENT' }
  elseif not head then
    head, why = new_head(session, meta, of.sessions)
    if not head then
      return why
    end
    is_new = true
  elseif has(head, 'q') then
    return quarantined(of.hold)
  end
  local hold = redis.call('HMGET', of.hold, 'moved_task', 'moved_seq', 'moved_to')
  if not is_new and head.seq == 0 and has(head, 'm') and hold[3] and not hold[2] and args[5] ~= '' then
    is_new = true -- the name that a rollback left behind
  elseif not is_new and head.seq == 0 and head.flags == '-' and args[5] ~= '' and redis.call('EXISTS', of.hold) == 0 then
    is_new = true -- one that nothing was ever appended to
  elseif not is_new and (not has(head, 'm') or hold[1] ~= args[4] or hold[2]) then
    return taken(head, of.hold)
  end
  if head.seq ~= whole(args[6]) or head.digest ~= args[7] then
    return { 'STANDS', integer(head.seq), head.digest }
  end
  local chain, broken = chained(args, 10, session, head)
  if not chain then
    return broken
  end
  problem = may_not({ { 'XADD', of.log, '*', 'b', '' }, { 'SET', of.head, '' }, { 'ZADD', of.sessions, '0', '' },
    { 'XADD', of.feed, '*', 't', '' }, { 'HSET', of.meta, 'total', '' }, { 'HSET', of.hold, 'moved_from', '' },
    { 'HDEL', of.hold, 'moved_to' } })
  if problem then
    return problem
  end
  -- All that can fail, before anything is written.
  if redis.call('XRANGE', of.log, integer(head.seq + 1), '+', 'COUNT', 1)[1] then
    return { 'DAMAGED', 'LOG_AHEAD' }
  end
  redis.call('XLEN', of.feed)
  redis.call('ZCARD', of.sessions)

  if is_new then
    redis.call('HDEL', of.hold, 'moved_to')
    redis.call('HSET', of.hold, 'moved_from', args[5], 'moved_task', args[4], 'moved_at', integer(server_ms()))
    with_flag(head, 'm', true)
  end
  if args[9] ~= '' then
    with_flag(head, 's', args[9] == 'strict')
    with_flag(head, 'l', args[9] == 'leased')
    redis.call('HSET', of.hold, 'policy', args[9])
  end
  local first, seq = head.seq + 1, head.seq
  add_copies(of.log, args, 10, seq)
  head.seq, head.digest, head.gate, head.ms = chain.seq, chain.digest, args[8], chain.ms
  with_flag(head, 'c', has(head, 'c') and chain.seq == seq)
  redis.call('SET', of.head, pack_head(head))
  if chain.seq > seq then
    redis.call('ZADD', of.sessions, 0, session)
    local at = math.max(written_at(meta, server_ms()), chain.ms)
    feed(of.meta, of.feed, meta.total, chain.seq - seq, at, cmsgpack.pack({ { session, first, chain.seq, chain.bytes } }))
  end
  return { 'BROUGHT', integer(chain.seq), chain.digest }
end

-- muster_yield_1: puts the log of a session aside that a task keeps equal with another place, and that went another way: it is to be
-- brought from there again, from its beginning. What derived from it is a recovery's.
--   KEYS meta sessions log head hold aside skips audit   ARGV store epoch session task seq digest who
--   Reply {YIELDED}; {STANDS seq digest}; {TAKEN ...} if it is none of this task's; {ABSENT}
local function yield(keys, args)
  local of, problem = keys_of_move(keys, args[3] or '', { 'sessions', 'log', 'head', 'hold', 'aside', 'skips', 'audit' })
  if not of or #args ~= 7 or not whole(args[5]) or not is_told(args[4]) then
    return problem or redis.error_reply('ARGUMENTS_INVALID it takes 8 keys and 7 arguments')
  end
  local meta, why = open_store(keys[1], args[1], args[2])
  if not meta then
    return why
  end
  local session = args[3]
  local head, unreadable = read_head(of.head)
  if unreadable then
    return { 'DAMAGED', 'HEAD_MISSING' }
  elseif not head then
    return { 'ABSENT' }
  end
  local hold = redis.call('HMGET', of.hold, 'moved_task', 'moved_from', 'moved_seq')
  if not has(head, 'm') or hold[1] ~= args[4] or not hold[2] or hold[3] then
    return taken(head, of.hold)
  elseif head.seq ~= whole(args[5]) or head.digest ~= args[6] or head.seq == 0 then
    return { 'STANDS', integer(head.seq), head.digest }
  end
  problem = may_not({ { 'RENAME', of.log, of.aside }, { 'SET', of.head, '' }, { 'ZREM', of.sessions, '' }, { 'HDEL', of.skips, '' },
    { 'XADD', of.audit, '*', 'who', '' } })
  if problem then
    return problem
  end
  -- All that can fail, before anything is written.
  redis.call('ZCARD', of.sessions)
  redis.call('HLEN', of.skips)
  redis.call('XLEN', of.audit)
  if redis.call('EXISTS', of.aside) == 1 or redis.call('EXISTS', of.log) == 0 or has(head, 'a') then
    return redis.error_reply('ARGUMENTS_INVALID there is no whole log, or one was put aside under this name before')
  end
  redis.call('RENAME', of.log, of.aside)
  redis.call('ZREM', of.sessions, session)
  redis.call('HDEL', of.skips, session)
  redis.call('XADD', of.audit, '*', 'who', args[7], 'what', 'log put aside for another', 'session', session, 'task', args[4], 'seq',
    args[5], 'digest', args[6], 'aside', of.aside)
  local begun = head_at(0, string.sub(redis.sha1hex(session), 1, DIGEST_LENGTH), 'o', 0, head.flags)
  redis.call('SET', of.head, pack_head(begun))
  return { 'YIELDED' }
end

-- muster_drop_1: takes away the copy of a session that a task made, and that stands where it was seen: one that was not opened; or
-- one that was, and is sealed again. What derived from it is a recovery's. With a place, its name says from then on that the
-- session is there.
--   KEYS meta sessions log head hold arriving skips audit   ARGV store epoch session task seq digest place who
--   Reply {DROPPED}, also if there is none; {STANDS seq digest}; {TAKEN ...} if it is none of this task's
local function drop(keys, args)
  local of, problem = keys_of_move(keys, args[3] or '', { 'sessions', 'log', 'head', 'hold', 'arriving', 'skips', 'audit' })
  if not of or #args ~= 8 or not whole(args[5]) or not is_told(args[4]) or args[7] ~= '' and not is_told(args[7]) then
    return problem or redis.error_reply('ARGUMENTS_INVALID it takes 8 keys and 8 arguments')
  end
  local meta, why = open_store(keys[1], args[1], args[2])
  if not meta then
    return why
  end
  local session, task = args[3], args[4]
  local head, unreadable = read_head(of.head)
  if unreadable then
    return { 'DAMAGED', 'HEAD_MISSING' }
  elseif not head then
    return { 'DROPPED' }
  end
  local hold = redis.call('HMGET', of.hold, 'moved_task', 'moved_seq', 'moved_digest', 'moved_to', 'opened_by')
  local is_left = head.seq == 0 and has(head, 'm') and hold[4] and not hold[2]
  if is_left and hold[1] == task or head.seq == 0 and head.flags == '-' then
    return { 'DROPPED' }
  end
  local is_staged = has(head, 'm') and hold[1] == task and hold[2]
  local is_back = has(head, 'm') and hold[1] == task and hold[5] == task and hold[4]
  if not is_staged and not is_back then
    return taken(head, of.hold)
  end
  local seq, digest = is_staged and hold[2] or integer(head.seq), is_staged and hold[3] or head.digest
  if seq ~= args[5] or digest ~= args[6] then
    return { 'STANDS', seq, digest }
  end
  problem = may_not({ { 'DEL', of.arriving }, { 'RENAME', of.log, of.arriving }, { 'SET', of.head, '' }, { 'HDEL', of.hold, '' },
    { 'HSET', of.hold, 'moved_to', '' }, { 'ZREM', of.sessions, '' }, { 'HDEL', of.skips, '' },
    { 'XADD', of.audit, '*', 'who', '' } })
  if problem then
    return problem
  end
  redis.call('ZCARD', of.sessions)
  redis.call('HLEN', of.skips)
  redis.call('XLEN', of.audit)
  if is_back then
    -- Nobody who moves sessions may delete a log: it is a copy again first, as it was before it was opened.
    if redis.call('EXISTS', of.log) == 1 then -- else it was archived as a whole
      redis.call('RENAME', of.log, of.arriving)
    end
    redis.call('ZREM', of.sessions, session)
    redis.call('HDEL', of.skips, session)
  end
  redis.call('DEL', of.arriving)
  redis.call('HDEL', of.hold, unpack(redis.call('HKEYS', of.hold)))
  local left = head_at(0, string.sub(redis.sha1hex(session), 1, DIGEST_LENGTH), 'o', 0, args[7] ~= '' and 'm' or '-')
  redis.call('SET', of.head, pack_head(left))
  if args[7] ~= '' then
    redis.call('HSET', of.hold, 'moved_to', args[7], 'moved_task', task, 'moved_at', integer(server_ms()))
  end
  redis.call('XADD', of.audit, '*', 'who', args[8], 'what', is_back and 'moved session taken back' or 'arriving session dropped',
    'session', session, 'task', task, 'seq', seq, 'digest', digest)
  return { 'DROPPED' }
end

redis.register_function { function_name = 'muster_seal_1', callback = seal, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_unseal_1', callback = unseal, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_stage_1', callback = stage }
redis.register_function { function_name = 'muster_open_1', callback = open }
redis.register_function { function_name = 'muster_bring_1', callback = bring }
redis.register_function { function_name = 'muster_yield_1', callback = yield }
redis.register_function { function_name = 'muster_drop_1', callback = drop, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_fork_1', callback = fork }
redis.register_function { function_name = 'muster_graft_1', callback = graft }
redis.register_function { function_name = 'muster_repair_1', callback = repair }
redis.register_function { function_name = 'muster_trim_1', callback = trim, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_append_1', callback = append }
redis.register_function { function_name = 'muster_copy_1', callback = copy }
redis.register_function { function_name = 'muster_beat_1', callback = beat }
redis.register_function { function_name = 'muster_gone_1', callback = gone }
redis.register_function { function_name = 'muster_state_1', callback = state }
redis.register_function { function_name = 'muster_init_1', callback = init }
redis.register_function { function_name = 'muster_touch_1', callback = touch }
redis.register_function { function_name = 'muster_press_1', callback = press, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_read_only_1', callback = read_only, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_report_1', callback = report, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_raise_1', callback = raise, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_lease_1', callback = lease }
redis.register_function { function_name = 'muster_policy_1', callback = policy }
redis.register_function { function_name = 'muster_live_1', callback = live, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_claim_1', callback = claim, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_try_1', callback = try }
redis.register_function { function_name = 'muster_renew_1', callback = renew, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_release_1', callback = release, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_step_1', callback = step, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_mend_head_1', callback = mend_head, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_quarantine_1', callback = quarantine, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_mend_total_1', callback = mend_total, flags = { 'allow-oom' } }
