#!lua name=muster_1
--
-- The functions that write. Each checks everything before it writes anything, because an error in the middle keeps what was
-- written before it. Their names end in the wire version; what a version means never changes.
--
-- Keys (all of one partition, so of one slot):
--   meta      hash    store, epoch, partition, partitions, total (running number of events), max_events, max_bytes
--   sessions  zset    every session, score 0
--   feed      stream  <total>-0: t server ms, c packed {{session, from, to, bytes}, ...}
--   log       stream  <last seq>-<n>: t server ms, d digest, b body, c traceparent (optional)
--   head      string  "<last seq> <digest> <gate> <server ms> <flags>", flags "-" or letters: q quarantined
--   hold      hash    what the flags point at: code, first_bad_seq
--   owner     hash    worker, token, deadline (server ms), counter
--   cursor    hash    position (feed total applied), events

local DIGEST_LENGTH = 20
local SEARCH_LIMIT = 256

-- The transition table of domain/session.py: gate -> kind -> gate after it; what is not listed is refused.
local GATE = {
  o = { s = 'o', l = 'o', k = 'o', b = 'o', ['.'] = 'o', c = 'c', x = 'e' },
  c = { s = 'o', l = 'c', k = 'c', ['.'] = 'c', x = 'e' },
  e = { s = 'o' },
}

local function integer(value)
  return string.format('%.0f', value)
end

local function server_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function read_head(key)
  local packed = redis.call('GET', key)
  if not packed then
    return nil
  end
  local seq, digest, gate, ms, flags = string.match(packed, '^(%d+) (%x+) (%a) (%d+) (%S+)$')
  if not seq then
    return nil, true
  end
  return { seq = tonumber(seq), digest = digest, gate = gate, ms = tonumber(ms), flags = flags,
    stored = tonumber(seq), pending = {} }
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

-- Looks for the commit in what came after the seq the producer last knew. Returns its receipt; or nil, and whether the
-- search would have to go further than the limit.
local function find_commit(log, known, body)
  local entries = redis.call('XRANGE', log, integer(known + 1), '+', 'COUNT', SEARCH_LIMIT + 1)
  if #entries > SEARCH_LIMIT then
    return nil, true
  end
  for _, entry in ipairs(entries) do
    local receipt = receipt_of(entry, body)
    if receipt then
      return receipt, false
    end
  end
  return nil, false
end

-- Decides on one commit, given the head as the commits before it in this call leave it: `stored` is the seq up to which the
-- log holds commits by now, `pending` the replies of those that come before this one, by body. Writes nothing.
-- Returns a reply, and the head after the commit if it is to be written, or whether it repeats one that is pending.
local function decide(commit, head, meta, now)
  local seq = head and head.seq or 0
  local count = #commit.kinds
  if count == 0 or count > meta.max_events or #commit.body > meta.max_bytes then
    return { 'REFUSED', 'COMMIT_TOO_LARGE', integer(count) .. ' events, ' .. integer(#commit.body) .. ' bytes' }
  end

  local expected = nil
  if commit.expected == 'new' then
    expected = 0
  elseif commit.expected ~= 'any' then
    expected = tonumber(commit.expected)
    if not expected or expected < 0 or expected ~= math.floor(expected) then
      return { 'REFUSED', 'EXPECTED_INVALID', commit.expected }
    end
  end

  if head then
    if expected and expected < head.stored then
      local id = integer(expected + count) .. '-' .. integer(count)
      local receipt = receipt_of(redis.call('XRANGE', commit.log, id, id)[1], commit.body)
      if receipt then
        return receipt
      end
    elseif not expected and commit.known and commit.known < head.stored then
      local receipt, further = find_commit(commit.log, commit.known, commit.body)
      if receipt then
        return receipt
      elseif further then
        return { 'SEARCH', integer(seq), head.digest }
      end
    end
    local earlier = head.pending[commit.body]
    local after = expected or commit.known
    if earlier and after and (tonumber(earlier[2]) == after + 1 or not expected and tonumber(earlier[2]) > after) then
      return { 'DUPLICATE', earlier[2], earlier[3], earlier[4], earlier[5] }, nil, true
    end
  end

  if commit.not_after and now > commit.not_after then
    return { 'REFUSED', 'TOO_LATE', integer(now) }
  end
  if head and string.find(head.flags, 'q', 1, true) then
    local hold = redis.call('HMGET', commit.hold, 'code', 'first_bad_seq')
    return { 'DAMAGED', 'QUARANTINED', tostring(hold[1]), tostring(hold[2]) }
  end
  if expected and expected ~= seq then
    return { 'CONFLICT', integer(seq), head and head.digest or '' }
  end
  if not head then
    if #commit.session > 200 or not string.find(commit.session, '^[%w._:@/+-]+$') then
      return { 'REFUSED', 'SESSION_INVALID', 'the id is no identifier' }
    end
    local partition = tonumber(string.sub(redis.sha1hex(commit.session), 1, 8), 16) % meta.partitions
    if partition ~= meta.partition then
      return { 'REFUSED', 'PARTITION_WRONG', integer(partition) }
    end
    if redis.call('ZSCORE', commit.sessions, commit.session) then
      return { 'DAMAGED', 'HEAD_MISSING' }
    end
    head = { seq = 0, digest = string.sub(redis.sha1hex(commit.session), 1, DIGEST_LENGTH), gate = 'o', ms = 0, flags = '-',
      stored = 0, pending = {} }
  end
  -- A log that is ahead of its head refuses the id of a single event, but a longer commit could end beyond it.
  if count > 1 and seq == head.stored and redis.call('XRANGE', commit.log, integer(seq + 1), '+', 'COUNT', 1)[1] then
    return { 'DAMAGED', 'LOG_AHEAD' }
  end

  local gate = head.gate
  for index = 1, count do
    gate = GATE[gate][string.sub(commit.kinds, index, index)]
    if not gate then
      return { 'REFUSED', 'GATE_REFUSED', integer(index), head.gate, integer(seq) }
    end
  end

  local ms = math.max(now, head.ms)
  local first, last = seq + 1, seq + count
  local chained = head.digest .. '|1|' .. commit.session .. '|' .. integer(first) .. '|' .. integer(count) .. '|'
    .. integer(ms) .. '|' .. commit.body
  local digest = string.sub(redis.sha1hex(chained), 1, DIGEST_LENGTH)
  local after = { seq = last, digest = digest, gate = gate, ms = ms, flags = head.flags,
    stored = head.stored, pending = head.pending }
  local reply = { 'APPENDED', integer(first), integer(last), digest, integer(ms) }
  head.pending[commit.body] = reply
  return reply, after
end

-- Adds one entry to the feed and moves the running total. A total that was rolled back behind the feed must not lose the
-- entry of commits that are written already: then the total is taken from the feed.
local function feed(meta, stream, total, count, now, packed)
  if type(redis.pcall('XADD', stream, integer(total + count) .. '-0', 't', integer(now), 'c', packed)) == 'table' then
    local info = redis.call('XINFO', 'STREAM', stream)
    for index = 1, #info, 2 do
      if info[index] == 'last-generated-id' then
        total = tonumber(string.match(info[index + 1], '^%d+'))
      end
    end
    redis.call('XADD', stream, integer(total + count) .. '-0', 't', integer(now), 'c', packed)
  end
  redis.call('HSET', meta, 'total', integer(total + count))
end

-- muster_append_1: appends commits, each on its own, in the order given.
--   KEYS  meta sessions feed, then log head hold for each commit
--   ARGV  store, epoch, then for each commit: session, expected ("any", "new" or a seq), known (the seq the producer last
--         knew, or ""), not_after (server ms, or ""), token (of a lease, or ""), kinds (a letter an event, see GATE), body,
--         traceparent (or "")
--   Reply one array a commit: APPENDED or DUPLICATE first last digest ms; CONFLICT seq digest; REFUSED code ...;
--         DAMAGED code ...; SEARCH seq digest
local function append(keys, args)
  local stored = redis.call('HMGET', keys[1], 'store', 'epoch', 'partition', 'partitions', 'total', 'max_events', 'max_bytes')
  if not stored[1] then
    return redis.error_reply('STORE_MISSING there is no store here')
  elseif stored[1] ~= args[1] then
    return redis.error_reply('STORE_CHANGED the store here is ' .. stored[1])
  elseif stored[2] ~= args[2] then
    return redis.error_reply('EPOCH_CHANGED the store is at epoch ' .. stored[2])
  end
  local meta = {
    partition = tonumber(stored[3]),
    partitions = tonumber(stored[4]),
    total = tonumber(stored[5]),
    max_events = tonumber(stored[6]),
    max_bytes = tonumber(stored[7]),
  }
  local now = server_ms()
  local replies, heads, accepted = {}, {}, {}

  for number = 1, (#args - 2) / 8 do
    local arg, key = 2 + (number - 1) * 8, 3 + (number - 1) * 3
    local commit = {
      number = number,
      log = keys[key + 1],
      head = keys[key + 2],
      hold = keys[key + 3],
      sessions = keys[2],
      session = args[arg + 1],
      expected = args[arg + 2],
      known = tonumber(args[arg + 3]),
      not_after = tonumber(args[arg + 4]),
      kinds = args[arg + 6],
      body = args[arg + 7],
      trace = args[arg + 8],
    }
    local head, unreadable = heads[commit.session], false
    if not head then
      head, unreadable = read_head(commit.head)
    end
    if unreadable then
      replies[number] = { 'DAMAGED', 'HEAD_MISSING' }
    else
      local reply, after, repeats = decide(commit, head, meta, now)
      replies[number] = reply
      if after then
        after.new = head == nil or head.new
        heads[commit.session] = after
      end
      if after or repeats then
        accepted[#accepted + 1] = { commit = commit, reply = reply, head = after }
      end
    end
  end

  local fed, failed, count = {}, {}, 0
  for _, item in ipairs(accepted) do
    local commit, reply = item.commit, item.reply
    local events = #commit.kinds
    local entry = { 'XADD', commit.log, reply[3] .. '-' .. integer(events), 't', reply[5], 'd', reply[4], 'b', commit.body }
    if commit.trace ~= '' then
      entry[#entry + 1] = 'c'
      entry[#entry + 1] = commit.trace
    end
    -- The one write that can fail: a log that is ahead of its head refuses the id. Nothing of this commit is written then.
    if failed[commit.session] or item.head and type(redis.pcall(unpack(entry))) == 'table' then
      failed[commit.session] = true
      replies[commit.number] = { 'DAMAGED', 'LOG_AHEAD' }
    elseif item.head then
      redis.call('SET', commit.head, pack_head(item.head))
      if item.head.new then
        redis.call('ZADD', commit.sessions, 0, commit.session)
      end
      count = count + events
      fed[#fed + 1] = { commit.session, tonumber(reply[2]), tonumber(reply[3]), #commit.body }
    end
  end
  if count > 0 then
    feed(keys[1], keys[3], meta.total, count, now, cmsgpack.pack(fed))
  end
  return replies
end

-- muster_init_1: makes a partition's store unless it has one. Reply: the store id that is there now.
--   KEYS meta   ARGV store epoch partition partitions wire max_events max_bytes
local function init(keys, args)
  local store = redis.call('HGET', keys[1], 'store')
  if store then
    return store
  end
  redis.call('HSET', keys[1], 'store', args[1], 'epoch', args[2], 'partition', args[3], 'partitions', args[4],
    'wire', args[5], 'max_events', args[6], 'max_bytes', args[7], 'total', '0')
  return args[1]
end

-- muster_claim_1: takes a partition's lease if it is free, past its deadline, already the caller's, or `force` is "1".
--   KEYS owner   ARGV worker nonce ttl_ms force
--   Reply the token, or {holder, ms until its deadline}
local function claim(keys, args)
  local now = server_ms()
  local holder = redis.call('HMGET', keys[1], 'worker', 'deadline')
  local left = (tonumber(holder[2]) or 0) - now
  if holder[1] and holder[1] ~= args[1] and left > 0 and args[4] ~= '1' then
    return { holder[1], left }
  end
  local token = integer(redis.call('HINCRBY', keys[1], 'counter', 1)) .. '-' .. args[2]
  redis.call('HSET', keys[1], 'worker', args[1], 'token', token, 'deadline', integer(now + tonumber(args[3])))
  return token
end

-- Whether the lease is held with this token; one that was given back is held with none.
local function holds(owner, token)
  return token ~= '' and redis.call('HGET', owner, 'token') == token
end

-- muster_renew_1: moves the deadline of a lease that nobody took. KEYS owner, ARGV token ttl_ms. Reply 1, or 0 if it is lost.
local function renew(keys, args)
  if not holds(keys[1], args[1]) then
    return 0
  end
  redis.call('HSET', keys[1], 'deadline', integer(server_ms() + tonumber(args[2])))
  return 1
end

-- muster_release_1: gives a lease back. KEYS owner, ARGV token. Reply 1, or 0 if it was not the caller's any more.
local function release(keys, args)
  if not holds(keys[1], args[1]) then
    return 0
  end
  redis.call('HDEL', keys[1], 'token')
  redis.call('HSET', keys[1], 'deadline', '0')
  return 1
end

-- The commands a projection's step may run, with the type of key each needs (any type where false).
local STEP = {
  SET = false, DEL = false, PEXPIRE = false,
  HSET = 'hash', HDEL = 'hash', ZADD = 'zset', ZREM = 'zset', XADD = 'stream',
}

-- Deletes a derived key that is of another type than it should be: it is damaged, and would fail the step half-way.
local function clear_unless(key, needs)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= needs then
    redis.call('DEL', key)
  end
end

-- muster_step_1: writes what a projection derived, and moves its cursor, in one step; or nothing.
--   KEYS owner cursor, then the keys the operations name
--   ARGV token, cursor from ("" for no cursor yet), cursor to ("" to leave it), events, then for each operation: command,
--        index of its key, number of arguments, arguments
--   Reply OK; LEASE_TAKEN; or {CURSOR_MOVED, position}
local function step(keys, args)
  if not holds(keys[1], args[1]) then
    return { 'LEASE_TAKEN' }
  end
  clear_unless(keys[2], 'hash')
  local position = string.match(redis.call('HGET', keys[2], 'position') or '', '^%d+$') or ''
  if position ~= args[2] then
    return { 'CURSOR_MOVED', position }
  end
  local operations, at = {}, 5
  while at <= #args do
    local command, key, count = args[at], keys[tonumber(args[at + 1])], tonumber(args[at + 2])
    if STEP[command] == nil or not key or at + 2 + count > #args then
      return redis.error_reply('ERR malformed step')
    end
    local operation = { command, key }
    for index = 1, count do
      operation[#operation + 1] = args[at + 2 + index]
    end
    operations[#operations + 1] = operation
    at = at + 3 + count
  end
  for _, operation in ipairs(operations) do
    local needs = STEP[operation[1]]
    if needs then
      clear_unless(operation[2], needs)
    end
    redis.call(unpack(operation))
  end
  if args[3] ~= '' then
    redis.call('HSET', keys[2], 'position', args[3])
    redis.call('HINCRBY', keys[2], 'events', args[4])
  end
  return { 'OK' }
end

-- muster_quarantine_1: closes a session for appends and notes why; the log stays as it is.
--   KEYS head hold   ARGV session code first_bad_seq
local function quarantine(keys, args)
  local head = read_head(keys[1])
    or { seq = 0, digest = string.sub(redis.sha1hex(args[1]), 1, DIGEST_LENGTH), gate = 'o', ms = 0, flags = '-' }
  if not string.find(head.flags, 'q', 1, true) then
    head.flags = head.flags == '-' and 'q' or head.flags .. 'q'
  end
  redis.call('HSET', keys[2], 'code', args[2], 'first_bad_seq', args[3])
  redis.call('SET', keys[1], pack_head(head))
  return 'OK'
end

-- muster_mend_head_1: puts a head in the place of a damaged one, unless the head or the log moved since they were read.
--   KEYS head log   ARGV head as it was read ("" for none), id of the log's last entry, new head
--   Reply 1, or 0 if something moved
local function mend_head(keys, args)
  local last = redis.call('XREVRANGE', keys[2], '+', '-', 'COUNT', 1)[1]
  if (redis.call('GET', keys[1]) or '') ~= args[1] or not last or last[1] ~= args[2] then
    return 0
  end
  redis.call('SET', keys[1], args[3])
  return 1
end

redis.register_function { function_name = 'muster_append_1', callback = append }
redis.register_function { function_name = 'muster_init_1', callback = init }
redis.register_function { function_name = 'muster_claim_1', callback = claim }
redis.register_function { function_name = 'muster_renew_1', callback = renew }
redis.register_function { function_name = 'muster_release_1', callback = release, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_step_1', callback = step }
redis.register_function { function_name = 'muster_mend_head_1', callback = mend_head, flags = { 'allow-oom' } }
redis.register_function { function_name = 'muster_quarantine_1', callback = quarantine, flags = { 'allow-oom' } }
