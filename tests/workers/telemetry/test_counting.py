"""What a worker process counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from msgspec import structs

from domain.errors import Conflict
from domain.log import connect
from domain.telemetry import BATCH_SECONDS, CREATED, LATENCIES, LEASES_LOST
from projections.catchup import Batch
from tests.conftest import Store
from tests.projections.world import World
from workers.following import Following
from workers.jobs import JobRunner
from workers.partitions import HeldPartitions
from workers.settings import JobSettings
from workers.telemetry import counting
from workers.telemetry.counting import Counting, key_of
from workers.telemetry.telling import exposition

JOBS_DB = 8


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=2))


@pytest.fixture
def counted() -> Iterator[Counting]:
    """What is counted meanwhile."""
    made = Counting()
    counting.begin(made)
    yield made
    counting.begin(None)


def lines(counted: Counting) -> set[str]:
    return set(exposition(counted).splitlines())


def test_nothing_is_counted_while_nobody_listens() -> None:
    """It costs a look."""
    assert counting.now() is None
    counting.count(LEASES_LOST)


def test_a_counter_without_labels_is_there_from_the_start(counted: Counting) -> None:
    """So that its first step is seen as one; what is 0 of a label is not."""
    assert "muster_worker_leases_lost_total 0" in lines(counted)
    counting.count(LEASES_LOST)
    counting.count(LEASES_LOST, 2)
    counting.count(CREATED, 0)
    assert {"muster_worker_leases_lost_total 3", "muster_worker_sessions_created_total 0"} <= lines(counted)
    assert "# HELP muster_worker_errors_total" not in exposition(counted)


def test_a_histogram_counts_each_value_once_and_tells_it_up_to_every_bound(counted: Counting) -> None:
    """A value at a bound is below it, as Prometheus has it."""
    for seconds in (LATENCIES[0], 0.003, 400.0):
        counted.add([], [(key_of(BATCH_SECONDS, projection="p"), seconds)])
    told = lines(counted)
    name = "muster_worker_batch_seconds"
    assert {
        f'{name}_bucket{{projection="p",le="0.0005"}} 1',
        f'{name}_bucket{{projection="p",le="0.0025"}} 1',
        f'{name}_bucket{{projection="p",le="0.005"}} 2',
        f'{name}_bucket{{projection="p",le="300"}} 2',
        f'{name}_bucket{{projection="p",le="+Inf"}} 3',
        f'{name}_count{{projection="p"}} 3',
        f'{name}_sum{{projection="p"}} 400.00349999999997',
    } <= told


def test_what_jobs_find_and_repair_is_counted_and_how_they_end(world: World, counted: Counting) -> None:
    """By kind and code."""
    world.sessions(20)
    world.project()
    url = f"{world.store.url.rpartition('/')[0]}/{JOBS_DB}"
    settings = structs.replace(world.settings(), jobs=JobSettings(url))
    world.redis.delete(world.keyspace.of("s-3").session_view("s-3"))
    runner = JobRunner(settings, world.log, [], "runner")
    try:
        for kind in ("verify", "recover", "verify"):
            runner.run_task(runner.queue.ask(kind, "me").id)
    finally:
        runner.queue.close()
        with connect(structs.replace(settings.redis, url=url)) as client:
            client.flushdb()
    assert {
        'muster_worker_findings_total{code="VIEW_MISSING"} 1',
        "muster_worker_repaired_total 1",
        'muster_worker_jobs_total{kind="verify",state="done"} 2',
        'muster_worker_jobs_total{kind="recover",state="done"} 1',
    } <= lines(counted)


def test_a_batch_that_fails_is_counted_by_its_code(world: World, counted: Counting) -> None:
    """As is one that had to look at the log instead of the feed."""

    def project(batch: Batch) -> None:
        if batch.partition:
            raise Conflict("LEASE_TAKEN", "it went elsewhere")

    held = HeldPartitions()
    following = Following(
        world.projections, held, project, "tester", world.settings(), about={}, server_ms=world.log.clock.now
    )
    following._guarded(Batch(0, "token", None, None, []))
    with pytest.raises(Conflict):
        following._guarded(Batch(1, "token", 0, 1, []))
    assert {
        'muster_worker_rebuilds_total{projection="sessions@2"} 1',
        'muster_worker_errors_total{projection="sessions@2",code="LEASE_TAKEN"} 1',
    } <= lines(counted)
