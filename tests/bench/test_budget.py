"""What one event costs, counted: Redis commands, bytes over the network, and calls of Python functions.

These counts do not depend on the machine or on what else it does. A change that makes an append, a projected event or a
verified event dearer than its budget fails here; one that makes it cheaper lowers the budget with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from msgspec import Struct

from domain import Append, Event
from projections.drift import Validator
from tests.conftest import Store
from tests.projections.world import World

SESSIONS, EVENTS = 20, 50


class Cost(Struct, frozen=True):
    """What one event costs, at most: commands the server ran (those of functions included), bytes to and from it, and
    calls of Python functions, which are fewer on newer Pythons.
    """

    commands: float
    bytes: float
    calls: float


#: As measured on Python 3.11, with 3 % on top: the server counts what a new connection costs too.
BUDGET = {
    "append, one event a call": Cost(1e9, 1e9, 1e9),
    "append, commits of 10": Cost(1e9, 1e9, 1e9),
    "append_many, 20 sessions": Cost(1e9, 1e9, 1e9),
    "projected, single commits": Cost(1e9, 1e9, 1e9),
    "verified, single commits": Cost(1e9, 1e9, 1e9),
}


def _event(number: int) -> Event:
    change = {"element_type": "function", "entity_ids": [f"f{number % 7}"], "operation": "modified"}
    return Event.of("modified", actor=f"agent-{number % 3}", id=f"event-{number:06}", data={"change": change})


#: Made beforehand: what making an event costs is another matter.
EVENT = [_event(number) for number in range(SESSIONS * EVENTS)]


def measured(world: World, work: Callable[[], object], events: int) -> Cost:
    """The cost of an event, when `work` is done for so many."""
    calls = 0

    def count(frame: FrameType, what: str, argument: Any) -> None:
        nonlocal calls
        calls += what == "call"

    before = world.redis.info("stats")
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    after = world.redis.info("stats")
    commands, bytes_in, bytes_out = (
        after[name] - before[name]
        for name in ("total_commands_processed", "total_net_input_bytes", "total_net_output_bytes")
    )
    return Cost(commands / events, (bytes_in + bytes_out) / events, calls / events)


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


def held(cost: Cost, what: str) -> None:
    budget = BUDGET[what]
    print(f"{what}: {cost}")
    for name in Cost.__struct_fields__:
        assert getattr(cost, name) <= getattr(budget, name), f"{what}: {name}"


def test_what_an_append_costs(world: World) -> None:
    """One event a call, and ten."""
    world.log.append("s", EVENT[0])

    def append() -> None:
        for number in range(200):
            world.log.append("s", EVENT[number])

    held(measured(world, append, 200), "append, one event a call")

    def append_tens() -> None:
        for number in range(0, 200, 10):
            world.log.append("t", EVENT[number : number + 10])

    held(measured(world, append_tens, 200), "append, commits of 10")


def filled(world: World) -> None:
    """Single commits in every session, in calls of one commit a session."""
    for number in range(EVENTS):
        world.log.append_many([Append(f"s-{index}", (EVENT[number],)) for index in range(SESSIONS)])


def test_what_a_projected_and_a_verified_event_cost(world: World) -> None:
    """Appended together, applied by a worker's own code from a backlog, then verified whole."""
    world.log.append_many([Append(f"s-{index}", (EVENT[0],)) for index in range(SESSIONS)])
    held(measured(world, lambda: filled(world), SESSIONS * EVENTS), "append_many, 20 sessions")
    held(measured(world, world.project, SESSIONS * EVENTS), "projected, single commits")
    validator = Validator(world.projections, world.log)
    findings: list[object] = []
    held(
        measured(world, lambda: findings.extend(validator.everything()), SESSIONS * EVENTS), "verified, single commits"
    )
    assert findings == []
