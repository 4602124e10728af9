"""What an append, a projected and a verified event cost, counted and not timed: so it is the same on every machine.

Python functions that are called, commands the server executes (those inside functions too), and bytes that travel. Each
is held against what was recorded; who made something cheaper records the lower figures, so that it stays cheap.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, NamedTuple

import pytest

from domain import Append
from tests.bench.events import event
from tests.conftest import Store
from tests.projections.world import World

#: How far above the recorded figures is still the same: ids and numbers have more or fewer digits.
TOLERANCE: Final = 1.05
SESSIONS: Final = 64
EVENTS: Final = 10


class Cost(NamedTuple):
    """What one event costs."""

    calls: float
    commands: float
    sent_bytes: float
    received_bytes: float


#: Per event; all events are single commits of 200 B, sessions have ten of them.
RECORDED: Final = {
    "append": Cost(213, 9, 608, 83.3),
    "append in groups": Cost(99.1, 3.38, 430, 79.7),
    "projection": Cost(65, 0.43, 56.8, 323),
    "verification": Cost(135.3, 1.08, 97, 405),
}


def cost(client: Any, work: Callable[[], object], events: int) -> Cost:
    """What some work costs per event, in this thread and on the server."""
    counted = 0

    def count(frame: FrameType, what: str, argument: object) -> None:
        nonlocal counted
        counted += what in ("call", "c_call")

    before = _server(client)
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    after = _server(client)
    asking = _server(client)  # what asking itself costs
    server = [(now - then) - (again - now) for then, now, again in zip(before, after, asking, strict=True)]
    return Cost(counted / events, *(figure / events for figure in server))


def _server(client: Any) -> tuple[float, float, float]:
    """Commands that were executed, bytes that came in, bytes that went out."""
    stats, commands = client.info("stats"), client.info("commandstats")
    calls = sum(command["calls"] for command in commands.values())
    return calls, stats["total_net_input_bytes"], stats["total_net_output_bytes"]


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A store on the embedded server, with four partitions."""
    return World(make_store(server_url, partitions=4))


def hold(what: str, found: Cost) -> None:
    """Holds what was counted against what was recorded."""
    recorded = RECORDED[what]
    dearer = [
        f"{name} {now:.1f}, recorded {then:g}"
        for name, now, then in zip(Cost._fields, found, recorded, strict=True)
        if now > then * TOLERANCE
    ]
    print(what, found)
    assert not dearer, f"one event of {what} costs more than it did: {'; '.join(dearer)}"


def test_an_append_costs_what_was_recorded(world: World) -> None:
    """One event a call, to sessions that have begun."""
    names = world.sessions(SESSIONS, events=1)
    made = event()

    def append() -> None:
        for name in names * EVENTS:
            world.log.append(name, made)

    hold("append", cost(world.redis, append, SESSIONS * EVENTS))


def test_appends_in_groups_cost_what_was_recorded(world: World) -> None:
    """A commit to each of many sessions in one go."""
    names = world.sessions(SESSIONS, events=1)
    appends = [Append(name, (event(),)) for name in names]

    def append() -> None:
        for _ in range(EVENTS):
            world.log.append_many(appends)

    hold("append in groups", cost(world.redis, append, SESSIONS * EVENTS))


def test_projecting_an_event_costs_what_was_recorded(world: World) -> None:
    """Views that are there catch up with a backlog of single commits."""
    names = world.sessions(SESSIONS, events=1)
    world.project()
    for _ in range(EVENTS):
        world.log.append_many([Append(name, (event(),)) for name in names])

    hold("projection", cost(world.redis, world.project, SESSIONS * EVENTS))


def test_verifying_an_event_costs_what_was_recorded(world: World) -> None:
    """Everything is read, folded, read a second time and compared."""
    names = world.sessions(SESSIONS, events=1)
    for _ in range(EVENTS - 1):
        world.log.append_many([Append(name, (event(),)) for name in names])
    world.project()
    world.verify()

    hold("verification", cost(world.redis, world.verify, SESSIONS * EVENTS))
