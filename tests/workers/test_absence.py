"""An agent that gives no sign of life for too long is reported gone, by one event, whoever may append otherwise."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from domain.log.working import WorkingSession
from tests.conftest import ENVIRONMENT, Store
from tests.projections.world import World, did
from tests.waiting import wait_until
from workers.absence import Absences
from workers.vigil import Vigil

ROOT = Path(__file__).parents[2]


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=1))


def said(world: World, session: str = "s") -> list[tuple[str, str]]:
    return [(event.type, event.actor) for commit in world.log.read(session) for event in commit.events]


def silence(world: World, agent: str = "a", session: str = "s") -> None:
    """The agent's last sign of life lies a minute back."""
    seconds, _ = world.redis.time()
    world.redis.zadd(world.keyspace.of(session).beats, {f"{session} {agent}": (seconds - 60) * 1000})


def joined(world: World, *agents: str) -> None:
    world.log.append("s", [did("joined", agent) for agent in agents])
    world.project()


def present(world: World) -> dict[str, bool]:
    world.project()
    return {agent: part["present"] for agent, part in world.views.session("s")["agents"].items()}


class Watching:
    """A process that looks for silent agents, in the one partition there is."""

    def __init__(self, world: World, *, grace_s: float = 0, clock: Callable[[], float] | None = None) -> None:
        self.vigil = Vigil(clock) if clock is not None else Vigil()
        self._now = world.projections.server_ms
        self._absences = Absences(world.log, world.projections, self.vigil, grace_s=grace_s)

    def look(self, partitions: Sequence[int] = (0,)) -> int:
        now = self._now()
        self.vigil.look(now, partitions)
        return self._absences.look(now)

    def wait(self, ms: int) -> None:
        """It has been watching for so much longer."""
        self.vigil.since = {partition: since - ms for partition, since in self.vigil.since.items()}


@pytest.mark.parametrize("policy", ["any", "strict", "leased"])
def test_a_silent_agent_is_gone_once_and_who_gives_signs_of_life_is_not(world: World, policy: Any) -> None:
    """Whoever may append to the session: what Muster states needs no lease. The session's state does not change."""
    joined(world, "a", "b")
    world.log.append("s", did("handoff", "b"))
    world.log.set_policy("s", policy)
    world.log.heartbeat("s", "b")
    silence(world)

    reported = [Watching(world).look() for _ in range(3)]

    assert reported == [1, 0, 0]
    assert said(world)[3:] == [("muster.agent_gone", "muster")]
    assert present(world) == {"a": False, "b": True}
    assert world.views.session("s")["state"] == "coordinating"
    assert world.views.agent("a")["present"] == 0
    assert world.verify() == []


def test_the_event_says_who_is_gone_and_since_when(world: World) -> None:
    joined(world, "a")
    silence(world)
    since = int(world.redis.zscore(world.keyspace.of("s").beats, "s a"))
    Watching(world).look()
    event = [event for commit in world.log.read("s") for event in commit.events][-1]
    assert event.payload()["gone"] == "a"
    assert event.payload()["silent_since"].endswith("Z")
    assert since % 1000 == 0


def test_of_an_agent_that_left_nothing_is_said(world: World) -> None:
    """It was no member any more, and is forgotten."""
    joined(world, "a")
    world.log.append("s", did("left", "a"))
    world.project()
    silence(world)
    assert Watching(world).look() == 0
    assert [type for type, _ in said(world)] == ["joined", "left"]
    assert not world.redis.exists(world.keyspace.of("s").beats)


def test_a_session_that_has_expired_hears_no_more_of_its_agents(world: World) -> None:
    joined(world, "a")
    world.log.append("s", did("expired", "a"))
    silence(world)
    assert Watching(world).look() == 0
    assert [type for type, _ in said(world)] == ["joined", "expired"]
    assert not world.redis.exists(world.keyspace.of("s").beats)


def test_of_a_quarantined_session_it_is_said_when_that_is_lifted(world: World) -> None:
    """It takes no events; the silent agent is not forgotten meanwhile."""
    joined(world, "a")
    head = world.redis.get(world.keyspace.of("s").head("s"))
    world.projections.quarantine("s", "LOG_ALTERED", 1)
    silence(world)
    assert Watching(world).look() == 0
    world.redis.set(world.keyspace.of("s").head("s"), head)
    assert Watching(world).look() == 1


def test_who_was_not_watched_all_the_while_is_given_time(world: World) -> None:
    """After the process began, after a gap, and after the server's clock jumped; then it is gone all the same."""
    joined(world, "a")
    silence(world)
    clock = Clock()
    watching = Watching(world, grace_s=3600, clock=clock)
    assert watching.look() == 0
    watching.wait(3_600_000)
    clock.s += 60  # a minute here, and none by the server's clock
    assert watching.look() == 0
    watching.wait(3_600_000)
    assert watching.look([]) == 0  # the partition was another's for a while
    assert watching.look() == 0
    watching.vigil.broke()
    assert watching.look() == 0
    assert said(world) == [("joined", "a")]
    watching.wait(3_600_000)
    assert watching.look() == 1


def test_workers_report_an_agent_whose_process_stands_still_and_it_joins_again(world: World) -> None:
    """Stopped for longer than it may be silent; when it goes on, it finds out by itself. Nobody else is reported."""
    code = (
        "import sys, time\nfrom domain import SessionLog\n"
        "log = SessionLog.open(sys.argv[1], environment=sys.argv[2], namespace=sys.argv[3])\n"
        "log.session('s', 'a', ttl_ms=500, silent_after_s=0.5).__enter__()\nprint('in', flush=True)\ntime.sleep(600)"
    )
    command = [sys.executable, "-c", code, world.store.url, ENVIRONMENT, world.store.namespace]
    with (
        world.workers(1, absence_grace_s=0.2),
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as agent,
    ):
        try:
            assert agent.stdout is not None
            assert agent.stdout.readline() == b"in\n"
            wait_until(lambda: world.redis.exists(world.keyspace.of("s").beats), message="it gives signs of life")
            world.wait_until_caught_up()
            agent.send_signal(signal.SIGSTOP)
            wait_until(lambda: len(said(world)) > 1, message="it is reported gone")
            agent.send_signal(signal.SIGCONT)
            wait_until(lambda: len(said(world)) > 2, message="it joins again")
        finally:
            agent.kill()
    assert said(world)[:3] == [("joined", "a"), ("muster.agent_gone", "muster"), ("joined", "a")]


def test_an_agent_that_beats_is_never_reported(world: World) -> None:
    """However often it is looked: its deadline lies ahead."""
    work = WorkingSession(world.log, "s", "a", exclusive=False, ttl_ms=1000, silent_after_s=60)
    with work:
        wait_until(lambda: world.redis.exists(world.keyspace.of("s").beats))
        world.project()
        assert Watching(world).look() == 0
