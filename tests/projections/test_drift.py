"""The validator: each finding met for real, alone, and no finding where nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event as Flag
from threading import Thread
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from domain import Append, Receipt
from domain.codec import chain, encode_body
from domain.log.protocol import pack_head
from domain.log.skips import Skip
from domain.session import Session
from projections import agent_view, indexing, session_view
from projections.drift import Validator
from projections.findings import KINDS, Finding
from projections.scrub import Scrub
from projections.store import Parked, park
from tests.chaos.effort import FULL
from tests.domain.log.subscribing.deliveries import rest
from tests.projections.world import World, did, folded, foreign_append, lying_append, notes, only


@pytest.fixture
def built(world: World) -> World:
    """Some sessions, all projected; `s-1` also has a checkpoint at its seq 53 and 60 events in all."""
    names = world.sessions(12)
    world.log.append("s-1", notes(50))
    for _ in range(7):
        world.log.append("s-1", did("modified", "zoe"))
    assert "s-1" in names
    world.project()
    assert world.verify() == []
    return world


def entry(world: World, session: str, seq: int) -> tuple[bytes, dict[bytes, bytes]]:
    """The log entry that ends at a seq."""
    found: list[tuple[bytes, dict[bytes, bytes]]] = world.redis.xrange(
        world.keyspace.of(session).log(session), seq, seq
    )
    return found[0]


def rewrite(world: World, session: str, change: Callable[[bytes, dict[bytes, bytes]], dict[bytes, bytes]]) -> None:
    """Writes a session's log again, entry by entry, as `change` says; an entry without fields is left out."""
    log = world.keyspace.of(session).log(session)
    entries = world.redis.xrange(log)
    world.redis.delete(log)
    for entry_id, fields in entries:
        changed = change(entry_id, fields)
        if changed:
            world.redis.xadd(log, changed, id=entry_id)


# -- what is done to the store, and what must be found ---------------------------------------------------------------


def gap(world: World) -> None:
    world.redis.xdel(world.keyspace.of("s-1").log("s-1"), "55-1")


def trimmed(world: World) -> None:
    world.redis.xtrim(world.keyspace.of("s-1").log("s-1"), maxlen=5, approximate=False)


def tail_lost(world: World) -> None:
    world.redis.xdel(world.keyspace.of("s-1").log("s-1"), "59-1", "60-1")


def all_lost(world: World) -> None:
    world.redis.delete(world.keyspace.of("s-1").log("s-1"))


def altered(world: World) -> None:
    def change(entry_id: bytes, fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return {**fields, b"b": fields[b"b"].replace(b"zoe", b"eve")} if entry_id == b"55-1" else fields

    rewrite(world, "s-1", change)


def no_commit_at_all(world: World) -> None:
    def change(entry_id: bytes, fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return {b"x": b"y"} if entry_id == b"55-1" else fields

    rewrite(world, "s-1", change)


def written_by_hand(world: World) -> None:
    world.redis.xadd(
        world.keyspace.of("s-1").log("s-1"), {"t": "1", "d": "00", "b": encode_body([did("start")])}, id="61-1"
    )


def skip_forged(world: World) -> None:
    commit = next(world.log.read("s-1", after=54))
    skip = Skip(commit.first_seq, commit.last_seq, commit.digest, "nobody", "none", 1)
    world.redis.hset(world.keyspace.of("s-1").skips, "s-1", msgspec.json.encode([skip]))


def skips_garbled(world: World) -> None:
    world.redis.hset(world.keyspace.of("s-1").skips, "s-1", b"[{")


def illegal(world: World) -> None:
    world.log.append("s-1", did("completed"))
    lying_append(world.store, "s-1", did("modified"), ".")
    world.project()


def unreadable(world: World) -> None:
    foreign_append(world.store, "s-1", ".", b"\xc1")
    world.project()


def newer(world: World) -> None:
    foreign_append(world.store, "s-1", "b", msgspec.msgpack.encode([["modified", "1", "ann", None, {}, 2]]))
    world.project()


def quarantined(world: World) -> None:
    world.projections.quarantine("s-1", "LOG_GAP", 55)


def head_missing(world: World) -> None:
    world.redis.delete(world.keyspace.of("s-1").head("s-1"))


def head_garbage(world: World) -> None:
    world.redis.set(world.keyspace.of("s-1").head("s-1"), "garbage")


def head_behind(world: World) -> None:
    view = folded(world.log, "s-1", 59)
    world.redis.set(world.keyspace.of("s-1").head("s-1"), f"59 {view.digest} o {view.last_at} -")


def head_of_another_gate(world: World) -> None:
    head = world.log.head("s-1")
    assert head is not None
    closed = type(head)(head.seq, head.digest, "c", head.at_ms, head.flags)
    world.redis.set(world.keyspace.of("s-1").head("s-1"), pack_head(closed))


def view_missing(world: World) -> None:
    world.redis.delete(world.keyspace.of("s-1").session_view("s-1"))


def view_flipped(world: World) -> None:
    key = world.keyspace.of("s-1").session_view("s-1")
    world.redis.setrange(key, 30, "\x00")


def set_view(world: World, view: Session) -> None:
    world.redis.set(world.keyspace.of("s-1").session_view("s-1"), session_view.encode(view))


def view_differs(world: World) -> None:
    view = folded(world.log, "s-1")
    view.state = "broken"
    set_view(world, view)


def view_of_another_session(world: World) -> None:
    set_view(world, folded(world.log, "s-2"))


def view_behind(world: World) -> None:
    set_view(world, folded(world.log, "s-1", 58))


def view_ahead(world: World) -> None:
    for _ in range(2):
        world.log.append("s-1", did("modified", "zoe"))
    set_view(world, folded(world.log, "s-1"))


def parked_behind(world: World) -> None:
    world.redis.hset(world.keyspace.of("s-1").parked("sessions"), "s-1", park_reason(world))
    world.log.append("s-1", did("modified", "zoe"))
    world.project()


def parked_for_nothing(world: World) -> None:
    world.redis.hset(world.keyspace.of("s-1").parked("sessions"), "s-1", park_reason(world))


def parked_unreadably(world: World) -> None:
    world.redis.hset(world.keyspace.of("s-1").parked("sessions"), "s-1", b"{\xff")


def park_reason(world: World) -> Any:
    keys = world.keyspace.of("s-1")
    return park(keys, "s-1", Parked("LOG_GAP", "it was one", 61)).arguments[1]


def killed(world: World) -> None:
    reason = Parked("WORKER_KILLED", "three workers died", 61, attempts=3)
    world.redis.hset(
        world.keyspace.of("s-1").parked("sessions"), *park(world.keyspace.of("s-1"), "s-1", reason).arguments
    )
    world.log.append("s-1", did("modified", "zoe"))
    world.project()


def checkpoint_missing(world: World) -> None:
    world.redis.hdel(world.keyspace.of("s-1").checkpoints("s-1"), "53")


def checkpoint_differs(world: World) -> None:
    view = folded(world.log, "s-1", 53)
    view.entities = {"not/in/the/log"}
    world.redis.hset(world.keyspace.of("s-1").checkpoints("s-1"), "53", session_view.encode(view))


def checkpoint_flipped(world: World) -> None:
    world.redis.hset(world.keyspace.of("s-1").checkpoints("s-1"), "53", b"garbage")


def checkpoint_unexpected(world: World) -> None:
    view = session_view.encode(folded(world.log, "s-1", 57))
    world.redis.hset(world.keyspace.of("s-1").checkpoints("s-1"), "57", view)


def agent_missing(world: World) -> None:
    world.redis.delete(world.keyspace.of("s-1").agent_view("zoe"))


def agent_differs(world: World) -> None:
    keys = world.keyspace.of("s-1")
    totals = agent_view.decode("zoe", world.redis.get(keys.agent_view("zoe")))
    world.redis.set(keys.agent_view("zoe"), agent_view.encode("zoe", totals + totals))


def agent_flipped(world: World) -> None:
    world.redis.set(world.keyspace.of("s-1").agent_view("zoe"), b"garbage")


def agent_unexpected(world: World) -> None:
    keys = world.keyspace.of("s-1")
    totals = agent_view.decode("zoe", world.redis.get(keys.agent_view("zoe")))
    world.redis.set(keys.agent_view("nobody"), agent_view.encode("nobody", totals))
    world.redis.zadd(keys.agents, {"nobody": 0})


def index_lacks(world: World) -> None:
    world.redis.zrem(world.keyspace.of("s-1").agents, "zoe")


def index_lists(world: World) -> None:
    world.redis.zadd(world.keyspace.of("s-1").agents, {"nobody": 0})


def session_index_lacks(world: World) -> None:
    world.redis.zrem(world.keyspace.of("s-1").session_index, "agent\0zoe\0s-1")


def session_index_holds(world: World) -> None:
    world.redis.zadd(world.keyspace.of("s-1").session_index, {"state\0broken\0s-1": 0, "tag\0of nobody\0s-1": 0})


def session_index_holds_a_ghost(world: World) -> None:
    keys = world.keyspace.of("s-1")
    world.redis.zadd(keys.session_index, {f"state\0working\0{GHOST}": 0})
    world.redis.zadd(keys.last_index, {GHOST: 5})


def session_index_gone(world: World) -> None:
    world.redis.delete(world.keyspace.of("s-1").session_index)


def time_index_gone(world: World) -> None:
    world.redis.delete(world.keyspace.of("s-1").started_index)


def time_index_lacks(world: World) -> None:
    world.redis.zrem(world.keyspace.of("s-1").started_index, "s-1")


def time_index_differs(world: World) -> None:
    world.redis.zadd(world.keyspace.of("s-1").last_index, {"s-1": 5})


def perf_index_holds(world: World) -> None:
    world.redis.zadd(world.keyspace.of("s-1").perf_index, {"s-1": 5})


def index_says_quarantined(world: World) -> None:
    world.redis.zadd(world.keyspace.of("s-1").session_index, {"quarantined\0\0s-1": 0})


def statistics_differ(world: World) -> None:
    keys = world.keyspace.of("s-1")
    kept = indexing.readable_statistics(world.redis.get(keys.statistics))
    assert kept is not None
    world.redis.set(keys.statistics, indexing.encode_statistics({**kept, "breaks": 77}))


def statistics_flipped(world: World) -> None:
    world.redis.set(world.keyspace.of("s-1").statistics, b"garbage")


def statistics_gone(world: World) -> None:
    world.redis.delete(world.keyspace.of("s-1").statistics)


def cursor_missing(world: World) -> None:
    world.redis.delete(world.keyspace.of("s-1").cursor("sessions", 2))


def cursor_ahead(world: World) -> None:
    world.redis.hset(world.keyspace.of("s-1").cursor("sessions", 2), "position", 10**6)


def cursor_behind(world: World) -> None:
    feed = world.redis.xrevrange(world.keyspace.of("s-1").feed, count=3)
    world.redis.hset(world.keyspace.of("s-1").cursor("sessions", 2), "position", feed[-1][0].partition(b"-")[0])


def feed_cut(world: World) -> None:
    world.log.append("s-1", did("modified", "zoe"))
    feed = world.keyspace.of("s-1").feed
    world.redis.xdel(feed, world.redis.xrevrange(feed, count=1)[0][0])


def feed_gone(world: World) -> None:
    world.redis.delete(world.keyspace.of("s-1").feed)


def feed_gap(world: World) -> None:
    first = world.projections.total(world.keyspace.partition_of("s-1")) + 1
    for _ in range(3):
        world.log.append("s-1", did("modified", "zoe"))
    world.redis.xdel(world.keyspace.of("s-1").feed, f"{first + 1}-0")


def total_rolled_back(world: World) -> None:
    world.redis.hset(world.keyspace.of("s-1").meta, "total", 5)


def view_of_a_fork(world: World) -> None:
    view = folded(world.log, "s-1")
    view.digest = "0" * 20
    set_view(world, view)


def view_of_a_lost_tail(world: World) -> None:
    view = folded(world.log, "s-1")
    view.seq, view.digest = 64, "0" * 20
    view.event_types = {**view.event_types, "note.lost": 4}
    set_view(world, view)


def view_of_no_history(world: World) -> None:
    view = folded(world.log, "s-1")
    view.digest = "0" * 20
    view.event_types = {**view.event_types, "note.invented": 1}
    set_view(world, view)


def checkpoint_of_a_fork(world: World) -> None:
    view = folded(world.log, "s-1", 53)
    view.digest = "0" * 20
    world.redis.hset(world.keyspace.of("s-1").checkpoints("s-1"), "53", session_view.encode(view))


def unlisted(world: World) -> None:
    world.redis.zrem(world.keyspace.of("s-1").sessions, "s-1")


def unlisted_and_without_a_log(world: World) -> None:
    unlisted(world)
    world.redis.delete(world.keyspace.of("s-1").log("s-1"))


def only_a_view_is_left(world: World) -> None:
    unlisted_and_without_a_log(world)
    keys = world.keyspace.of("s-1")
    world.redis.delete(keys.head("s-1"), keys.checkpoints("s-1"))


#: A session that never was, in the partition of `s-1`.
GHOST: Final = "ghost-0"


def orphan(world: World) -> None:
    keys = world.keyspace.of("s-1")
    world.redis.set(keys.session_view(GHOST), b"of nobody")


def orphaned_checkpoints(world: World) -> None:
    world.redis.hset(world.keyspace.of("s-1").checkpoints(GHOST), "50", b"of nothing")


def agent_of_no_index(world: World) -> None:
    agent_unexpected(world)
    world.redis.zrem(world.keyspace.of("s-1").agents, "nobody")


def subscribed(world: World) -> str:
    """A durable subscription that acknowledged everything; the key of its place in the partition of s-1."""
    with world.log.subscribe_as("audit", after="beginning") as member:
        rest(member)
        member.ack()
    return world.keyspace.of("s-1").place("audit")


def place_unreadable(world: World) -> None:
    world.redis.set(subscribed(world), b"nonsense")


def place_gone(world: World) -> None:
    world.redis.delete(subscribed(world))


def acknowledged_and_lost(world: World) -> None:
    """What the subscription was given last is another commit now, and nobody else knows."""
    key = subscribed(world)
    place = msgspec.msgpack.decode(world.redis.get(key))
    place[4][-1][2] = "0" * 20
    world.redis.set(key, msgspec.msgpack.encode(place))


class Case(NamedTuple):
    """What is done to the store, and the one finding it makes: code, first bad seq, session, agent."""

    damage: Callable[[World], None]
    code: str
    first_bad_seq: int | None = None
    session: str | None = None
    agent: str | None = None


CASES: Final = (
    Case(gap, "LOG_GAP", 55, "s-1"),
    Case(trimmed, "LOG_TRIMMED", 1, "s-1"),
    Case(tail_lost, "TAIL_LOST", 59, "s-1"),
    Case(all_lost, "TAIL_LOST", 1, "s-1"),
    Case(altered, "LOG_ALTERED", 55, "s-1"),
    Case(no_commit_at_all, "LOG_ALTERED", 55, "s-1"),
    Case(written_by_hand, "LOG_ALTERED", 61, "s-1"),
    Case(skip_forged, "SKIP_FORGED", 55, "s-1"),
    Case(skips_garbled, "SKIP_FORGED", None, "s-1"),
    Case(illegal, "EVENT_ILLEGAL", 62, "s-1"),
    Case(unreadable, "EVENT_UNREADABLE", 61, "s-1"),
    Case(newer, "EVENT_NEWER", 61, "s-1"),
    Case(killed, "WORKER_KILLED", 61, "s-1"),
    Case(quarantined, "QUARANTINED", None, "s-1"),
    Case(head_missing, "HEAD_MISSING", 60, "s-1"),
    Case(head_garbage, "HEAD_DIFFERS", 60, "s-1"),
    Case(head_behind, "HEAD_DIFFERS", 60, "s-1"),
    Case(head_of_another_gate, "HEAD_DIFFERS", 60, "s-1"),
    Case(view_missing, "VIEW_MISSING", 60, "s-1"),
    Case(view_flipped, "VIEW_UNREADABLE", 60, "s-1"),
    Case(view_differs, "VIEW_DIFFERS", 60, "s-1"),
    Case(view_of_another_session, "VIEW_DIFFERS", 60, "s-1"),
    Case(view_behind, "VIEW_BEHIND", 60, "s-1"),
    Case(view_ahead, "VIEW_AHEAD", 60, "s-1"),
    Case(view_of_no_history, "VIEW_DIFFERS", 60, "s-1"),
    Case(view_of_a_fork, "FORK", 60, "s-1"),
    Case(view_of_a_lost_tail, "TAIL_LOST", 61, "s-1"),
    Case(checkpoint_of_a_fork, "FORK", 53, "s-1"),
    Case(parked_behind, "SESSION_PARKED", 61, "s-1"),
    Case(parked_for_nothing, "SESSION_PARKED", 61, "s-1"),
    Case(parked_unreadably, "SESSION_PARKED", None, "s-1"),
    Case(checkpoint_missing, "CHECKPOINT_MISSING", 53, "s-1"),
    Case(checkpoint_differs, "CHECKPOINT_DIFFERS", 53, "s-1"),
    Case(checkpoint_flipped, "CHECKPOINT_DIFFERS", 53, "s-1"),
    Case(checkpoint_unexpected, "CHECKPOINT_UNEXPECTED", 57, "s-1"),
    Case(agent_missing, "AGENT_MISSING", agent="zoe"),
    Case(agent_differs, "AGENT_DIFFERS", agent="zoe"),
    Case(agent_flipped, "AGENT_DIFFERS", agent="zoe"),
    Case(agent_unexpected, "AGENT_UNEXPECTED", agent="nobody"),
    Case(index_lacks, "INDEX_DIFFERS", agent="zoe"),
    Case(index_lists, "INDEX_DIFFERS", agent="nobody"),
    Case(session_index_lacks, "INDEX_DIFFERS", None, "s-1"),
    Case(session_index_holds, "INDEX_DIFFERS", None, "s-1"),
    Case(session_index_holds_a_ghost, "INDEX_DIFFERS", None, GHOST),
    Case(session_index_gone, "INDEX_DIFFERS", None, None),
    Case(time_index_gone, "INDEX_DIFFERS", None, None),
    Case(time_index_lacks, "INDEX_DIFFERS", None, "s-1"),
    Case(time_index_differs, "INDEX_DIFFERS", None, "s-1"),
    Case(perf_index_holds, "INDEX_DIFFERS", None, "s-1"),
    Case(index_says_quarantined, "INDEX_DIFFERS", None, "s-1"),
    Case(statistics_differ, "STATISTICS_DIFFER", None, None),
    Case(statistics_flipped, "STATISTICS_DIFFER", None, None),
    Case(statistics_gone, "STATISTICS_DIFFER", None, None),
    Case(cursor_missing, "CURSOR_MISSING"),
    Case(cursor_ahead, "CURSOR_AHEAD"),
    Case(cursor_behind, "CURSOR_BEHIND"),
    Case(feed_cut, "FEED_DIFFERS"),
    Case(feed_gone, "FEED_DIFFERS"),
    Case(feed_gap, "FEED_DIFFERS"),
    Case(total_rolled_back, "FEED_DIFFERS"),
    Case(unlisted, "REGISTRY_DIFFERS", None, "s-1"),
    Case(unlisted_and_without_a_log, "TAIL_LOST", 1, "s-1"),
    Case(only_a_view_is_left, "TAIL_LOST", 1, "s-1"),
    Case(place_unreadable, "SUBSCRIPTION_DAMAGED"),
    Case(place_gone, "SUBSCRIPTION_DAMAGED"),
    Case(acknowledged_and_lost, "SUBSCRIPTION_LOST"),
    Case(orphan, "ORPHAN", None, GHOST),
    Case(orphaned_checkpoints, "ORPHAN", None, GHOST),
    Case(agent_of_no_index, "AGENT_UNEXPECTED", agent="nobody"),
)


def test_every_code_has_a_case() -> None:
    """No code of a finding is there for nothing."""
    # The one that no damage causes but a bug: tests/projections/test_seeded_bugs.py.
    archived = {code for code, kind in KINDS.items() if kind.kind == "archive"}  # tests/workers/archiving
    assert {case.code for case in CASES} == set(KINDS) - {"FOLD_DIFFERS"} - archived


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.damage.__name__)
def test_each_damage_is_one_finding(built: World, case: Case) -> None:
    """What was done is found, as what it is and where it begins, and nothing else is reported."""
    case.damage(built)

    found = only(built.verify(), case.code)

    kind = KINDS[case.code]
    assert (found.schema, found.kind, found.severity, found.remedy) == ("muster.finding/1", *kind)
    assert (found.session, found.agent, found.first_bad_seq) == (case.session, case.agent, case.first_bad_seq)
    assert found.partition == built.keyspace.partition_of("s-1")
    assert found.quarantined == (case.code == "QUARANTINED")
    named = "subscription:audit" if case.code.startswith("SUBSCRIPTION") else "sessions"
    assert found.projection == (named if kind.kind in ("view", "checkpoint", "agent", "index", "cursor") else None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.damage.__name__)
def test_finding_damage_changes_nothing(built: World, case: Case) -> None:
    """The validator only reads: every key is as it was, and the next verification finds the same."""
    case.damage(built)
    before = built.store.snapshot()

    first, second = built.verify(), built.verify()

    assert first == second
    assert built.store.snapshot() == before


#: Entries that no session gives are looked for in the whole index alone.
OF_THE_WHOLE: Final = (session_index_holds,)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.session == "s-1" and case.damage not in OF_THE_WHOLE],
    ids=lambda case: case.damage.__name__,
)
def test_one_session_can_be_verified_alone(built: World, case: Case) -> None:
    """Verifying the damaged session finds the same as verifying everything; another session is clean."""
    case.damage(built)
    validator = Validator(built.projections, built.log)

    assert list(validator.session("s-1")) == built.verify()
    assert list(validator.session("s-2")) == []


def test_a_finding_says_what_differs(built: World) -> None:
    """`stored` and `rebuilt` hold the fields that differ, and no others."""
    view_differs(built)
    (found,) = built.verify()
    assert (found.stored, found.rebuilt) == ({"state": "broken"}, {"state": "working"})

    agent_differs(built)
    found = next(finding for finding in built.verify() if finding.kind == "agent")
    assert (found.stored, found.rebuilt) == (
        {"events": 14, "sessions": 2, "present": 2},
        {"events": 7, "sessions": 1, "present": 1},
    )


def test_damage_of_several_kinds_is_several_findings(built: World) -> None:
    """Causes that have nothing to do with each other do not hide each other."""
    gap(built)
    view = folded(built.log, "s-2")
    view.state = "broken"
    built.redis.set(built.keyspace.of("s-2").session_view("s-2"), session_view.encode(view))
    head_key = built.keyspace.of("s-3").head("s-3")
    built.redis.delete(head_key)

    assert built.codes() == ["HEAD_MISSING", "LOG_GAP", "VIEW_DIFFERS"]


def test_a_whole_log_written_anew_is_noticed_at_its_head(built: World) -> None:
    """A log that was forged from the beginning, with digests that fit, does not fit its head."""
    digest = session_view.initial("s-2").digest

    def forge(entry_id: bytes, fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
        nonlocal digest
        seq = int(entry_id.partition(b"-")[0])
        body = encode_body([did("modified", "mallory", id=f"forged-{seq}")])
        digest = chain(digest, "s-2", seq, 1, int(fields[b"t"]), body)
        return {**fields, b"b": body, b"d": digest.encode()}

    rewrite(built, "s-2", forge)

    assert "HEAD_DIFFERS" in built.codes()


def test_what_is_not_applied_yet_is_no_drift(built: World) -> None:
    """While projections lag, views are held to where their cursor says they stand, and agents' totals too."""
    for number in range(5):
        for name in ("s-1", "s-2", f"new-{number}"):
            built.log.append(name, [did("broke", "ann"), did("left", "bob")])
        assert built.verify() == []

    built.project()

    assert built.verify() == []


def test_before_the_first_worker_nothing_is_wrong(world: World) -> None:
    """A store whose events nobody applied yet, because nobody ever held its partitions, is clean."""
    world.sessions(12)

    assert world.verify() == []


def test_a_partition_that_is_being_built_is_no_drift(world: World) -> None:
    """While a worker builds a partition for the first time, views without a cursor are under way, not lost."""
    world.sessions(12)
    world.project()
    for keys in world.keyspace.partitions:
        world.redis.delete(keys.cursor("sessions", 2))
    tokens = [world.leases.claim(partition, ttl_ms=60_000) for partition in range(world.keyspace.count)]
    assert None not in tokens

    assert world.verify() == []


def test_a_verification_says_what_it_read(built: World) -> None:
    """Partitions, sessions and events are counted as they are read."""
    validator = Validator(built.projections, built.log)

    assert list(validator.everything()) == []

    read = validator.read
    assert (read.partitions, read.sessions, read.events) == (4, 12, 12 * 3 + 57)


def test_traffic_makes_no_findings(world: World) -> None:
    """While appends and projections go on, verification finds nothing, however often it looks; nor does scrubbing."""
    world.sessions(60)
    world.project()
    stop = Flag()
    errors: list[BaseException] = []
    log = world.store.open()

    def produce() -> None:
        try:
            number = 0
            while not stop.is_set():
                number += 1
                appends = [
                    Append(
                        f"s-{(number * 7 + n) % 60}", (did("broke", f"a-{number % 9}"), did("left", "ann"), *notes(3))
                    )
                    for n in range(10)
                ]
                assert all(isinstance(receipt, Receipt) for receipt in log.append_many(appends))
                stop.wait(0.05)
        except BaseException as error:
            errors.append(error)

    def project() -> None:
        other = World(world.store)
        try:
            while not stop.is_set():
                other.project()
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=produce), Thread(target=project)]
    for thread in threads:
        thread.start()
    try:
        found: list[Finding] = []
        for number in range(100 if FULL else 8):
            found += world.verify()
            found += [one for part in range(4) for one in Scrub(world.projections, world.log, part).round(200 * number)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    assert errors == []
    assert found == []
    world.project()
    world.assert_views_are_folds()
