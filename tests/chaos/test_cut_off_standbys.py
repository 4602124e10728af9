"""A standby that is cut off at any step of a round: the next round makes it equal, and nothing is brought twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis

from domain import MusterError
from tests.chaos.test_killed_migrations import StepProxy, Steps, points
from tests.conftest import Servers, Store
from tests.workers.migration.scene import Scene, fill, history, note
from workers.migration.ends import Ends
from workers.migration.record import Migrations
from workers.migration.syncing import Syncing
from workers.pacing import Pace

SESSIONS = [f"s-{number}" for number in range(6)]


def one_round(scene: Scene, ends: Ends, task: str) -> None:
    scene.target.client.delete(scene.target.keyspace.task_owner(task))  # whoever was cut off has lost its lease
    migration = Migrations(ends.target.store).get(task)
    work = scene.moving(ends, migration)
    with work.phase("syncing", "in sync"):
        Syncing(
            ends, migration, by=work._token, who="ann", policy="manual",
            pace=Pace(lambda _: None, verb=""), say=lambda _: None,
        ).round()  # fmt: skip


@pytest.fixture
def scenes(servers: Servers, make_store: Callable[..., Store]) -> Iterator[Scene]:
    """As many as a test wants."""

    def scenes() -> Iterator[Scene]:
        while True:
            stores = (make_store(servers.url("redis7"), partitions=2), make_store(servers.url("valkey"), partitions=3))
            yield Scene(*stores)

    return scenes()


def test_a_round_that_was_cut_off_is_made_up_for(scenes: Iterator[Scene]) -> None:
    """Before or after the server took the request, at every request of a round that brings new and old sessions."""
    for at, moment in points(60):
        scene = next(scenes)
        log, standby = scene.source.open(), scene.target.open()
        fill(log, SESSIONS[:4])
        with scene.ends() as ends:
            task = scene.begun(ends, kind="sync").id
            one_round(scene, ends, task)
        fill(log, SESSIONS[2:])
        proxies: list[StepProxy] = []

        def cut(proxies: list[StepProxy] = proxies) -> None:
            for proxy in proxies:
                proxy._is_cut = True
                proxy.break_connections()

        steps = Steps(at, moment, cut, is_sender=True)
        with ExitStack() as closing:
            for store in (scene.source, scene.target):
                proxies.append(StepProxy(store.url, steps))
                closing.callback(proxies[-1].close)
            try:
                with scene.ends(source_url=proxies[0].url, target_url=proxies[1].url, retry_for_s=0) as ends:
                    one_round(scene, ends, task)
            except (MusterError, redis.RedisError):
                assert steps.struck
        log.append("s-0", note())

        with scene.ends() as ends:
            one_round(scene, ends, task)
            work = scene.moving(ends, Migrations(ends.target.store).get(task))
            with work.phase("syncing", "in sync"):
                assert work.verify().problems == []
        assert {one: history(standby, one) for one in standby.sessions()} == {
            one: history(log, one) for one in log.sessions()
        }
        assert scene.target.total() == scene.source.total(), "nothing was told to its workers twice"
        if not steps.struck:
            break
