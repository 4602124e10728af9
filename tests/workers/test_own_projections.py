"""Projections of the user's own in a fleet of real worker processes: added, raised, paused, killed, and by command."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from threading import Event as Flag
from threading import Thread

import pytest

from domain import Append, Misconfigured, Receipt
from projections.lag import lag
from projections.lease import Leases
from projections.own.store import DONE
from projections.projection import Projection
from tests.conftest import Store
from tests.domain.log.logs import refused
from tests.projections.examples import (
    ActorsByType,
    ChangedByType,
    Deadly,
    DoubleByType,
    EventsByType,
    Fussy,
    SpentPerSession,
    spec,
)
from tests.projections.own_world import Own
from tests.projections.world import Ran, World, did, run_cli
from tests.waiting import wait_until
from workers.child_process import ChildProcess
from workers.registered import registered


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A fresh store with eight partitions."""
    return World(make_store(server_url, partitions=8))


def named(*kinds: type[Projection]) -> str:
    """The setting that names these classes."""
    return ",".join(map(spec, kinds))


def produce(world: World, stop: Flag) -> None:
    """Appends to a hundred sessions, and to new ones, until it is stopped."""
    log, n = world.store.open(), 0
    while not stop.is_set():
        n += 1
        names = [f"s-{(n * 7 + k) % 100}" for k in range(20)] + [f"new-{n}"]
        done = log.append_many([Append(name, (did("tool.called", f"agent-{n % 5}"),)) for name in dict.fromkeys(names)])
        assert all(isinstance(receipt, Receipt) for receipt in done)
        stop.wait(0.02)


def wait_until_published(own: Own) -> None:
    wait_until(
        lambda: own.publications.version(own.definition.name, own.definition.version).is_published,
        timeout_s=60,
        message=f"{own.store.label} is published",
    )


def is_applied(own: Own) -> bool:
    return own.store.builds(range(8)) == [DONE] * 8 and lag(own.store).events == 0


def wait_until_applied(own: Own) -> None:
    wait_until(lambda: is_applied(own), timeout_s=60, message=f"{own.store.label} has applied everything")


def replaced(world: World, children: list[ChildProcess], others: ExitStack, projections: str, *, kill: bool) -> None:
    """A rolling restart: one worker after the other ends and comes back knowing other projections."""
    for _ in range(len(children)):
        old = children.pop(0)
        (old.kill if kill else old.terminate)()
        assert old.wait(timeout=60) == (-9 if kill else 0)
        children.extend(others.enter_context(world.workers(1, projections=projections)))


def test_added_changed_and_raised_by_a_version_under_load(world: World) -> None:
    """Right before, during and after: the history is brought in, each version is published once it is whole."""
    stop = Flag()
    first, second, actors = Own(world, EventsByType), Own(world, DoubleByType), Own(world, ActorsByType)
    producer = Thread(target=produce, args=(world, stop))
    with world.workers(2) as children, ExitStack() as others:
        producer.start()
        try:
            wait_until(lambda: world.store.total() > 1000, message="there is a history")
            replaced(world, children, others, named(EventsByType, ActorsByType), kill=True)
            wait_until_published(first)
            wait_until_published(actors)
            seen = first.views.get("by_type", "tool.called")
            assert seen > 1000

            rehearsed = run_own(world, named(ChangedByType), "rebuild", "by_type", "--rehearse")
            assert (rehearsed.code, rehearsed.rows) == (0, []), "nobody appended a `start` yet"
            world.log.append("s-1", did("start"))
            wait_until(lambda: first.states().get("start") == 1, message="the start is counted")
            rehearsed = run_own(world, named(ChangedByType), "rebuild", "by_type", "--rehearse")
            assert [(row["session"], row["stored"], row["rehearsed"]) for row in rehearsed.rows] == [("s-1", 1, 2)]

            before = world.store.total()
            replaced(world, children, others, named(DoubleByType, ActorsByType), kill=False)
            children.pop(0).kill()
            children.extend(others.enter_context(world.workers(1, projections=named(DoubleByType, ActorsByType))))
            wait_until_published(second)
            assert second.views.get("by_type", "tool.called") >= 2 * (before - 1)
        finally:
            stop.set()
            producer.join()
        for own in (second, actors):
            wait_until_applied(own)
        world.wait_until_caught_up()

    second.assert_right()
    actors.assert_right()
    world.assert_views_are_folds()
    assert world.verify() == []
    assert first.publications.version("by_type").version == 2
    assert lag(first.store).events > 0, "nobody works on the version that was replaced"
    assert run_own(world, "", "drop", "by_type", "--version", "1").code == 0
    assert not [key for key in world.store.keys() if b"by_type@1" in key]  # noqa: SIM118


def test_paused_and_resumed_on_its_own(world: World) -> None:
    """While one projection is paused nobody holds its partitions; the built-in one and another go on."""
    spent, by_type = Own(world, SpentPerSession), Own(world, EventsByType)
    owners = Leases(world.log.client, world.keyspace, "", owned=by_type.store.owned).owners
    world.sessions(10)
    with world.workers(2, projections=named(SpentPerSession, EventsByType)):
        wait_until_published(by_type)
        assert run_own(world, "", "pause", "by_type", "--dry-run").code == 0
        assert run_own(world, "", "pause", "by_type").code == 0
        wait_until(lambda: owners() == [None] * 8, message="nobody holds it")
        world.sessions(10)
        wait_until_applied(spent)
        world.wait_until_caught_up()
        assert by_type.states() == {"modified": 30}
        rows = {row["projection"]: row for row in run_own(world, "", "ls").rows}
        assert {name: row["state"] for name, row in rows.items()} == {
            "sessions@2": "live",
            "spent@1": "live",
            "by_type@1": "paused",
        }
        assert rows["by_type@1"]["events"] == 30

        assert run_own(world, "", "resume", "by_type").code == 0
        wait_until_applied(by_type)
    by_type.assert_right()
    spent.assert_right()


def test_one_projections_failing_code_stops_nobody_else(world: World) -> None:
    """Its poisoned session is parked for it alone; `projection ls` shows it; views and other projections go on."""
    own = Own(world, Fussy)
    with world.workers(1, projections=named(Fussy, SpentPerSession)):
        for n in range(6):
            world.log.append(f"s-{n}", [did("start"), did("tool.poison" if n == 3 else "tool.fine")])
        wait_until_applied(own)
        wait_until_applied(Own(world, SpentPerSession))
        world.wait_until_caught_up()
        rows = {row["projection"]: row["parked"] for row in run_own(world, "", "ls").rows}
    assert rows == {"sessions@2": 0, "fussy@1": 1, "spent@1": 0}
    assert {name: state.calls for name, state in own.states().items()} == {f"s-{n}": 2 for n in range(6) if n != 3}
    assert world.verify() == []


def test_code_that_kills_its_workers_parks_the_session_and_all_others_go_on(world: World) -> None:
    """After some deaths the commit they died of is found; nobody folds it again, and no worker dies any more."""
    own = Own(world, Deadly)
    names = [f"s-{n}" for n in range(30)]
    for name in names:
        world.log.append(name, did("start"))
    deaths = 0
    with ExitStack() as workers:
        (child,) = workers.enter_context(world.workers(1, projections=named(Deadly)))
        wait_until_applied(own)
        world.log.append("s-3", did("tool.deadly"))
        for name in names:
            world.log.append(name, did("tool.fine"))
        while not is_applied(own):
            if child.poll() is not None:
                assert child.returncode == 9
                deaths += 1
                assert deaths < 12, "nobody finds what they die of"
                (child,) = workers.enter_context(world.workers(1, projections=named(Deadly)))
        assert child.poll() is None
        world.wait_until_caught_up()
    assert deaths >= 3
    (reason,) = own.store.parked(world.keyspace.partition_of("s-3"), ["s-3"])
    assert reason is not None
    assert (reason.code, reason.first_bad_seq, reason.attempts) == ("WORKER_KILLED", 2, 3)
    assert {name: state.calls for name, state in own.states().items()} == {name: 2 - (name == "s-3") for name in names}
    assert world.verify() == []


# -- by command --------------------------------------------------------------------------------------------------------


def run_own(world: World, projections: str, *arguments: str) -> Ran:
    """Runs a `muster projection` command in a process that knows these projections."""
    before = os.environ.get("MUSTER_PROJECTIONS")
    os.environ["MUSTER_PROJECTIONS"] = projections
    try:
        return run_cli(world, "projection", *arguments)
    finally:
        if before is None:
            del os.environ["MUSTER_PROJECTIONS"]
        else:
            os.environ["MUSTER_PROJECTIONS"] = before


def test_states_are_shown_verified_and_rebuilt_by_command(world: World) -> None:
    """show, verify, rebuild, publish, lag: each says what it did, with the exit code of what it found."""
    own, know = Own(world, EventsByType), named(EventsByType)
    world.sessions(10)
    world.project()
    assert run_own(world, know, "publish", "by_type", "--version", "1").code == 9, "it is not built"
    own.project()
    assert run_own(world, know, "publish", "by_type", "--version", "1").code == 0

    assert run_own(world, know, "show", "by_type").rows == [
        {"schema": "muster.projection-state/1", "projection": "by_type", "key": "modified", "state": 30}
    ]
    assert run_own(world, know, "show", "by_type", "modified").row["state"] == 30
    assert run_own(world, know, "show", "by_type", "nothing").code == 4
    assert run_own(world, "", "show", "by_type").code == 3
    assert run_own(world, know, "show", "nobody").code == 4
    assert run_own(world, know, "lag", "--projection", "by_type@1").row["events"] == 0
    assert run_own(world, know, "lag", "--projection", "by_type@one").code == 9

    assert run_own(world, know, "verify", "--all").code == 0
    assert "not verified: its class is not known here" in run_own(world, "", "verify", "--all").err
    keys = world.keyspace.of("s-3")
    world.redis.set(keys.fold("by_type@1", "s-3"), "nonsense")
    found = run_own(world, know, "verify", "--all")
    assert [(row["code"], row["session"], row["projection"]) for row in found.rows] == [
        ("VIEW_UNREADABLE", "s-3", "by_type@1")
    ]
    assert found.row["remedy"] == "muster projection rebuild by_type --version 1"
    assert found.code == 1
    partition = str(world.keyspace.partition_of("s-3"))
    assert run_own(world, know, "rebuild", "by_type", "--dry-run").code == 0
    assert run_own(world, know, "verify", "--all").code == 1
    rebuilt = run_own(world, know, "rebuild", "by_type", "--partition", partition)
    assert (rebuilt.code, rebuilt.row["partitions"]) == (0, 1)
    assert run_own(world, know, "verify", "--all").code == 0

    assert run_own(world, know, "rebuild", "by_type", "--partition", "99").code == 9
    assert run_own(world, know, "rebuild", "--rehearse").code == 9
    assert run_own(world, "", "rebuild", "by_type").code == 3
    assert run_own(world, know, "drop", "by_type", "--version", "1").code == 9, "it is published"
    assert run_own(world, know, "pause", "nobody").code == 4


@pytest.mark.parametrize(
    "name",
    ["nothing", "nowhere:Class", "tests.projections.examples:Nobody", "tests.projections.examples:Spent", ":"],
)
def test_a_name_that_is_no_projection_stops_the_worker_at_its_start(world: World, name: str) -> None:
    """With the name, the cause and exit 3, before it holds anything."""
    error = refused(lambda: registered(world.settings(projections=name)), Misconfigured, "PROJECTION_INVALID")
    assert name in str(error)
    with world.workers(1, projections=name) as (child,):
        assert child.wait(timeout=60) == 3
    refused(
        lambda: registered(world.settings(projections=named(EventsByType, ChangedByType))),
        Misconfigured,
        "PROJECTION_INVALID",
    )
