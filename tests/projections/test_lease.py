"""Leases: one holder at a time, taken over only past the deadline, and a token that fences whoever came before."""

from __future__ import annotations

import pytest

from domain import Conflict
from projections.lease import Leases, held_for_recovery
from projections.store import ProjectionStore
from tests.projections.world import World
from tests.waiting import wait_until

LONG_MS = 60_000


def as_holder(world: World, name: str) -> Leases:
    return Leases(world.log.client, world.keyspace, name)


def deadline_passes(world: World, partition: int) -> None:
    """As if the lease's time were over."""
    world.redis.hset(world.keyspace.partitions[partition].owner("sessions"), "deadline", 1)


def steps(store: ProjectionStore, token: str) -> bool:
    """Whether the holder of this token may write."""
    cursor = store.cursor(0).position
    try:
        store.step(0, token=token, cursor_from=cursor, cursor_to=(cursor or 0) + 1, operations=[])
    except Conflict as conflict:
        return conflict.code != "LEASE_TAKEN"
    return True


def test_a_partition_has_one_holder(world: World) -> None:
    """Who holds it may claim it again; nobody else gets it while its deadline is ahead."""
    ann, bob = as_holder(world, "ann"), as_holder(world, "bob")
    first = ann.claim(0, ttl_ms=LONG_MS)

    assert first is not None
    assert bob.claim(0, ttl_ms=LONG_MS) is None
    assert bob.claim(1, ttl_ms=LONG_MS) is not None
    assert ann.owners()[0] == bob.owners()[0]
    assert [owner and owner[0] for owner in ann.owners()] == ["ann", "bob", None, None]
    second = ann.claim(0, ttl_ms=LONG_MS)
    assert second is not None
    assert second != first
    assert not steps(world.projections, first)
    assert steps(world.projections, second)


def test_a_lease_is_taken_over_past_its_deadline_and_fenced(world: World) -> None:
    """After the takeover the old token renews nothing, releases nothing and writes nothing."""
    ann, bob = as_holder(world, "ann"), as_holder(world, "bob")
    old = ann.claim(0, ttl_ms=LONG_MS)
    assert old is not None
    deadline_passes(world, 0)
    assert steps(world.projections, old), "nobody took it yet: its holder still has it"

    new = bob.claim(0, ttl_ms=LONG_MS)

    assert new is not None
    assert ann.renew({0: old}, ttl_ms=LONG_MS) == {0}
    ann.release(0, old)
    assert not steps(world.projections, old)
    assert bob.renew({0: new}, ttl_ms=LONG_MS) == set()
    assert steps(world.projections, new)


def test_a_deadline_passes_by_the_servers_clock(world: World) -> None:
    """A lease that is not renewed is free after its time to live."""
    ann, bob = as_holder(world, "ann"), as_holder(world, "bob")
    assert ann.claim(0, ttl_ms=200) is not None

    wait_until(lambda: bob.claim(0, ttl_ms=LONG_MS), message="the lease runs out")


def test_a_renewed_lease_stays(world: World) -> None:
    """Renewing moves the deadline, also one that passed, as long as nobody took the partition."""
    ann, bob = as_holder(world, "ann"), as_holder(world, "bob")
    token = ann.claim(0, ttl_ms=LONG_MS)
    assert token is not None
    deadline_passes(world, 0)

    assert ann.renew({0: token}, ttl_ms=LONG_MS) == set()

    assert bob.claim(0, ttl_ms=LONG_MS) is None
    assert ann.renew({}, ttl_ms=LONG_MS) == set()


def test_a_released_lease_is_free_at_once(world: World) -> None:
    """Nobody waits for the deadline of a lease that was given back, and its token is worth nothing."""
    ann, bob = as_holder(world, "ann"), as_holder(world, "bob")
    token = ann.claim(0, ttl_ms=LONG_MS)
    assert token is not None

    ann.release(0, token)

    assert ann.owners()[0] is None
    assert not steps(world.projections, token)
    assert bob.claim(0, ttl_ms=LONG_MS) is not None


def test_tokens_are_never_used_twice(world: World) -> None:
    """Every claim gives another token, over releases and takeovers."""
    tokens = []
    for name in ("ann", "bob", "ann", "recovery:1"):
        token = as_holder(world, name).claim(0, ttl_ms=LONG_MS, force=True)
        assert token is not None
        tokens.append(token)
    counters = [int(token.partition("-")[0]) for token in tokens]

    assert len(set(tokens)) == 4
    assert counters == sorted(set(counters))


def test_a_recovery_takes_a_partition_from_its_worker_and_gives_it_back(world: World) -> None:
    """While it works the worker can write nothing, and afterwards the worker may claim the partition at once."""
    worker = as_holder(world, "worker")
    token = worker.claim(0, ttl_ms=LONG_MS)
    assert token is not None

    with held_for_recovery(as_holder(world, "recovery:1"), 0) as held:
        assert not steps(world.projections, token)
        assert worker.claim(0, ttl_ms=LONG_MS) is None
        held.renew()
        assert steps(world.projections, held.token)

    again = worker.claim(0, ttl_ms=LONG_MS)
    assert again is not None
    assert steps(world.projections, again)


def test_two_recoveries_exclude_each_other(world: World) -> None:
    """The second one is refused, whatever it is about to do; the first one goes on."""
    with held_for_recovery(as_holder(world, "recovery:1"), 0) as held:
        with pytest.raises(Conflict) as raised, held_for_recovery(as_holder(world, "recovery:2"), 0):
            pass
        assert raised.value.code == "PARTITION_BUSY"
        held.renew()
        with held_for_recovery(as_holder(world, "recovery:2"), 1):
            pass
    with held_for_recovery(as_holder(world, "recovery:2"), 0):
        pass


def test_a_recovery_that_died_is_followed_by_the_next(world: World) -> None:
    """Its partition is free when its deadline passed, and the dead one, come back, can write nothing."""
    dead = as_holder(world, "recovery:1").claim(0, ttl_ms=LONG_MS)
    assert dead is not None
    deadline_passes(world, 0)

    with held_for_recovery(as_holder(world, "recovery:2"), 0):
        assert not steps(world.projections, dead)


def test_a_recovery_that_lost_its_partition_stops(world: World) -> None:
    """It notices before its next step, and gives back nothing that is not its own."""
    with held_for_recovery(as_holder(world, "recovery:1"), 0) as held:
        deadline_passes(world, 0)
        other = as_holder(world, "recovery:2").claim(0, ttl_ms=LONG_MS)
        with pytest.raises(Conflict) as raised:
            held.renew()
    assert raised.value.code == "LEASE_TAKEN"
    assert other is not None
    assert steps(world.projections, other)
