"""The functions, called with anything: they answer or refuse, and never write a part of what they were asked.

What comes back as an error left every key as it was. What was accepted is a log that reads and chains.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias, cast

import pytest
import redis

from domain import Append, Damaged, MusterError, Receipt, SessionLog
from domain.codec import chain, genesis
from domain.log.contract import Position
from domain.log.feed import parse_feed_entry
from domain.log.protocol import parse_entry
from domain.log.store import library_source
from projections.lease import Leases
from tests.chaos.effort import FULL, seeded
from tests.conftest import Servers, Store
from tests.domain.log.logs import assert_chained, note
from tests.foreign import any_body, damaged

CALLS: Final = 30_000 if FULL else 1000
Argument: TypeAlias = bytes | str | int
_JUNK: Final[list[Argument]] = [
    *(
        "",
        "-",
        "-1",
        "-3",
        "0",
        "1",
        "1.5",
        "1e3",
        "0x10",
        "nan",
        "inf",
        "-inf",
        " 1",
        "1 ",
        "any",
        "new",
        "leased",
        "q",
    ),
    *(2**53 + 1, 2**63, 2**64, 10**30, -(2**63), "9" * 400, "é", "a b", "%s%n", "\x00", b"\xff\xfe", b"\xc1" * 9),
    *(
        "*",
        "leased",
        "0-0",
        "5-1",
        "SET",
        "DEL",
        "KEYS",
        "x" * 300,
        "1 abc",
        "1 ABC xyz",
        "..",
        "bbbb",
        "xs",
        "." * 1001,
    ),
]


#: When commits were written that come from elsewhere: in the future, so that times grow.
_LATER_MS: Final = 5 * 10**12
#: The functions that producers call: they take the keys of the session that is named, and no others. The rest are for
#: workers and operators, whose keys are what they say.
_CHECKS_KEYS: Final = (
    *("muster_append_1", "muster_lease_1", "muster_policy_1", "muster_beat_1", "muster_gone_1", "muster_fork_1"),
    *("muster_state_1", "muster_trim_1", "muster_graft_1"),
    *("muster_state_1", "muster_seal_1", "muster_unseal_1", "muster_stage_1", "muster_open_1", "muster_bring_1"),
    *("muster_drop_1", "muster_yield_1"),
)


class Call(NamedTuple):
    """A call of a function: its name, its keys, its arguments."""

    function: str
    keys: list[str]
    arguments: list[Argument]


class Functions:
    """Good calls of every function on one partition, to be spoiled."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        self.store = store
        self.log = store.open()
        self.keys = store.keyspace.partitions[0]
        self._identity: list[Argument] = [self.log.identity.store, self.log.identity.epoch]
        self._chance = chance
        self._token = Leases(store.client, store.keyspace, "fuzz").claim(0, ttl_ms=10**9) or ""

    def good(self) -> Call:
        """A call that would be taken, or refused for a good reason."""
        name = self._chance.choice(list(self._calls()))
        return self._calls()[name]()

    def spoiled(self) -> Call:
        """A call with arguments or keys dropped, doubled, swapped, or replaced by junk."""
        function, keys, arguments = self.good()
        keys, arguments = list(keys), list(arguments)
        for _ in range(self._chance.choice((1, 1, 1, 2, 3))):
            if self._chance.random() > 0.25:
                self._spoil(arguments, _JUNK)
            elif function not in _CHECKS_KEYS:
                del keys[self._chance.randrange(len(keys) + 1) :]
            else:
                others = [*keys, self.keys.feed, self.keys.log("s1"), self.keys.meta, self.keys.head("s2")]
                self._spoil(cast("list[Argument]", keys), cast("list[Argument]", others))
        return Call(function, keys, arguments)

    def send(self, call: Call) -> Any:
        """The reply, or the error reply."""
        command = ["FCALL", call.function, len(call.keys), *call.keys, *call.arguments]
        try:
            return cast("Any", self.store.client).execute_command(*command)
        except redis.ResponseError as error:
            return error

    def snapshot(self) -> dict[bytes, bytes]:
        """Every key, but what a worker says of itself: that may vanish at any time."""
        ephemeral = self.store.keyspace.worker("w").encode()
        return {key: value for key, value in self.store.snapshot().items() if key != ephemeral}

    def _spoil(self, values: list[Argument], junk: list[Argument]) -> None:
        at = self._chance.randrange(len(values) + 1)
        match self._chance.randrange(6):
            case 0:
                del values[at:]
            case 1:
                del values[at : at + 1]
            case 2:
                values[at:at] = values[at : at + 3]
            case 3:
                values[at:at] = [self._chance.choice(junk)]
            case 4 if values[at:] and isinstance(values[at], bytes):
                values[at] = damaged(self._chance, cast("bytes", values[at]))
            case _:
                values[at : at + 1] = [self._chance.choice(junk)]

    def _calls(self) -> dict[str, Callable[[], Call]]:
        return {
            "muster_append_1": self._append,
            "muster_init_1": lambda: Call("muster_init_1", [self.keys.meta], ["store", 1, 0, 1, 1, 1000, 10**6]),
            "muster_lease_1": lambda: self._of_session("muster_lease_1", "agent", "nonce", 60_000),
            "muster_policy_1": lambda: self._of_session("muster_policy_1", self._any_of("any", "strict", "leased")),
            "muster_copy_1": self._copy,
            "muster_beat_1": self._beat,
            "muster_gone_1": self._gone,
            "muster_state_1": self._state,
            "muster_touch_1": lambda: Call("muster_touch_1", [self.keys.meta], self._identity[:1]),
            "muster_report_1": lambda: Call(
                "muster_report_1", [self.keys.meta, self.keys.lost], [self._identity[0], "s1", "witness", "{}"]
            ),
            "muster_read_only_1": lambda: Call(
                "muster_read_only_1",
                [self.keys.meta],
                [self._identity[0], 1, self._any_of('{"who":"a","why":"b"}', "")],
            ),
            "muster_raise_1": lambda: Call(
                "muster_raise_1", [self.keys.meta, self.keys.lost, self.keys.audit], [*self._identity, "operator"]
            ),
            "muster_mend_total_1": lambda: Call("muster_mend_total_1", [self.keys.meta, self.keys.feed], []),
            "muster_live_1": lambda: Call(
                "muster_live_1",
                [self.store.keyspace.workers, self.store.keyspace.worker("w")],
                ["w", 10**9, "pid", self._any_of(1, "x")],
            ),
            "muster_claim_1": lambda: Call("muster_claim_1", [self.keys.owner("p")], ["w", "n", 1000, "0"]),
            "muster_try_1": lambda: Call(
                "muster_try_1", [self._owner()], [self._token, "1 s1", self._any_of("2 s1", "")]
            ),
            "muster_renew_1": lambda: Call("muster_renew_1", [self._owner()], [self._token, 10**9]),
            "muster_release_1": lambda: Call("muster_release_1", [self.keys.owner("p")], ["1-n"]),
            "muster_step_1": self._step,
            "muster_mend_head_1": self._mend_head,
            "muster_quarantine_1": self._quarantine,
            "muster_repair_1": self._repair,
            "muster_fork_1": self._fork,
            "muster_trim_1": self._trim,
            "muster_press_1": lambda: Call(
                "muster_press_1", [self.keys.meta], [self._identity[0], self._any_of(0, 1, 50), self._any_of(1, "full")]
            ),
            "muster_graft_1": self._graft,
            "muster_seal_1": self._seal,
            "muster_unseal_1": self._unseal,
            "muster_stage_1": self._stage,
            "muster_open_1": self._open,
            "muster_bring_1": self._bring,
            "muster_drop_1": self._drop,
            "muster_yield_1": self._yield,
        }

    def _any_of(self, *values: Argument) -> Argument:
        return self._chance.choice(values)

    def _owner(self) -> str:
        return self.keys.owner("sessions")

    def _append(self) -> Call:
        names = [self.keys.meta, self.keys.sessions, self.keys.feed]
        arguments = list(self._identity)
        for _ in range(self._chance.choice((1, 1, 2, 4))):
            session = f"s{self._chance.randrange(4)}"
            names += [self.keys.log(session), self.keys.head(session), self.keys.hold(session)]
            head = self.log.head(session)
            seq, at = (head.seq, f"{head.seq} {head.digest}") if head else (0, "0")
            arguments += [session, self._any_of("any", "any", "new", seq, seq + 1), self._any_of("", 0, seq, at), ""]
            arguments += ["", "", self._any_of("", "e1 e2")]
            arguments += [self._any_of(".", "..", "b", "s"), any_body(self._chance), self._any_of("", "00-1-2-01")]
        return Call("muster_append_1", names, arguments)

    def _of_session(self, function: str, *more: Argument) -> Call:
        session = f"l{self._chance.randrange(3)}"
        names = [self.keys.meta, self.keys.sessions, self.keys.head(session), self.keys.hold(session)]
        return Call(function, names, [*self._identity, session, *more])

    def _copy(self) -> Call:
        # Into a store that is open it must not be taken, whatever it brings.
        names = [self.keys.meta, self.keys.sessions, self.keys.log("s1"), self.keys.head("s1")]
        arguments: list[Argument] = [self._identity[0], "s1", 0, genesis("s1"), "o", "-", 1, 1, "0" * 20, b"\x90", ""]
        return Call("muster_copy_1", names, arguments)

    def _beat(self) -> Call:
        session = f"s{self._chance.randrange(4)}"
        names = [self.keys.meta, self.keys.head(session), self.keys.beats]
        silent_ms = self._any_of(0, 1, 1, 60_000)
        return Call("muster_beat_1", names, [self._identity[0], session, f"a{self._chance.randrange(3)}", silent_ms])

    def _gone(self) -> Call:
        silent = cast("Any", self.store.client).zrange(self.keys.beats, 0, 0, withscores=True) or [(b"s1 a1", 1)]
        session, agent = silent[0][0].decode().split(" ")
        names = [self.keys.meta, self.keys.sessions, self.keys.feed, self.keys.log(session), self.keys.head(session)]
        names += [self.keys.hold(session), self.keys.beats]
        commit: list[Argument] = [session, "any", "", "", "", "", "", ".", any_body(self._chance), ""]
        return Call("muster_gone_1", names, [*self._identity, *commit, agent, int(silent[0][1])])

    def _state(self) -> Call:
        session = f"s{self._chance.randrange(4)}"
        names = [self.keys.meta, self.keys.sessions, self.keys.feed, self.keys.log(session), self.keys.head(session)]
        names += [self.keys.hold(session)]
        head = self.log.head(session)
        seq = head.seq if head else 0
        commit: list[Argument] = [session, self._any_of(seq, seq, seq + 1), "", "", "", "", "", self._any_of(".", "x")]
        return Call("muster_state_1", names, [*self._identity, *commit, any_body(self._chance), ""])

    def _step(self) -> Call:
        view, other = self.keys.session_view("s1"), self.keys.agents
        cursor = self.keys.cursor("sessions", 2)
        position = (cast("Any", self.store.client).hget(cursor, "position") or b"").decode()
        arguments: list[Argument] = [self._token, position, int(position or 0) + 1, 1]
        operations: list[list[Argument]] = [
            ["SET", 3, 1, b"view"],
            ["DEL", 3, 0],
            ["ZADD", 4, 4, 0, "a", 0, "b"],
            ["ZREM", 4, 1, "a"],
            ["HSET", 5, 2, "7", b"checkpoint"],
            ["HDEL", 5, 1, "7"],
            ["XADD", 6, 5, "*", "who", "fuzz", "why", "fuzz"],
        ]
        for operation in self._chance.sample(operations, self._chance.randrange(1, 5)):
            arguments += operation
        names = [self._owner(), cursor, view, other, self.keys.checkpoints("s1"), self.keys.audit]
        return Call("muster_step_1", names, arguments)

    def _mend_head(self) -> Call:
        # Of a head that is not the one read: it must not be taken, because what it would put there is any text.
        return Call("muster_mend_head_1", [self.keys.head("s1"), self.keys.log("s1")], ["no head", "1-1", "any text"])

    def _quarantine(self) -> Call:
        session = f"q{self._chance.randrange(3)}"
        names = [self.keys.head(session), self.keys.hold(session)]
        return Call("muster_quarantine_1", names, [session, "LOG_ALTERED", 1])

    def _repair(self) -> Call:
        session = f"q{self._chance.randrange(3)}"
        log, aside = self.keys.log(session), self.keys.damaged(self._chance.randrange(10**9), session)
        last = cast("Any", self.store.client).xrevrange(log, count=1)
        names = [self.keys.meta, self.keys.sessions, self.keys.feed, log, self.keys.head(session)]
        names += [self.keys.hold(session), self.keys.lost, self.keys.audit, aside]
        stands: list[Argument] = [last[0][0] if last else "", 0, genesis(session), "o"]
        return Call("muster_repair_1", names, [*self._identity, session, *stands, any_body(self._chance), "ann", "why"])

    def _trim(self) -> Call:
        # What is trimmed here is nowhere else, so it is one session alone.
        session, client = "s3", cast("Any", self.store.client)
        commits = client.xrange(self.keys.log(session), count=self._chance.choice((1, 1, 9999)))
        last, fields = commits[-1] if commits else (b"1-1", [b"t", b"1", b"d", b"0"])
        fields = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
        seq, horizon = int(last.partition(b"-")[0]), client.hget(self.keys.hold(session), "horizon") or b"0"
        names = [self.keys.meta, self.keys.head(session), self.keys.hold(session), self.keys.log(session)]
        names += [self.keys.checkpoints(session)]
        arguments = [*self._identity, session, horizon, seq, fields[b"d"], f"{int(horizon) + 1}-{seq}-{'0' * 64}"]
        return Call("muster_trim_1", names, arguments)

    def _fork(self) -> Call:
        session = f"f{self._chance.randrange(3)}"
        names = [self.keys.meta, self.keys.sessions, self.keys.feed, self.keys.log(session), self.keys.head(session)]
        names += [self.keys.hold(session), self.keys.audit, self.keys.skips, self.keys.session_index]
        head = self.log.head(session)
        seq, digest = (head.seq, head.digest) if head else (0, genesis(session))
        commits = self._chance.randrange(3)
        is_last = self._chance.random() < 0.2 or not commits
        arguments: list[Argument] = [
            *self._identity,
            session,
            "parent",
            seq + commits if is_last else 40,
            "digest",
            seq,
        ]
        arguments += [digest, "o", any_body(self._chance) if is_last else "", self._any_of("", "ann")]
        for _ in range(commits):
            arguments += [1, any_body(self._chance), self._any_of("", "00-1-2-01"), self._any_of("", "", "1")]
        return Call("muster_fork_1", names, arguments)

    def _graft(self) -> Call:
        session, client = f"g{self._chance.randrange(3)}", cast("Any", self.store.client)
        log, graft, aside = self.keys.log(session), self.keys.graft(session), self._chance.randrange(10**9)
        names = [self.keys.meta, self.keys.sessions, self.keys.feed, log, self.keys.head(session)]
        names += [self.keys.hold(session), self.keys.lost, self.keys.audit, self.keys.damaged(aside, session), graft]
        built = [parse_entry(session, entry) for entry in client.xrevrange(graft, count=1)]
        seq, digest = (built[0].last_seq, built[0].digest) if built else (0, genesis(session))
        stands: list[Argument] = [0, genesis(session), seq, digest]
        kept = [] if built else [parse_entry(session, entry) for entry in client.xrange(log)]
        commits: list[Argument] = []
        for body in [*(commit.body for commit in kept), any_body(self._chance), any_body(self._chance)]:
            at_ms = kept[seq].at_ms if seq < len(kept) else 1_700_000_000_000
            digest, seq = chain(digest, session, seq + 1, 1, at_ms, body), seq + 1
            commits += [1, at_ms, digest, body, self._any_of("", "00-1-2-01")]
        how = self._any_of(
            "", "over", "aside" if seq < 20 else "over"
        )  # what is put aside stays, and is looked at each time
        head, last = client.get(self.keys.head(session)), client.xrevrange(log, count=1)
        spans: list[Argument] = [1, seq, 10] if how else [0]
        about: list[Argument] = [how, head or "", last[0][0] if last else "", "o", 0, "ann", "why", *spans]
        return Call(
            "muster_graft_1", [*names, self.keys.session_index], [*self._identity, session, *stands, *about, *commits]
        )

    def _moved(self, function: str, session: str, kinds: str, *more: Argument) -> Call:
        names = [self.keys.meta]
        for kind in kinds.split():
            key: Any = getattr(self.keys, kind)
            names.append(key if isinstance(key, str) else key(session))
        return Call(function, names, [*self._identity, session, "task", *more])

    def _seal(self) -> Call:
        session = f"s{self._chance.randrange(4)}"
        return self._moved("muster_seal_1", session, "log head hold", "by", self._any_of("to", "from"), "a place")

    def _unseal(self) -> Call:
        return self._moved("muster_unseal_1", f"s{self._chance.randrange(4)}", "log head hold", "by")

    def _copied(self, session: str, seq: int, digest: str) -> list[Argument]:
        """Commits as they would follow there."""
        found: list[Argument] = []
        for _ in range(self._chance.randrange(1, 4)):
            body, at_ms = any_body(self._chance), _LATER_MS
            digest = chain(digest, session, seq + 1, 1, at_ms, body)
            seq += 1
            found += [1, at_ms, digest, body, self._any_of("", "00-1-2-01")]
        return found

    def _arriving(self, session: str) -> tuple[int, str]:
        client = cast("Any", self.store.client)
        seq, digest = client.hmget(self.keys.hold(session), "moved_seq", "moved_digest")
        return (int(seq), digest.decode()) if seq is not None else (0, genesis(session))

    def _stage(self) -> Call:
        session = f"x{self._chance.randrange(3)}"
        at = self._arriving(session)
        commits = self._copied(session, *at) if self._chance.random() < 0.7 else []
        return self._moved("muster_stage_1", session, "sessions head hold arriving", "by", "a place", *at, *commits)

    def _open(self) -> Call:
        session = f"x{self._chance.randrange(3)}"
        kinds = "sessions feed log head hold arriving skips audit"
        about: list[Argument] = [*self._arriving(session), "o", _LATER_MS, "-", "any", self._any_of("", "ann"), "1-t"]
        skips = self._any_of("", '[{"from_seq":1,"to_seq":1,"digest":"d","who":"w","why":"y","at":1}]')
        return self._moved("muster_open_1", session, kinds, "by", *about, 1000, 1000, 1, skips, "who")

    def _bring(self) -> Call:
        session = self._any_of("s1", "s2", "y1", "y2")
        head = self.log.head(str(session))
        seq, digest = (head.seq, head.digest) if head else (0, genesis(str(session)))
        commits = self._copied(str(session), seq, digest)
        kinds = "sessions feed log head hold"
        place = self._any_of("a place", "")
        return self._moved(
            "muster_bring_1", str(session), kinds, place, seq, digest, "o", self._any_of("", "strict"), *commits
        )

    def _drop(self) -> Call:
        session = f"x{self._chance.randrange(3)}"
        kinds = "sessions log head hold arriving skips audit"
        return self._moved("muster_drop_1", session, kinds, *self._arriving(session), self._any_of("", "there"), "who")

    def _yield(self) -> Call:
        session = f"y{self._chance.randrange(1, 3)}"
        head = self.log.head(session)
        seq, digest = (head.seq, head.digest) if head else (0, genesis(session))
        keys, aside = self.keys, self.keys.damaged(self._chance.randrange(10**9), session)
        names = [keys.meta, keys.sessions, keys.log(session), keys.head(session), keys.hold(session), aside]
        about = [*self._identity, session, "task", seq, digest, "who"]
        return Call("muster_yield_1", [*names, keys.skips, keys.audit], about)


@pytest.fixture(params=["valkey", "redis7"])
def functions(request: pytest.FixtureRequest, servers: Servers, make_store: Callable[..., Store]) -> Functions:
    return Functions(make_store(servers.url(request.param), partitions=1), seeded())


def test_every_function_is_fuzzed(functions: Functions) -> None:
    """A function that is added to the library is added here."""
    registered = {
        line.split("'")[1] for line in library_source().splitlines() if line.startswith("redis.register_func")
    }

    assert registered == set(functions._calls())


def test_a_call_with_any_arguments_is_taken_or_leaves_everything_as_it_was(functions: Functions) -> None:
    """Whatever the arguments and keys: the server lives, an error wrote nothing, and what is there reads and chains."""
    before = functions.snapshot()
    refused = taken = 0
    for number in range(CALLS):
        call = functions.good() if number % 4 == 0 else functions.spoiled()
        reply = functions.send(call)
        after = functions.snapshot()
        if isinstance(reply, redis.ResponseError):
            refused += 1
            assert after == before, f"{call} was refused with {reply}, and wrote"
        else:
            taken += after != before
        before = after

    print(f"{refused} calls refused, {taken} wrote")
    assert refused > CALLS / 10
    assert taken > CALLS / 20
    reads_and_chains(functions.store)


def reads_and_chains(store: Store) -> None:
    """Every session of the store can be read and verified, and appended to or refused with a typed error."""
    keys = store.keyspace.partitions[0]
    # A step writes what a worker says it derived, and so may make any of these a key of another type.
    store.client.delete(keys.session_view("s1"), keys.agents, keys.checkpoints("s1"), keys.audit)
    log = store.open()
    total = 0
    for session in log.sessions():
        head = log.head(session)
        assert head is not None
        # Of what was grafted the views may have known, so that nobody is told of it again.
        total += told_of(store, session) if session.startswith("g") else head.seq
        if not head.is_archived:
            assert_bodies_chain(session, list(log.read(session)), log)
        with suppress(MusterError):
            total += log.append(session, note()).appended
    names = store.keys()
    # What a repair gave up was appended once, too.
    for aside in (name for name in names if b":damaged:" in name and b":g" not in name):
        last: Any = store.client.xrevrange(aside.decode(), count=1)
        total += int(last[0][0].partition(b"-")[0])
    assert store.total() == total


def told_of(store: Store, session: str) -> int:
    """How many events of a session the feed tells of."""
    entries: Any = store.client.xrange(store.keyspace.partitions[0].feed)
    spans = [span for entry in entries for span in parse_feed_entry(entry).spans]
    return sum(span.to_seq - span.from_seq + 1 for span in spans if span.session == session)


def assert_bodies_chain(session: str, commits: list[Any], log: SessionLog) -> None:
    """As `assert_chained`, without decoding: the bodies are fuzz."""
    readable = [commit for commit in commits if _is_readable(commit)]
    if len(readable) == len(commits):
        assert_chained(session, commits, log.head(session))
    head = log.head(session)
    assert head is not None
    assert (head.seq, head.digest) == (commits[-1].last_seq, commits[-1].digest)


def _is_readable(commit: Any) -> bool:
    try:
        return len(commit.events) > 0
    except Damaged:
        return False


# -- damage ----------------------------------------------------------------------------------------------------------

#: What may become of a session's own keys: each fails the session's commits, with this code, and no others.
DAMAGE: Final[dict[str, tuple[str, Callable[[Store], object]]]] = {
    "a gate that is none": ("HEAD_MISSING", lambda store: _rewrite_head(store, 2, "z")),
    "a seq that no number holds": ("HEAD_MISSING", lambda store: _rewrite_head(store, 0, "9" * 30)),
    "a head of another type": ("KEY_DAMAGED", lambda store: _retype(store, store.keyspace.of("s").head("s"))),
    "a log of another type": ("KEY_DAMAGED", lambda store: _retype(store, store.keyspace.of("s").log("s"))),
    "a lease of another type": ("KEY_DAMAGED", lambda store: _lease_of_another_type(store)),
    "a quarantine without a reason": ("QUARANTINED", lambda store: _rewrite_head(store, 4, "q")),
}


def _rewrite_head(store: Store, field: int, value: str) -> None:
    key = store.keyspace.of("s").head("s")
    fields = cast("bytes", store.client.get(key)).decode().split()
    fields[field] = value
    store.client.set(key, " ".join(fields))


def _retype(store: Store, key: str) -> None:
    store.client.delete(key)
    store.client.sadd(key, "damage")


def _forget_damage(store: Store) -> None:
    """Keys of a type that is not theirs must not outlive a test."""
    for key in store.snapshot():
        if store.client.type(key) == b"set":
            store.client.delete(key)


def _lease_of_another_type(store: Store) -> None:
    _rewrite_head(store, 4, "l")
    _retype(store, store.keyspace.of("s").hold("s"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_one_session_fails_none_of_the_commits_beside_it(
    server_url: str, make_store: Callable[..., Store], damage: str
) -> None:
    """A session whose head, log or lease is damaged is the only one to hear of it, also in one call with others."""
    code, do = DAMAGE[damage]
    store = make_store(server_url, partitions=1)
    log = store.open()
    log.append("s", note("1"))
    do(store)
    commit = (note("2"), note("3"))

    answers = log.append_many([Append("t", commit), Append("s", commit), Append("u", commit)])

    try:
        assert [getattr(answer, "code", "appended") for answer in answers] == ["appended", code, "appended"]
        assert isinstance(answers[1], Damaged)
        assert isinstance(answers[2], Receipt)
        assert store.total() == 5
    finally:
        _forget_damage(store)


@pytest.mark.parametrize("shared", ["feed", "sessions"])
def test_a_damaged_feed_or_registry_takes_no_commit(
    server_url: str, make_store: Callable[..., Store], shared: str
) -> None:
    """What all sessions of a partition share is looked at before the first write, or a commit would be written half."""
    store = make_store(server_url, partitions=1)
    log = store.open()
    log.append("s", note("1"))
    log.set_policy("t", "any")  # a head without a commit: the session is registered with its first
    _retype(store, getattr(store.keyspace.partitions[0], shared))
    before = store.snapshot()

    (error,) = log.append_many([Append("t", (note("2"),))])

    assert isinstance(error, Damaged)
    assert store.snapshot() == before
    _forget_damage(store)


def test_a_total_that_is_none_is_taken_from_the_feed(server_url: str, make_store: Callable[..., Store]) -> None:
    """The running total may be lost: the next commit is written whole, and the feed says how many events there are."""
    store = make_store(server_url, partitions=1)
    log = store.open()
    log.append("s", (note("1"), note("2")))
    for damage in ("", "many", "9" * 30):
        store.client.hset(store.keyspace.partitions[0].meta, "total", damage)
        assert log.append("s", note()).appended == 1

    assert store.total() == 5


def test_a_commit_that_waits_for_a_search_is_not_taken_for_one_that_is_there(
    server_url: str, make_store: Callable[..., Store]
) -> None:
    """In one call: a commit is put off because one before it must be searched for; its repeat is put off as well."""
    store = make_store(server_url, partitions=1)
    log = store.open()
    log.append_many([Append("s", (note(),)) for _ in range(300)])
    old = Append("s", (note("old"),), known=Position(0))

    answers = log.append_many([Append("s", (note("new"),)), old, Append("s", (note("b"),)), Append("s", (note("b"),))])

    digests = {commit.last_seq: commit.digest for commit in log.read("s")}
    for answer in answers:
        assert isinstance(answer, Receipt)
        assert digests[answer.last_seq] == answer.digest
