"""What is logged of batches."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from tests.conftest import Store
from tests.projections.world import World, notes
from workers.process import Projector
from workers.telemetry.batches import Batches


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=1))


def test_a_slow_batch_says_how_long_it_loaded_folded_and_wrote(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """With partition, projection and size, in words and as fields; what is quick is told in detail alone."""
    world.project()
    world.log.append("s-1", notes(3))
    world.log.append("s-2", notes(2))
    token = world.leases.claim(0, ttl_ms=60_000)
    assert token is not None
    batch = world.next_batch(0, token)
    assert batch is not None
    projected = Projector(world.projections, world.log, "tester").project(batch)

    Batches("sessions@2", slow_s=3600, sample=0).done(batch, projected, world.log.clock.now())
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "workers.telemetry.batches"):
        Batches("sessions@2", slow_s=3600, sample=0).done(batch, projected, world.log.clock.now())
    Batches("sessions@2", slow_s=1e-9, sample=0).done(batch, projected, world.log.clock.now())

    quick, slow = caplog.records
    assert (quick.levelname, vars(quick)["action"]) == ("DEBUG", "projection.batch")
    told = vars(slow)
    assert (slow.levelname, told["action"], told["projection"]) == ("WARNING", "projection.slow_batch", "sessions@2")
    assert (told["partition"], told["events"], told["sessions"]) == (0, 5, 2)
    assert told["load_s"] + told["fold_s"] + told["write_s"] == pytest.approx(told["took_s"], abs=1e-5)
    assert min(told["load_s"], told["fold_s"], told["write_s"]) > 0
