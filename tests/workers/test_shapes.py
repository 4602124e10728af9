"""Events of a newer release stall their sessions alone, until workers come that know them: then nobody has to help."""

from __future__ import annotations

import sys
from collections.abc import Callable

import msgspec
import pytest

from domain import Event
from tests.conftest import Store
from tests.projections.examples import Usage, UsageOfBefore, spec
from tests.projections.own_world import Own
from tests.projections.world import World, did, foreign_append, run_cli
from tests.waiting import wait_until
from workers.child_process import start_child


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A fresh store with four partitions."""
    return World(make_store(server_url, partitions=4))


def test_a_built_in_type_of_a_newer_release_waits_for_its_workers(world: World) -> None:
    """Workers of today park the session; it is a warning, and no damage; workers of tomorrow go on with it."""
    names = world.sessions(10)
    with world.workers(1):
        world.wait_until_caught_up()
        foreign_append(world.store, "s-3", "b", msgspec.msgpack.encode([["paused", "p-1", "ann", None, {}]]))
        for name in names:
            world.log.append(name, did("modified"))
        world.wait_until_caught_up()
        (finding,) = world.verify()
        assert (finding.code, finding.severity, finding.session, finding.first_bad_seq) == (
            "EVENT_NEWER",
            "warning",
            "s-3",
            4,
        )
        assert [view["seq"] for view in world.views.sessions() if view["session"] != "s-3"] == [4] * 9
        assert run_cli(world, "recover", "apply").code == 7, "nothing to repair, and still found"
        head = world.log.head("s-3")
        assert head is not None
        assert not head.quarantined
    child = start_child([sys.executable, "-m", "tests.workers.newer"], env=world.environ())
    try:
        wait_until(lambda: world.views.session("s-3")["seq"] == 5, message="the session goes on by itself")
    finally:
        child.kill()
        child.wait()
    assert run_cli(world, "parked", "ls").rows == []


def test_a_newer_shape_waits_for_workers_that_know_its_steps(world: World) -> None:
    """Of an own projection's event: parked there alone, and gone on with when workers take the partitions over."""
    before, now = Own(world, UsageOfBefore), Own(world, Usage)

    def called(session: str, shape: int, data: dict[str, object]) -> None:
        world.log.append(session, Event.of("llm.called", actor="ann", data=data, shape=shape))

    called("old", 1, {"tokens": "7"})
    called("older", 2, {"tokens": 5})
    with world.workers(1, projections=spec(UsageOfBefore)):
        wait_until(lambda: len(before.states()) == 2, message="the history is in")
        called("new", 3, {"usage": {"tokens": 3}})
        called("old", 1, {"tokens": "1"})
        wait_until(lambda: run_cli(world, "parked", "ls", "--projection", "usage").rows != [], message="it is parked")
        wait_until(lambda: before.states()["old"].tokens == 8, message="others go on")
        parked = run_cli(world, "parked", "ls", "--projection", "usage").row
        assert (parked["session"], parked["code"], parked["first_bad_seq"]) == ("new", "EVENT_NEWER", 1)
        world.wait_until_caught_up()
        assert world.verify() == [], "the built-in views read no data of types with a dot"

    with world.workers(1, projections=spec(Usage)):
        wait_until(
            lambda: now.states().get("new") is not None and now.states()["new"].tokens == 3, message="it goes on"
        )
    assert {name: state.tokens for name, state in now.states().items()} == {"old": 8, "older": 5, "new": 3}
    assert now.codes() == []
    assert run_cli(world, "parked", "ls", "--projection", "usage").rows == []
