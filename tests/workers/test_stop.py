"""`muster stop`: every worker of a store drains, on whichever host, and whoever does not is named."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import structs

from domain.log import connect, create_store
from projections.lease import RECOVERY_PREFIX, Leases
from tests.conftest import ENVIRONMENT, Store
from tests.main_job.running import Dev
from tests.own_server import OwnServer
from tests.projections.world import World, notes, run_cli
from tests.waiting import wait_until
from workers.child_process import ChildProcess, start_child
from workers.cli import main
from workers.halting import HALTED_EXIT, Halting
from workers.health.looking import Health
from workers.jobs import JobQueue
from workers.settings import JobSettings
from workers.tasks import Tasks

MUSTER: Final = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]
JOBS_DB: Final = 9
#: Of workers that are to be seen all the while, however long they are not given the processor.
LASTING: Final[dict[str, Any]] = {"lease_ttl_ms": 60_000, "beat_ms": 500}


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=4))


@contextmanager
def kept_alive(world: World, said: Path, processes: int = 2) -> Iterator[ChildProcess]:
    """A `worker run` whose lines go to a file; it is told to end after the block, and ends with 0."""
    with said.open("wb") as file:
        command = [*MUSTER, "worker", "run", "--processes", str(processes)]
        child = start_child(command, env=world.environ(**LASTING), stderr=file)
    try:
        yield child
        child.terminate()
        assert child.wait(60) == 0, said.read_text()
    finally:
        child.kill()
        child.wait()


def test_all_workers_stop_and_nobody_starts_them_again_until_the_stop_is_taken_back(
    world: World, tmp_path: Path
) -> None:
    """Each drains, is not started again, and whoever keeps it says why; afterwards they go on where they stood."""
    said = tmp_path / "said"
    with kept_alive(world, said), world.workers(1, **LASTING) as (alone,):
        world.log.append("s", notes(3))
        wait_until(lambda: len(world.shares()) == 3, message="three workers live")
        world.wait_until_caught_up()

        ran = run_cli(world, "stop", "--why", "the disk is exchanged")

        assert (ran.code, ran.row["stopped"], ran.row["forced"], ran.row["working"]) == (0, 3, 0, [])
        assert list(Halting(world.redis, world.keyspace).notes().values()) == ["stopped"] * 3
        assert re.match(r"announced: the fleet is stopped by .*: the disk is exchanged; 3 work\n", ran.err)
        assert "stopped: 3 processes; nothing is in flight" in ran.err
        assert alone.wait(60) == HALTED_EXIT
        assert world.leases.owners() == [None] * 4
        assert run_cli(world, "worker", "ls").rows == []
        assert "the disk is exchanged" in run_cli(world, "worker", "ls").err
        wait_until(lambda: said.read_text().count("stays down: the fleet is stopped") == 2)
        wait_until(lambda: "workers wait for `muster stop --cancel`" in said.read_text(), message="it says why")
        (workers,) = Health(world.settings()).look(["workers"])
        assert (workers.code, workers.since_ms) == ("FLEET_STOPPED", ran.row["stop"]["at_ms"])
        world.log.append("s", notes(3))
        assert "runs again" not in said.read_text()

        assert run_cli(world, "stop", "--cancel").row["cancelled"]["why"] == "the disk is exchanged"

        world.wait_until_caught_up()
        wait_until(lambda: len(world.shares()) == 2, message="both are started again")
    assert run_cli(world, "stop", "--cancel").code == 4
    audited = [fields[b"what"] for _, fields in world.redis.xrange(world.keyspace.audit)]
    assert audited == [b"fleet stopped", b"stop of the fleet taken back"]


def test_a_worker_that_is_started_meanwhile_says_so_and_touches_nothing(world: World, tmp_path: Path) -> None:
    """It ends with a code of its own, so that whoever keeps it alive knows; signals end who waits, with 0."""
    Halting(world.redis, world.keyspace).order("ann", "a new release")
    said = tmp_path / "said"
    before = world.store.snapshot()
    with said.open("wb") as file:
        child = start_child([sys.executable, "-m", "workers.process"], env=world.environ(), stderr=file)
    assert child.wait(60) == HALTED_EXIT
    assert "FLEET_STOPPED: the fleet is stopped by ann since" in said.read_text()
    assert world.store.snapshot() == before

    with kept_alive(world, said, processes=1):
        wait_until(lambda: "stays down" in said.read_text(), message="it waits")
    assert world.store.snapshot() == before


def test_who_hangs_is_named_and_waited_for_again(world: World) -> None:
    """A frozen process: exit 10 with its pid and its host; once it goes on, a second `stop` finds all stopped."""
    with world.workers(2) as children:
        world.wait_until_shared(children)
        frozen, other = children
        os.kill(frozen.pid, signal.SIGSTOP)

        ran = run_cli(world, "stop", "--timeout", "0.5")
        while len(ran.row["working"]) > 1:
            assert ran.code == 10
            ran = run_cli(world, "stop", "--timeout", "0.5")

        assert ran.code == 10
        assert f"process {frozen.pid} on {os.uname().nodename}" in ran.err.split("error: STOP_UNFINISHED: ")[1]
        assert [(one["pid"], "frozen" in one["why"] or "not seen" in one["why"]) for one in ran.row["working"]] == [
            (frozen.pid, True)
        ]
        assert other.wait(60) == HALTED_EXIT
        os.kill(frozen.pid, signal.SIGCONT)
        assert run_cli(world, "stop").code == 0
        assert frozen.wait(60) == HALTED_EXIT
    assert world.leases.owners() == [None] * 4


def test_who_was_killed_here_has_stopped(world: World) -> None:
    """A process of this host that is gone is not waited for, though its leases stand in its name."""
    with world.workers(1, lease_ttl_ms=60_000) as (child,):
        world.wait_until_shared([child])
        os.kill(child.pid, signal.SIGSTOP)
        with ExitStack() as ended:
            ended.callback(child.wait, 60)
            Halting(world.redis, world.keyspace).order("ann", "")
            assert run_cli(world, "stop", "--timeout", "0.5").code == 10
            child.kill()
        world.redis.delete(*(keys.owner("sessions") for keys in world.keyspace.partitions))
        assert run_cli(world, "stop").code == 0


def test_who_was_killed_while_it_drained_has_stopped(world: World, tmp_path: Path) -> None:
    """Also for a `stop` that begins after its last sign of life: its name says that it ran here."""
    world.log.append("killer", notes(2))
    cause = tmp_path / "cause"
    cause.touch()
    environ = world.environ(drain_s=600) | {"MORTAL_FILE": str(cause)}
    with start_child([sys.executable, "-m", "tests.workers.mortal", "killer", "1", "hang"], env=environ) as child:
        try:
            wait_until(Path(f"{cause}.met").exists, message="it is in the middle of a batch")
            Halting(world.redis, world.keyspace).order("ann", "")
            wait_until(Halting(world.redis, world.keyspace).notes, message="it drains")
            ran = run_cli(world, "stop", "--timeout", "0.1")
            assert (ran.code, [one["pid"] for one in ran.row["working"]]) == (10, [child.pid])
        finally:
            child.kill()
    wait_until(lambda: not world.shares(), message="its sign of life has lapsed")

    assert run_cli(world, "stop", "--timeout", "30").code == 0, "its leases run out"


def test_a_batch_that_does_not_end_is_forced_and_read_again(world: World, tmp_path: Path) -> None:
    """Past the worker's own deadline it ends in the middle of it; nothing is lost."""
    world.log.append("killer", notes(2))
    cause = tmp_path / "cause"
    cause.touch()
    environ = world.environ(drain_s=0.3) | {"MORTAL_FILE": str(cause)}
    with start_child([sys.executable, "-m", "tests.workers.mortal", "killer", "1", "hang"], env=environ) as child:
        try:
            wait_until(Path(f"{cause}.met").exists, message="it is in the middle of a batch")
            ran = run_cli(world, "stop")
            assert (ran.code, ran.row["forced"], ran.row["working"]) == (0, 1, [])
            assert child.wait(60) == 10
        finally:
            child.kill()

    run_cli(world, "stop", "--cancel")
    with world.workers(1):
        world.wait_until_caught_up()
    assert world.verify() == []


def test_a_recovery_by_hand_is_named(world: World) -> None:
    """It is no worker, and yet at work: who holds a partition is waited for."""
    recovery = Leases(world.redis, world.keyspace, f"{RECOVERY_PREFIX}ann@here:1")
    token = recovery.claim(2, ttl_ms=60_000)
    assert token is not None

    ran = run_cli(world, "stop", "--timeout", "0.1")

    assert (ran.code, "recovery:ann@here:1 holds partition 2 of sessions" in ran.err) == (10, True)
    recovery.release(2, token)
    assert run_cli(world, "stop").code == 0


def test_a_job_that_somebody_does_is_named(world: World) -> None:
    """Also one of a process that holds no partition and gives no sign of life."""
    tasks = Tasks(world.redis, world.keyspace)
    task = tasks.create("verify", [0], {}, "me")
    token = tasks.claim(task.id, f"elsewhere:7:abc:{task.id}")
    assert token is not None

    ran = run_cli(world, "stop", "--timeout", "0.1")

    assert (ran.code, f"elsewhere:7:abc does job {task.id} (verify)" in ran.err) == (10, True), ran.err
    tasks.release(task.id, token)
    assert run_cli(world, "stop").code == 0


def test_a_job_is_given_back(server_url: str, world: World) -> None:
    """Who does it stops after the partition it is in; when the stop is taken back it is gone on with."""
    url = f"{server_url.rpartition('/')[0]}/{JOBS_DB}"
    settings = structs.replace(world.settings(), jobs=JobSettings(url))
    queue = JobQueue(settings, world.log)
    world.sessions(40)
    world.project()
    try:
        with world.workers(1, jobs_url=url) as (child,):
            task = queue.ask("rebuild", "me", partitions=list(range(4)) * 100)
            wait_until(lambda: queue.tasks.get(task.id).position > 3, timeout_s=60, message="it is under way")
            assert run_cli(world, "stop").code == 0
            assert list(Halting(world.redis, world.keyspace).notes().values()) == ["stopped"]
            assert child.wait(60) == HALTED_EXIT
        handed = queue.tasks.get(task.id)
        assert handed.holder is None
        assert 3 < handed.position < 400
        run_cli(world, "stop", "--cancel")
        with world.workers(1, jobs_url=url):
            wait_until(lambda: queue.tasks.get(task.id).state == "done", timeout_s=60, message="it is done")
    finally:
        with connect(settings.redis) as client:
            client.execute_command("SELECT", JOBS_DB)
            client.flushdb()
        queue.close()


def test_a_rehearsal_stops_nobody(world: World) -> None:
    """It names who would be stopped, and writes nothing."""
    with world.workers(1, **LASTING) as (child,):
        world.wait_until_shared([child])
        ran = run_cli(world, "stop", "--dry-run")
        assert [one["pid"] for one in ran.row["working"]] == [child.pid]
        assert not world.redis.exists(world.keyspace.halt)
        assert child.poll() is None


# -- the server ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["redis7", "valkey"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OwnServer]:
    """A server that keeps nothing by its own settings, with a store."""
    server = OwnServer(tmp_path / "server", kind=request.param)
    server.start()
    try:
        with server.client() as client:
            create_store(client, environment=ENVIRONMENT, namespace="main", partitions=2)
        yield server
    finally:
        server.stop()


def stop(server: OwnServer, *more: str) -> tuple[int, str, dict[str, Any]]:
    """`muster stop` on a server's store: exit code, what it said, and what it printed."""
    where = ["--url", server.url, "--environment", ENVIRONMENT, "--namespace", "main", "-o", "json"]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["stop", *more, *where])
    return code, err.getvalue(), json.loads(out.getvalue() or "{}")


def test_a_server_is_ended_with_all_it_holds_on_its_disk(own: OwnServer) -> None:
    """Also one that has neither an append-only file nor snapshots: what was acknowledged is there after a start."""
    with own.client() as client:
        client.set("kept", "1")

    code, said, told = stop(own, "--server")

    assert (code, "server: ended, with all it held on its disk" in said) == (0, True), said
    assert told["server_ended"]
    own.kill()  # which has ended: only its process is taken leave of
    own.start()
    with own.client() as client:
        assert client.get("kept") == b"1"
        # the stop stands: workers wait until it is taken back
        assert client.hget(f"{{{ENVIRONMENT}:main:store}}:halt", "who")


def test_a_server_that_cannot_write_goes_on(own: OwnServer) -> None:
    """To end it would lose what it holds; exit 5 says what is to be mended first."""
    (own.directory / "dump.rdb" / "a folder is in the way").mkdir(parents=True)

    code, said, _ = stop(own, "--server")

    assert (code, "SERVER_CANNOT_PERSIST: it could not save, so it goes on" in said) == (5, True), said
    with own.client() as client:
        assert client.ping()


def test_dev_ends_with_its_server(tmp_path: Path) -> None:
    """`stop --server` drains its workers and ends its server, which is not started again: dev ends with 0."""
    settings = {"MUSTER_WORKER__LEASE_TTL_MS": "60000", "MUSTER_WORKER__BEAT_MS": "500"}
    with Dev(tmp_path, tmp_path / "data", **settings) as dev:
        dev.muster.ok("event", "append", "s", "start", "--actor", "a")
        dev.muster.caught_up()
        wait_until(lambda: len(dev.muster.rows("worker", "ls")) == 2, message="both workers live")
        told = dev.muster.document("stop", "--server")
        assert (told["stopped"], told["working"]) == (2, [])
        assert dev.ended() == 0, dev.err
        assert "it was told to shut down" in dev.err
    with Dev(tmp_path, tmp_path / "data") as dev:
        dev.muster.ok("stop", "--cancel")
        dev.muster.ok("event", "append", "s", "joined", "--actor", "b")
        dev.muster.caught_up()
        assert dev.muster.sessions()["s"]["seq"] == 2
