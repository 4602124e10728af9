"""`muster top`: what it shows is what is there, had by commands that block nobody, in place on a real terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any, Final

import pytest

from domain import Event
from domain.log import create_store
from domain.log.read_only import ReadOnlyMode
from tests.conftest import ENVIRONMENT, Store
from tests.own_server import OwnServer
from tests.projections.world import World, notes, run_cli
from tests.waiting import wait_until
from workers.child_process import start_child
from workers.cli import main
from workers.halting import Halting
from workers.overview.hot import ENTRIES, heat
from workers.overview.memory import by_kind

MUSTER: Final = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=4))


def top(server: OwnServer) -> dict[str, Any]:
    """What the command prints of a server's store."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["top", "--url", server.url, "--environment", ENVIRONMENT, "-o", "json"]) == 0
    told: dict[str, Any] = json.loads(out.getvalue())
    return told


def logs(world: World) -> list[bytes]:
    """The keys of all logs."""
    names = world.store.keys()
    return [name for name in names if b":log:" in name]


def test_it_shows_what_there_is(world: World) -> None:
    """Workers, lag, what is hot, what takes memory, what stands in the way; as JSON and as text."""
    world.sessions(8)
    with world.workers(1, lease_ttl_ms=60_000, beat_ms=500) as (child,):
        world.wait_until_shared([child])
        wait_until(lambda: [w["partitions"] for w in run_cli(world, "top").row["workers"]] == [4])
        for _ in range(5):  # last: what is hot cools down
            world.log.append("hot", notes(20))
        world.wait_until_caught_up()
        told = run_cli(world, "top").row
        text = run_cli(world, "top", "--once", output="table").out

    assert told["unseen"] == {}
    assert (told["sessions"], told["notices"]) == (9, [])
    assert [(one["pid"], one["partitions"]) for one in told["workers"]] == [(child.pid, 4)]
    assert [(one["projection"], one["events"]) for one in told["lags"]] == [("sessions@2", 0)]
    assert told["server"]["version"].startswith("valkey ")
    hottest = told["heat"]["sessions"][0]
    assert (hottest["session"], hottest["events"]) == ("hot", 100)
    kinds = {one["kind"]: one for one in told["memory"]}
    assert {"logs", "heads", "session views", "indexes", "registry", "feeds", "agent views"} <= kinds.keys()
    assert (kinds["logs"]["owners"], kinds["logs"]["measured"]) == (9, 9)
    for title in ("PROJECTION", "WORKER", "HOT SESSIONS", "MEMORY, ABOUT"):
        assert title in text
    assert re.search(r"^hot +\d", text, re.MULTILINE)


def test_who_stands_in_the_way_is_said_first(world: World) -> None:
    """A stop of the fleet, and a store that is closed for appends."""
    Halting(world.redis, world.keyspace).order("ann", "a new release")
    ReadOnlyMode(world.log).close("bob", "a move")

    text = run_cli(world, "top", output="table").out.splitlines()

    assert "the fleet is stopped by ann" in text[1]
    assert "takes no appends, by bob: a move" in text[2]


def test_memory_is_what_the_keys_take(world: World) -> None:
    """Where all sessions and partitions are measured, it is exact; the logs of large sessions show."""
    world.sessions(10)
    world.log.append("large", [Event.of("tool.called", actor="a", data={"text": "x" * 100_000})])
    world.project()

    kinds = {one.kind: one for one in by_kind(world.projections, random.Random(1))}

    client: Any = world.redis
    assert kinds["logs"].bytes == sum(client.memory_usage(name, samples=5) for name in logs(world))
    assert kinds["logs"].bytes > 100_000 > kinds["heads"].bytes
    empty = {one.kind: one.bytes for one in by_kind(world.projections, random.Random(2)) if one.kind == "audit"}
    assert empty == {"audit": 0}


def test_a_sample_of_many_sessions_stands_for_all(world: World) -> None:
    """Drawn by chance over all partitions: the estimate of what is alike is close to what it is."""
    world.sessions(300, events=1)

    kinds = {one.kind: one for one in by_kind(world.projections, random.Random(3))}

    client: Any = world.redis
    truth = sum(client.memory_usage(name, samples=5) for name in logs(world))
    assert (kinds["logs"].owners, kinds["logs"].measured) == (300, 64)
    assert kinds["logs"].bytes == pytest.approx(truth, rel=0.1)


def test_a_rate_is_over_the_time_that_was_read(world: World) -> None:
    """A feed with more entries than are read stands for as long as those cover; old entries stand for nothing."""
    for _ in range(ENTRIES + 10):
        world.log.append("busy", notes(1))
    now = world.projections.server_ms()

    found = heat(world.redis, world.keyspace, now)

    assert [(one.session, one.events) for one in found.sessions] == [("busy", ENTRIES)]
    assert found.per_s > ENTRIES / 10
    assert heat(world.redis, world.keyspace, now + 60_000).sessions == []


def test_only_commands_that_block_nobody_are_sent(tmp_path: Path) -> None:
    """No KEYS, no SCAN, no MONITOR, and no more commands for a store of many sessions than for one of few."""
    own = OwnServer(tmp_path / "server")
    own.start()
    try:
        with own.client() as client:
            create_store(client, environment=ENVIRONMENT, namespace="main", partitions=4)
            client.config_resetstat()
            top(own)
            sent = set(client.info("commandstats"))
        assert not {name for name in sent if re.search("keys|scan|monitor|sort|debug|dump", name)}, sent
        assert "cmdstat_memory|usage" in sent
    finally:
        own.stop()


def test_what_a_user_may_not_see_is_said_and_the_rest_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to the slow log there are the other panels."""
    own = OwnServer(tmp_path / "server")
    own.start()
    try:
        with own.client() as client:
            create_store(client, environment=ENVIRONMENT, namespace="main", partitions=2)
            client.execute_command("ACL", "SETUSER", "app", "on", ">pass-of-the-test", "~*", "+@all", "-slowlog")
        monkeypatch.setenv("MUSTER_REDIS__USERNAME", "app")
        monkeypatch.setenv("MUSTER_REDIS__PASSWORD", "pass-of-the-test")
        told = top(own)
        assert (told["slow"], told["unseen"]["slow"][:13]) == (None, "ACCESS_DENIED")
        assert told["workers"] == []
    finally:
        own.stop()


class Terminal:
    """A terminal that a process is at, and all that was written to it."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self.written = b""
        self._ended = Flag()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._ended.is_set():
            if select.select([self._ours], [], [], 0.05)[0]:
                self.written += os.read(self._ours, 65536)

    def close(self) -> None:
        self._ended.set()
        self._reader.join()
        os.close(self._ours)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def test_on_a_terminal_it_refreshes_in_place_and_survives_a_server_that_goes_away(
    tmp_path: Path, terminal: Terminal
) -> None:
    """It writes over what it wrote; without the server it says so and goes on; SIGINT leaves the screen as it was."""
    own = OwnServer(tmp_path / "server")
    own.start()
    try:
        with own.client() as client:
            create_store(client, environment="dev", namespace="main", partitions=2)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        environ |= {"MUSTER_HEALTH__TIMEOUT_S": "0.5", "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [*MUSTER, "top", "--every", "0.1", "--url", own.url]
        with start_child(command, env=environ, stdout=terminal.theirs, stderr=terminal.theirs) as child:
            wait_until(lambda: terminal.written.count(b"\x1b[H") >= 3, timeout_s=60, message="it refreshes")
            own.kill()
            wait_until(lambda: b"UNREACHABLE" in terminal.written, timeout_s=60, message="it says so")
            child.send_signal(signal.SIGINT)
            assert child.wait(60) == 0
        wait_until(lambda: terminal.written.endswith(b"\x1b[?1049l"), message="the screen is left")
        assert terminal.written.startswith(b"\x1b[?1049h")
    finally:
        own.stop()
