"""Recovery beside everything that goes on: appends, workers, other recoveries, and its own sudden death."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from threading import Event as Flag
from threading import Thread

import pytest

from domain import Append, Conflict, Receipt
from projections.findings import Finding
from projections.lease import Leases, held_for_recovery
from projections.store import ProjectionStore
from tests.conftest import Store
from tests.projections.world import World, did, notes
from tests.waiting import wait_until
from workers import recovery as module
from workers.child_process import start_child
from workers.recovery import PartitionPlan, Plan, Recovery, plan_of

MUSTER = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=8))


def wreck(world: World, names: list[str]) -> None:
    """Damages views, checkpoints, totals, heads and cursors all over."""
    for number, name in enumerate(names):
        keys = world.keyspace.of(name)
        match number % 5:
            case 0:
                world.redis.delete(keys.session_view(name))
            case 1:
                world.redis.set(keys.session_view(name), b"garbage")
            case 2:
                world.redis.delete(keys.checkpoints(name), keys.head(name))
            case 3:
                world.redis.set(keys.agent_view("ann"), b"garbage")
    world.redis.delete(world.keyspace.partitions[3].cursor("sessions", 2))


def built(world: World, number: int = 60) -> list[str]:
    names = world.sessions(number, events=2)
    world.log.append_many([Append(name, notes(50, "zoe")) for name in names])
    world.project()
    assert world.verify() == []
    return names


def test_a_recovery_killed_anywhere_is_completed_by_the_next(world: World) -> None:
    """`recover apply` is killed with -9 at random points, then run to its end: all is as it was before the damage."""
    names = built(world)
    right = world.derived()
    chance = random.Random(11)
    wreck(world, names)
    began = world.redis.info("commandstats")["cmdstat_fcall"]["calls"]
    for _ in range(4):
        child = start_child([*MUSTER, "recover", "apply"], env=world.environ())
        at = began + chance.randrange(1, 30)
        wait_until(
            lambda at=at, child=child: (  # type: ignore[misc]
                child.poll() is not None or world.redis.info("commandstats")["cmdstat_fcall"]["calls"] >= at
            )
        )
        child.kill()
        child.wait()
        # As if the time of its leases were over.
        for keys in world.keyspace.partitions:
            world.redis.hset(keys.owner("sessions"), "deadline", 1)

    with start_child([*MUSTER, "recover", "apply"], env=world.environ()) as child:
        assert child.wait(timeout=60) == 0

    assert world.verify() == []
    assert world.derived() == right
    assert all(isinstance(answer, Receipt) for answer in world.log.append_many([Append(n, notes(1)) for n in names]))


def test_appends_and_workers_go_on_while_recovery_repairs(world: World) -> None:
    """Under traffic, damage is repaired, no append is refused, and the views end as the folds."""
    names = built(world)
    log, stop, answers = world.store.open(), Flag(), list[object]()

    def produce() -> None:
        while not stop.is_set():
            answers.extend(log.append_many([Append(name, (did("broke", "bob"),)) for name in names]))
            stop.wait(0.02)

    with world.workers(2) as children:
        world.wait_until_shared(children)
        thread = Thread(target=produce)
        thread.start()
        try:
            left: list[list[Finding]] = []
            for round in range(3):
                for name in names[round::4]:
                    keys = world.keyspace.of(name)
                    world.redis.delete(keys.checkpoints(name))
                    world.redis.set(keys.agent_view("zoe"), b"garbage")
                left.append(world.recover())
        finally:
            stop.set()
            thread.join()
        world.wait_until_caught_up()
        world.wait_until_shared(children)

    assert left == [[], [], []]
    assert all(isinstance(answer, Receipt) for answer in answers)
    world.assert_views_are_folds()
    assert world.verify() == []


def test_a_busy_partition_is_waited_for_then_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery waits for another one that holds a partition; past its patience it says PARTITION_BUSY."""
    built(world, 8)
    said: list[str] = []
    mine = Recovery(world.projections, world.log, who="recovery:mine", progress=said.append)
    other = World(world.store)
    monkeypatch.setattr(module, "BUSY_WAIT_S", 0.3)

    with held_for_recovery(other.leases, 2):
        pass  # a holder that is no recovery has it taken away
    with held_for_recovery(type(other.leases)(other.log.client, other.keyspace, "recovery:other"), 2):
        with pytest.raises(Conflict) as raised:
            mine.rebuild([2])
        assert raised.value.code == "PARTITION_BUSY"
        assert any("waiting for partition 2" in line for line in said)
        mine.rebuild([1])

    mine.rebuild([2])


def test_a_plan_may_be_carried_out_later(world: World) -> None:
    """A plan that was made before more damage came repairs what it names, and says what is left there."""
    names = built(world, 16)
    here = [name for name in names if world.keyspace.partition_of(name) == world.keyspace.partition_of(names[0])]
    first, second = here[:2]
    world.redis.delete(world.keyspace.of(first).session_view(first))
    plan = plan_of("store", world.verify())
    world.redis.delete(world.keyspace.of(second).session_view(second))

    left = Recovery(world.projections, world.log, who="recovery:x", progress=lambda _: None).apply(plan)

    assert [(finding.code, finding.session) for finding in left if finding.kind == "view"] == [("VIEW_MISSING", second)]
    assert world.recover() == []
    assert world.verify() == []


def test_a_plan_with_nothing_in_it_does_nothing(world: World) -> None:
    """No key is touched, and a partition without sessions of its own is only summed."""
    built(world, 8)
    before = world.derived()
    recovery = Recovery(world.projections, world.log, who="recovery:x", progress=lambda _: None)

    assert recovery.apply(Plan("muster.recovery-plan/1", "store", [], [])) == []
    assert recovery.apply(Plan("muster.recovery-plan/1", "store", [PartitionPlan(0, [], False)], [])) == []

    assert world.derived() == before
    assert recovery.repaired.changed == recovery.repaired.totals == 0


def test_what_was_repaired_is_counted(world: World) -> None:
    """Sessions looked at, those that changed, totals that changed, sessions quarantined."""
    names = built(world, 16)
    world.redis.delete(world.keyspace.of(names[0]).session_view(names[0]))
    world.redis.xdel(world.keyspace.of(names[1]).log(names[1]), "2-1")
    recovery = Recovery(world.projections, world.log, who="recovery:x", progress=lambda _: None)

    left = recovery.apply(plan_of("store", world.verify()))

    assert [finding.code for finding in left] == ["LOG_GAP"]
    assert (recovery.repaired.sessions, recovery.repaired.changed, recovery.repaired.quarantined) == (2, 2, 1)
    store = ProjectionStore(world.log.client, world.keyspace)
    assert store.holds([names[1]]) == [{"code": "LOG_GAP", "first_bad_seq": 2}]


def test_a_worker_goes_on_right_after_a_recovery_let_go(world: World) -> None:
    """It need not wait for its next beat: it sees that the lease was taken when it has something to write."""
    names = built(world)
    with world.workers(1, beat_ms=60_000, lease_ttl_ms=600_000):
        wait_until(lambda: sum(world.shares().values()) == 8, timeout_s=30, message="it holds all partitions")
        leases = Leases(world.log.client, world.keyspace, "recovery:test")
        for partition in range(8):
            with held_for_recovery(leases, partition):
                pass
        world.log.append_many([Append(name, notes(1)) for name in names])

        wait_until(world.is_caught_up, timeout_s=30, message="it goes on before its next beat")
