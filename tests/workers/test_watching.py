"""Stuck partitions are reported by somebody else than the one that is stuck."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from projections import lag as lag_module
from tests.conftest import Store
from tests.projections.examples import EventsByType
from tests.projections.own_world import Own
from tests.projections.world import World, did
from tests.waiting import wait_until
from workers.watching import Watch


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A fresh store on the embedded server, with four partitions."""
    return World(make_store(server_url, partitions=4))


def test_a_paused_worker_is_named_by_somebody_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a lease that lasts, a paused worker looks alive; the watch says what stands still, and when it goes on."""
    monkeypatch.setattr(lag_module, "STUCK_AFTER_S", 0.05)
    said: list[str] = []
    watch = Watch(world.projections, said.append)

    def is_said(word: str) -> bool:
        watch.look()
        return any(word in line for line in said)

    with world.workers(1, lease_ttl_ms=600_000) as (child,):
        world.wait_until_shared([child])
        assert not is_said("")
        os.kill(child.pid, signal.SIGSTOP)
        world.log.append("s", did("start"))
        wait_until(lambda: is_said("does not move (stuck)"), message="the partition is called stuck")
        assert "session s since" in said[0]
        assert str(child.pid) in said[0]
        os.kill(child.pid, signal.SIGCONT)
        wait_until(lambda: is_said("moves again"), message="it is said that it moves")
    assert len(said) == 2


def test_an_own_projection_that_readers_get_and_nobody_builds_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only while it is published and not paused: a version nobody asked for yet is no trouble."""
    monkeypatch.setattr("workers.watching.STUCK_AFTER_S", 0.0)
    said: list[str] = []
    watch = Watch(world.projections, said.append)
    own = Own(world, EventsByType)
    own.project()
    world.log.append("s", did("start"))
    world.project()
    watch.look()
    assert said == []
    own.offer()
    version = own.publications.version("by_type")
    own.publications.publish(version, "me")
    own.publications.pause(version, "me")
    watch.look()
    assert said == []

    own.publications.resume(version, "me")
    watch.look()
    own.project()
    watch.look()

    assert ["does not move (no worker)" in said[0], "moves again" in said[1]] == [True, True]
    assert [line.split(":")[0] for line in said] == ["by_type@1", "by_type@1"]
