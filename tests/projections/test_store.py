"""The store of derived values: steps that are all or nothing, and reading what others left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from domain import Conflict
from domain.agent import NOTHING, Totals
from domain.log.feed import parse_feed_entry
from domain.log.keys import Keyspace
from projections.session_view import CHECKPOINTS_KEPT
from projections.store import (
    Cursor,
    Operation,
    Parked,
    park,
    unpark,
    write_checkpoints,
    write_totals,
    write_view,
)
from tests.projections.world import World, did, notes

KEYS = Keyspace("test", "none", 1).partitions[0]


@pytest.fixture
def token(world: World) -> Iterator[str]:
    """The lease of partition 0."""
    token = world.leases.claim(0, ttl_ms=60_000)
    assert token is not None
    yield token
    world.leases.release(0, token)


def step(world: World, token: str, *, cursor_from: int | None, operations: list[Operation] | None = None) -> None:
    """A step that writes a view and moves the cursor by one."""
    keys = world.projections.keys(0)
    world.projections.step(
        0,
        token=token,
        cursor_from=cursor_from,
        cursor_to=(cursor_from or 0) + 1,
        events=1,
        operations=[write_view(keys, "s", b"view")] if operations is None else operations,
    )


def test_a_step_writes_and_moves_the_cursor_together(world: World, token: str) -> None:
    """One step writes views, checkpoints, totals and reasons, and moves the cursor and its count of events."""
    keys = world.projections.keys(0)
    operations = [
        write_view(keys, "s", b"view"),
        *write_checkpoints(keys, "s", {1: b"one", 2: b"two"}, []),
        *write_totals(keys, "ann", Totals(1, 1, 1)),
        park(keys, "t", Parked("LOG_GAP", "why", 7)),
    ]

    step(world, token, cursor_from=None, operations=operations)
    step(world, token, cursor_from=1, operations=[unpark(keys, "t"), *write_totals(keys, "ann", NOTHING)])

    assert world.projections.cursor(0) == Cursor(2, 2)
    assert world.redis.get(keys.session_view("s")) == b"view"
    assert world.redis.hgetall(keys.checkpoints("s")) == {b"1": b"one", b"2": b"two"}
    assert world.projections.totals(0, ["ann"]) == [None]
    assert world.projections.parked(0, ["t"]) == [None]
    assert list(world.projections.member_pages(0, agents=True)) == []


def test_a_step_with_a_stale_token_writes_nothing(world: World, token: str) -> None:
    """Whoever lost the lease is refused, and not one key changes."""
    other = world.leases.claim(0, ttl_ms=60_000, force=True)
    before = world.store.snapshot()

    for stale in (token, "", "1-0000000000000000"):
        with pytest.raises(Conflict) as raised:
            step(world, stale, cursor_from=None)
        assert raised.value.code == "LEASE_TAKEN"

    assert world.store.snapshot() == before
    assert other is not None
    step(world, other, cursor_from=None)


def test_a_step_from_where_the_cursor_is_not_writes_nothing(world: World, token: str) -> None:
    """A batch that was read from another position is refused, and no key changes; the error says where it stands."""
    step(world, token, cursor_from=None)
    before = world.store.snapshot()

    for wrong in (None, 0, 2):
        with pytest.raises(Conflict) as raised:
            step(world, token, cursor_from=wrong)
        assert raised.value.code == "CURSOR_MOVED"
        assert raised.value.facts["actual"] == "1"

    assert world.store.snapshot() == before


def test_a_given_back_lease_allows_nothing(world: World) -> None:
    """After a release the token is worth nothing."""
    token = world.leases.claim(0, ttl_ms=60_000)
    assert token is not None
    world.leases.release(0, token)

    for worthless in (token, ""):
        with pytest.raises(Conflict):
            step(world, worthless, cursor_from=None)
    assert world.leases.renew({0: ""}, ttl_ms=1000) == {0}


@pytest.mark.parametrize(
    "operation",
    [
        Operation("FLUSHALL", "key"),
        Operation("EXPIRE", "key", (1,)),
        Operation("set", "key", ("x",)),
    ],
)
def test_a_step_with_a_command_it_does_not_know_writes_nothing(world: World, token: str, operation: Operation) -> None:
    """One bad operation at the end stops the whole step before the first write."""
    keys = world.projections.keys(0)
    bad = Operation(operation.command, keys.session_view("t"), operation.arguments)
    before = world.store.snapshot()

    with pytest.raises(redis.ResponseError, match="malformed"):
        step(world, token, cursor_from=None, operations=[write_view(keys, "s", b"view"), bad])

    assert world.store.snapshot() == before


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_step_that_breaks_off_writes_nothing(world: World, token: str, cut: int) -> None:
    """A call whose arguments end in the middle of an operation is refused before the first write."""
    keys = world.projections.keys(0)
    names = [keys.owner("sessions"), keys.cursor("sessions", 2), keys.session_view("s")]
    arguments: list[Any] = [token, "", "5", "5", "SET", 3, 1, "first", "SET", 3, 1, "second"]
    before = world.store.snapshot()

    with pytest.raises(redis.ResponseError):
        world.redis.fcall("muster_step_1", len(names), *names, *arguments[:-cut])

    assert world.store.snapshot() == before


def test_keys_of_a_wrong_type_are_replaced(world: World) -> None:
    """What somebody else put under a derived key never stops a step: the right value takes its place."""
    world.sessions(8)
    world.log.append("long", notes(50))
    keys = world.keyspace.of("long")
    world.redis.set(keys.agents, "text")
    world.redis.hset(keys.agent_view("agent-1"), "a", "hash")
    world.redis.rpush(keys.session_view("long"), "a", "list")
    world.redis.set(keys.checkpoints("long"), "text")

    world.project()

    world.assert_views_are_folds()
    assert list(world.projections.checkpoints("long")) == [50]
    assert world.verify() == []


def test_wrong_types_are_found_and_repaired(world: World) -> None:
    """A derived key that became something else is a finding like any other damage, never an error of the validator."""
    world.sessions(8)
    world.log.append("long", notes(50))
    world.project()
    derived = world.derived()
    keys = world.keyspace.of("long")
    for key in (keys.session_view("long"), keys.checkpoints("long"), keys.agents, keys.agent_view("agent-1")):
        world.redis.delete(key)
        world.redis.rpush(key, "a", "list")

    assert set(world.codes()) == {"VIEW_MISSING", "CHECKPOINT_MISSING", "INDEX_DIFFERS", "AGENT_MISSING"}
    assert world.views.session("long")["seq"] == 50
    assert len(list(world.views.sessions())) == 9
    assert world.views.agent("ann")["sessions"] == 8
    assert world.recover() == []
    assert world.derived() == derived


def test_a_cursor_that_is_none_counts_as_missing(world: World) -> None:
    """A cursor's key that became something else, or holds no number, is found, repaired, and stops nobody."""
    world.sessions(8)
    world.project()
    derived = world.derived()
    first, second, *_ = (keys for keys in world.keyspace.partitions if world.redis.exists(keys.cursor("sessions", 2)))
    world.redis.set(first.cursor("sessions", 2), "no cursor")
    world.redis.hset(second.cursor("sessions", 2), "position", "banana")

    assert world.codes() == ["CURSOR_MISSING"] * 2
    assert world.recover() == []
    assert world.derived() == derived


@given(
    made=st.dictionaries(st.integers(1, 400), st.binary(min_size=1, max_size=3), max_size=6),
    stored=st.lists(st.integers(1, 400), unique=True, max_size=CHECKPOINTS_KEPT),
)
def test_the_last_four_checkpoints_are_kept(made: dict[int, bytes], stored: list[int]) -> None:
    """Whatever is there and whatever comes, afterwards there are the newest four of both."""
    hash = dict.fromkeys(stored, b"old")

    for operation in write_checkpoints(KEYS, "s", made, stored):
        if operation.command == "HDEL":
            hash = {seq: view for seq, view in hash.items() if seq not in operation.arguments}
        else:
            hash |= dict(zip(operation.arguments[::2], operation.arguments[1::2], strict=True))

    should = {**dict.fromkeys(stored, b"old"), **made}
    assert hash == {seq: should[seq] for seq in sorted(should)[-CHECKPOINTS_KEPT:]}


def test_pages_of_a_registry_hold_everything_once(world: World) -> None:
    """Whatever the number of sessions, they come in order, each once, beginning after any of them."""
    names = [f"s-{n:04}" for n in range(1100)]
    here = [name for name in names if world.keyspace.partition_of(name) == 1]
    world.redis.zadd(world.keyspace.partitions[1].sessions, dict.fromkeys(here, 0))

    for after in (None, here[0], here[255], here[-2], here[-1]):
        found = [name for page in world.projections.member_pages(1, after=after) for name in page]
        assert found == [name for name in here if after is None or name > after]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"t": b"1"},
        {b"t": b"1", b"c": b""},
        {b"t": b"x", b"c": b"\x90"},
        {b"t": b"1", b"c": b"\x91\x94\xa1\xff\x01\x01\x01"},
    ],
)
def test_a_feed_entry_that_cannot_be_read_tells_of_nothing(fields: dict[bytes, bytes]) -> None:
    """It then looks like a gap in the running totals, which everybody who follows the feed notices."""
    assert parse_feed_entry((b"7-0", fields)).spans == []
    assert parse_feed_entry((b"7-0", fields)).position == 7


def test_the_feed_covers_what_it_tells_of_without_a_gap(world: World) -> None:
    """Only a feed that tells of every event from the cursor to the total covers them."""
    for _ in range(4):
        world.log.append("s", did("modified"))
    partition = world.keyspace.partition_of("s")
    covers = world.projections.feed_covers

    assert covers(partition, Cursor(0), 4)
    assert covers(partition, Cursor(4), 4)
    assert not covers(partition, Cursor(None), 4)
    assert not covers(partition, Cursor(5), 4)
    assert not covers(partition, Cursor(0), 5)
    world.redis.xdel(world.keyspace.partitions[partition].feed, "2-0")
    assert not covers(partition, Cursor(0), 4)
    assert covers(partition, Cursor(2), 4)
