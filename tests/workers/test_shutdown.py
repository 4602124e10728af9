"""How a worker ends: in named phases, before a deadline, with nothing lost whichever way it ends."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from projections.lag import lag
from tests.conftest import Store
from tests.projections.world import World, did, notes
from tests.waiting import wait_until
from workers.child_process import ChildProcess, start_child
from workers.partitions import HeldPartitions
from workers.shutdown import Shutdown


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A fresh store on the embedded server, with four partitions."""
    return World(make_store(server_url, partitions=4))


def phases(lines: str) -> list[str]:
    """The phases a process went through, each once, in order."""
    found = re.findall(r" workers\.process: ([a-z]+):", lines, re.MULTILINE)
    return [phase for index, phase in enumerate(found) if phase not in found[:index]]


def started(world: World, said: Path, **options: float) -> ChildProcess:
    """A worker process whose lines go to a file."""
    with said.open("wb") as file:
        return start_child([sys.executable, "-m", "workers.process"], env=world.environ(**options), stderr=file)


def test_a_worker_that_is_stopped_says_its_phases_and_leaves_nothing_behind(world: World, tmp_path: Path) -> None:
    """SIGTERM: initiated, perhaps draining, checkpointing, cleanup, complete; exit 0; no lease, no sign of life."""
    said = tmp_path / "said"
    child = started(world, said, lease_ttl_ms=600_000)
    try:
        world.log.append("s", notes(3))
        world.wait_until_caught_up()
        world.wait_until_shared([child])
        child.terminate()
        assert child.wait(timeout=60) == 0
    finally:
        child.kill()
    found = phases(said.read_text())
    assert [phase for phase in found if phase != "draining"] == ["initiated", "checkpointing", "cleanup", "complete"]
    assert world.leases.owners() == [None] * 4
    assert world.shares() == {}


def test_past_the_deadline_a_worker_is_forced_and_nothing_is_lost(world: World, tmp_path: Path) -> None:
    """Stopped in the middle of a long batch: exit 10, leases given back, and whoever comes next finishes the work."""
    world.log.append("hot", notes(1000))
    world.log.append("hot", notes(1000))
    world.log.append("other", did("start"))
    said, cause = tmp_path / "said", tmp_path / "cause"
    cause.touch()
    environ = world.environ(lease_ttl_ms=600_000, drain_s=0.001) | {"MORTAL_FILE": str(cause)}
    with said.open("wb") as file:
        command = [sys.executable, "-m", "tests.workers.mortal", "hot", "1001", "hang"]
        child = start_child(command, env=environ, stderr=file)
    try:
        wait_until(Path(f"{cause}.met").exists, message="it is in the middle of a batch")
        child.terminate()
        assert child.wait(timeout=60) == 10
    finally:
        child.kill()
    assert world.leases.owners() == [None] * 4
    assert phases(said.read_text())[-1] == "forced"
    assert "in flight: partitions" in said.read_text()

    with world.workers(1):
        world.wait_until_caught_up()

    world.assert_views_are_folds()
    assert world.verify() == []
    assert lag(world.projections).events == 0


def test_nothing_is_handed_out_once_a_shutdown_began_and_what_is_in_flight_is_waited_for() -> None:
    """Before the deadline a batch that ends makes it clean; one that never ends makes it forced, exit 10."""
    said: list[str] = []
    partitions = HeldPartitions()
    partitions.adopt(1, "t1")
    partitions.adopt(2, "t2")
    assert partitions.hand_out(1, "t1")

    late = Shutdown(partitions, drain_s=0.01, say=said.append)
    assert not late.drain()
    late.clean_up(lambda: 2)
    assert late.complete() == 10
    assert said[-2:] == ["forced: past the deadline; still in flight: partitions 1", "forced: gave 2 leases back"]

    assert partitions.ready() == {}
    assert not partitions.hand_out(2, "t2")
    partitions.finished(1, "t1", 7)
    in_time = Shutdown(partitions, drain_s=60, say=said.append)
    assert in_time.drain()
    in_time.clean_up(lambda: 2)
    assert in_time.complete() == 0
    assert said[-1] == "complete: nothing is left to do"
