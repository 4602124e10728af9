"""Jobs: asked for once and done once, whoever dies meanwhile and whatever is lost on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from msgspec import structs

from domain import Conflict, Misconfigured, NotFound, Refused
from domain.log import connect
from tests.conftest import Store
from tests.domain.log.logs import refused
from tests.projections.examples import EventsByType, spec
from tests.projections.own_world import Own
from tests.projections.world import World, did, run_cli
from tests.waiting import wait_until
from workers.jobs import JobQueue, JobRunner, added
from workers.registered import registered
from workers.schedule import SEND_AGAIN_MS, Schedule
from workers.settings import JobSettings, Settings
from workers.tasks import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Task, Tasks

JOBS_DB = 7


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A store with 32 partitions and some sessions in each, all projected; jobs have a database of their own."""
    url = f"{server_url.rpartition('/')[0]}/{JOBS_DB}"
    monkeypatch.setenv("MUSTER_JOBS__URL", url)
    world = World(make_store(server_url))
    world.jobs_url = url
    world.sessions(200)
    world.project()
    yield world
    with connect(settings(world).redis) as client:
        client.execute_command("SELECT", JOBS_DB)
        client.flushdb()


def settings(world: World, **options: Any) -> Settings:
    """Settings of a process that knows where jobs are."""
    return structs.replace(world.settings(**options), jobs=JobSettings(world.jobs_url))


@pytest.fixture
def queue(world: World) -> Iterator[JobQueue]:
    queue = JobQueue(settings(world), world.log)
    yield queue
    queue.close()


def runner_of(world: World, name: str) -> JobRunner:
    """What a worker process has to run jobs, in this process; nothing is fetched from the queue."""
    asked = settings(world)
    return JobRunner(asked, world.log, registered(asked), name)


def ended(queue: JobQueue, task: Task) -> Task:
    """The task when it has ended."""
    wait_until(lambda: queue.tasks.get(task.id).ended, timeout_s=60, message="the task has ended")
    return queue.tasks.get(task.id)


def test_a_job_is_done_by_whoever_is_there_and_tells_what_came_of_it(world: World, queue: JobQueue) -> None:
    """verify finds, recover repairs, verify finds nothing: by worker processes, with the results in the store."""
    world.redis.delete(world.keyspace.of("s-3").session_view("s-3"))
    with world.workers(2, jobs_url=world.jobs_url):
        found = ended(queue, queue.ask("verify", "me"))
        assert (found.state, found.position, found.result["codes"]) == (DONE, 32, {"VIEW_MISSING": 1})
        assert (found.result["sessions"], found.result["events"]) == (200, 600)
        assert [one["session"] for one in found.result["findings"]] == ["s-3"]

        repaired = ended(queue, queue.ask("recover", "me"))
        assert (repaired.state, repaired.result["found"], repaired.result["repaired"]) == (DONE, 1, 1)
        assert ended(queue, queue.ask("verify", "me")).result["codes"] == {}

        rebuilt = ended(queue, queue.ask("rebuild", "me", partitions=[3, 4]))
        assert (rebuilt.position, rebuilt.result["changed"]) == (2, 0)
    assert world.verify() == []


def test_a_dead_process_is_taken_over_from_and_no_partition_is_counted_twice(world: World, queue: JobQueue) -> None:
    """Killed in the middle: another one goes on with the partition it was in; anyone could read how far it was."""
    seen: list[int] = []

    def progress(task: Task) -> int:
        seen.append(queue.tasks.get(task.id).position)
        return seen[-1]

    with ExitStack() as workers:
        (child,) = workers.enter_context(world.workers(1, jobs_url=world.jobs_url))
        # Held by another recovery, so that whoever rebuilds has to wait there.
        token = world.leases.claim(9, ttl_ms=600_000, force=True)
        assert token is not None
        world.redis.hset(world.keyspace.partitions[9].owner("sessions"), "worker", "recovery:somebody")
        task = queue.ask("rebuild", "me")
        wait_until(lambda: progress(task) == 9, timeout_s=60, message="it came as far as it can")
        assert queue.tasks.get(task.id).state == RUNNING
        child.kill()
        child.wait()
        workers.enter_context(world.workers(1, jobs_url=world.jobs_url))
        world.leases.release(9, token)
        done = ended(queue, task)

    assert (done.state, done.position) == (DONE, 32)
    assert done.result["sessions"] == 200
    assert seen == sorted(seen)


def test_a_process_that_is_stopped_hands_its_job_over(world: World, queue: JobQueue) -> None:
    """SIGTERM: it ends after the partition it is in, gives the task back, and whoever comes next goes on at once."""
    with world.workers(1, jobs_url=world.jobs_url) as (child,):
        task = queue.ask("rebuild", "me", partitions=list(range(32)) * 20)
        wait_until(lambda: queue.tasks.get(task.id).position > 3, timeout_s=60, message="it is under way")
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait(timeout=60) == 0
        handed = queue.tasks.get(task.id)
        assert handed.holder is None
        assert 3 < handed.position < 640
    with world.workers(1, jobs_url=world.jobs_url):
        done = ended(queue, task)
    assert (done.state, done.position, done.deaths) == (DONE, 640, 0)
    assert done.result["sessions"] == 20 * 200


def test_messages_that_are_lost_are_sent_again(world: World, queue: JobQueue) -> None:
    """The queues may be emptied: what was asked for stands in the store."""
    task = queue.ask("verify", "me")
    queue.client.flushdb()
    schedule = Schedule(queue, world.log.client, world.keyspace, verify_every_s=None)
    schedule.sweep()
    assert queue.client.dbsize() == 0, "it was only just sent"
    world.redis.hincrby(world.keyspace.task(task.id), "sent", -2 * SEND_AGAIN_MS)
    with world.workers(1, jobs_url=world.jobs_url):
        assert ended(queue, task).state == DONE


def test_a_message_too_many_does_nothing(world: World, queue: JobQueue) -> None:
    """One process works on a task: others that are sent it stop, and one that lost it writes nothing any more."""
    task = queue.ask("verify", "me")
    tasks = queue.tasks
    mine = tasks.claim(task.id, "somebody")
    assert mine is not None
    other = runner_of(world, "other")
    other.run_task(task.id)
    assert tasks.get(task.id).position == 0

    world.redis.hset(world.keyspace.task_owner(task.id), "deadline", 1)
    other.run_task(task.id)
    done = tasks.get(task.id)
    assert (done.state, done.position) == (DONE, 32)
    with pytest.raises(Conflict):
        tasks.progress(task, mine, {"events": 99})
    with pytest.raises(Conflict):
        tasks.end(task, mine, FAILED)
    other.run_task(task.id)
    other.run_task("no such task")
    assert tasks.get(task.id) == done
    other.queue.close()


def test_a_job_that_fails_says_why_and_is_not_tried_for_ever(world: World, queue: JobQueue) -> None:
    """With the code and the cause; what it did until then stands there too."""
    Own(world, EventsByType)
    task = queue.ask("rebuild", "me", projection="by_type@1")
    runner = runner_of(world, "runner")
    runner.run_task(task.id)
    failed = queue.tasks.get(task.id)
    assert failed.state == FAILED
    assert "PROJECTION_ABSENT" in (failed.error or "")
    assert queue.tasks.open() == []
    runner.queue.close()


def test_an_own_projection_is_rebuilt_and_verified_by_workers_that_know_it(world: World, queue: JobQueue) -> None:
    """By its name and version; verification covers it as well."""
    own = Own(world, EventsByType)
    own.project()
    world.redis.set(world.keyspace.of("s-3").fold("by_type@1", "s-3"), "nonsense")
    with world.workers(1, jobs_url=world.jobs_url, projections=spec(EventsByType)):
        assert ended(queue, queue.ask("verify", "me")).result["codes"] == {"VIEW_UNREADABLE": 1}
        assert ended(queue, queue.ask("rebuild", "me", projection="by_type@1")).result == {"partitions": 32}
        assert ended(queue, queue.ask("verify", "me")).result["codes"] == {}
    own.assert_right()


def test_a_cancelled_job_stops_and_stays_cancelled(world: World, queue: JobQueue) -> None:
    """Also by who begins it at that moment; one that has ended stays as it ended."""
    runner = runner_of(world, "runner")
    task = queue.ask("verify", "me")
    token = queue.tasks.claim(task.id, "somebody")
    assert queue.tasks.cancel(task.id).state == CANCELLED
    assert token is not None
    queue.tasks.release(task.id, token)
    assert queue.tasks.claim(task.id, "late") is not None
    assert queue.tasks.get(task.id).state == CANCELLED
    runner.run_task(task.id)
    assert queue.tasks.get(task.id).position == 0
    assert queue.tasks.open() == []

    done = queue.ask("verify", "me", partitions=[1])
    runner.run_task(done.id)
    assert queue.tasks.cancel(done.id).state == DONE
    runner.queue.close()


def test_in_any_number_of_replicas_a_tick_happens_once(world: World, queue: JobQueue) -> None:
    """Whoever asks first in a tick of the server's clock does it."""
    schedules = [Schedule(queue, world.log.client, world.keyspace, verify_every_s=3600) for _ in range(3)]
    assert [schedule.is_first("verify", 3600) for schedule in schedules] in ([True, False, False], [False] * 3)
    assert schedules[0].is_first("another", 3600)

    began = world.projections.server_ms()
    with world.workers(3, jobs_url=world.jobs_url, verify_every_s=1.0):
        wait_until(lambda: len(queue.tasks.newest(100)) >= 3, timeout_s=60, message="it recurs")
    ticks = world.projections.server_ms() // 1000 - began // 1000 + 1
    assert len(queue.tasks.newest(100)) <= ticks, "once a second"


def test_old_tasks_are_forgotten_and_open_ones_are_not(
    world: World, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ended long ago goes; the list stays bounded."""
    monkeypatch.setattr("workers.tasks.ENDED_KEPT", 2)
    tasks = [queue.tasks.create("verify", [1], {}, "me") for _ in range(6)]
    for at, task in enumerate(tasks):  # one after the other, however many fall into one ms
        world.redis.zadd(world.keyspace.tasks, {task.id: at})
    for task in tasks[1:]:
        queue.tasks.cancel(task.id)
    assert queue.tasks.prune() == 3
    kept = {task.id for task in queue.tasks.newest(10)}
    assert tasks[0].id in kept
    assert len(kept) == 3
    gone = next(task.id for task in tasks if task.id not in kept)
    refused(lambda: queue.tasks.get(gone), NotFound, "TASK_UNKNOWN")


def test_results_of_partitions_add_up() -> None:
    """Numbers are added, counts by code too, findings joined up to what is kept."""
    one = {"codes": {"A": 1}, "events": 2, "findings": [1] * 60}
    both = added(one, {"codes": {"A": 1, "B": 3}, "events": 5, "findings": [2] * 60})
    assert (both["codes"], both["events"], len(both["findings"])) == ({"A": 2, "B": 3}, 7, 100)
    assert added({}, one) == one


# -- by command --------------------------------------------------------------------------------------------------------


def test_jobs_by_command(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """run, ls, show, wait, cancel; exit codes say what came of it."""
    assert run_cli(world, "job", "run", "verify", "--dry-run").code == 0
    assert run_cli(world, "job", "ls").rows == []
    waiting = run_cli(world, "job", "run", "verify").row
    assert (waiting["state"], waiting["done"], waiting["of"]) == (QUEUED, 0, 32)
    assert run_cli(world, "job", "wait", waiting["task"], "--timeout", "0.1").code == 10
    assert run_cli(world, "job", "cancel", waiting["task"]).row["state"] == CANCELLED
    assert run_cli(world, "job", "run", "verify", "--partition", "99").code == 9
    assert run_cli(world, "job", "show", "nothing").code == 4
    assert run_cli(world, "job", "run", "rebuild", "--projection", "nobody").code == 4

    world.redis.delete(world.keyspace.of("s-3").session_view("s-3"))
    with world.workers(1, jobs_url=world.jobs_url):
        assert run_cli(world, "job", "run", "verify", "--wait", "--timeout", "60").code == 1
        assert run_cli(world, "job", "run", "recover", "--wait", "--timeout", "60").code == 0
        assert run_cli(world, "job", "run", "verify", "--wait", "--timeout", "60").code == 0
    assert [row["state"] for row in run_cli(world, "job", "ls").rows] == [DONE, DONE, DONE, CANCELLED]

    monkeypatch.delenv("MUSTER_JOBS__URL")
    off = run_cli(world, "job", "run", "verify")
    assert (off.code, "JOBS_OFF" in off.err) == (3, True)
    assert len(run_cli(world, "job", "ls").rows) == 4, "progress is read without the queues"
    monkeypatch.setenv("MUSTER_JOBS__URL", world.store.url)
    assert run_cli(world, "job", "run", "verify").code == 3, "the store's own database"


def test_jobs_need_a_database_of_their_own(world: World) -> None:
    """Without one there are none."""
    refused(lambda: JobQueue(world.settings(), world.log), Misconfigured, "JOBS_OFF")
    with pytest.raises(Refused, match="USAGE"):
        JobQueue(settings(world), world.log).ask("verify", "me", partitions=[-1])
    assert Tasks(world.log.client, world.keyspace).newest(5) == []
    world.log.append("s-1", did("start"))


# -- scrubbing ---------------------------------------------------------------------------------------------------------


def test_a_round_of_scrubbing_keeps_to_its_budget_and_repairs_what_it_may(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What may be repaired is, and is gone in the next round; all else stands in the result, and waits."""
    monkeypatch.setenv("MUSTER_JOBS__VERIFY_EVENTS", "100000")
    asked = structs.replace(settings(world), jobs=JobSettings(world.jobs_url, auto_repair="view, checkpoint"))
    runner = JobRunner(asked, world.log, registered(asked), "runner")

    def scrubbed() -> dict[str, Any]:
        task = runner.queue.ask_scrub("me")
        assert task is not None
        assert runner.queue.ask_scrub("me") is None, "one at a time"
        runner.run_task(task.id)
        return runner.queue.tasks.get(task.id).result

    first = scrubbed()
    assert (first["codes"], first["sessions"], first["events"], first["sweeps"]) == ({}, 200, 600, 32)

    world.redis.delete(world.keyspace.of("s-3").session_view("s-3"))
    world.redis.delete(world.keyspace.of("s-5").session_view("s-5"), world.keyspace.of("s-5").head("s-5"))
    world.redis.delete(world.keyspace.of("s-9").log("s-9"), world.keyspace.of("s-9").session_view("s-9"))
    second = scrubbed()
    assert second["codes"] == {"VIEW_MISSING": 2, "HEAD_MISSING": 1, "TAIL_LOST": 1}
    assert second["repaired"] == 1
    assert "found 1 HEAD_MISSING, 1 TAIL_LOST, 2 VIEW_MISSING: muster job show" in caplog.text
    third = scrubbed()
    assert third["codes"] == {"VIEW_MISSING": 1, "HEAD_MISSING": 1, "TAIL_LOST": 1}
    assert third["repaired"] == 0
    assert world.log.head("s-9") is not None, "nobody was quarantined"
    runner.queue.close()


def test_a_repair_that_nobody_asked_for_quarantines_nobody(world: World) -> None:
    """A whole partition is built again; a damaged log in it is parked, and left to an operator."""
    asked = structs.replace(settings(world), jobs=JobSettings(world.jobs_url, auto_repair="cursor"))
    runner = JobRunner(asked, world.log, registered(asked), "runner")
    keys = world.keyspace.of("s-3")
    world.redis.hset(keys.cursor("sessions", 2), "position", 10**6)
    world.redis.xdel(keys.log("s-3"), "2-1")
    task = runner.queue.ask_scrub("me")
    assert task is not None

    runner.run_task(task.id)

    assert runner.queue.tasks.get(task.id).result["codes"] == {"CURSOR_AHEAD": 1, "LOG_GAP": 1}
    assert [(one.code, one.quarantined) for one in world.verify()] == [("LOG_GAP", False)]
    runner.queue.close()


def test_scrubbing_recurs_and_everyone_can_read_how_far_it_is(world: World) -> None:
    """`projection lag` says up to where, and what was never read; what is appended is verified soon after."""
    assert run_cli(world, "projection", "lag", output="json").json["verification"]["up_to"] is None
    with world.workers(1, jobs_url=world.jobs_url, verify_every_s=1.0):
        wait_until(lambda: verification(world)["unread"] == 0, timeout_s=60, message="everything was read once")
        world.log.append("s-3", did("broke"))
        wait_until(lambda: verification(world)["position"] == 601, timeout_s=60, message="what changed is verified")
    told = verification(world)
    assert told["drifted"] == told["agents"] == told["events"] == 0
    assert told["up_to"].endswith("Z")


def verification(world: World) -> dict[str, Any]:
    """What `projection lag` says of verification, with the sum of the positions."""
    told: dict[str, Any] = run_cli(world, "projection", "lag", output="json").json["verification"]
    return told | {"position": sum(part["position"] or 0 for part in told["partitions"])}
