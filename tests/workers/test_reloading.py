"""Settings that change while processes run: real ones, whose file is written anew or that are sent SIGHUP."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import structs

from domain import Misconfigured
from tests.conftest import ENVIRONMENT, Store, children
from tests.projections.world import World
from tests.waiting import wait_until
from workers.child_process import ChildProcess, start_child
from workers.reloading import InForce, Reloading, difference
from workers.serving import HealthServer
from workers.settings import RELOADABLE, Reading, ServeSettings, Settings, load, shown, values

MUSTER: Final = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]
TOKEN, OTHER = "a-token-of-the-test", "b-token-of-the-test"


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=2))


class Running:
    """A process with a file of settings, and what it said."""

    def __init__(self, world: World, directory: Path) -> None:
        self._world = world
        self.toml = directory / "own.toml"
        self._said = directory / "said"
        self.child: ChildProcess | None = None

    @contextmanager
    def started(self, *command: str, toml: str, **given: str) -> Iterator[ChildProcess]:
        self.write(toml)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        environ |= {
            "MUSTER_CONFIG": str(self.toml),
            "MUSTER_REDIS__URL": self._world.store.url,
            "MUSTER_ENVIRONMENT": ENVIRONMENT,
            "MUSTER_NAMESPACE": self._world.store.namespace,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        } | given
        with self._said.open("wb") as stderr:
            child = start_child([*MUSTER, *command], env=environ, stderr=stderr)
        try:
            yield child
            child.terminate()
            assert child.wait(60) == 0, self.said
        finally:
            child.kill()
            child.wait()

    def write(self, toml: str) -> None:
        """As one step, like an editor that is careful."""
        beside = self.toml.with_suffix(".new")
        beside.write_text(toml)
        beside.rename(self.toml)

    @property
    def said(self) -> str:
        return self._said.read_text()

    def wait_until_said(self, words: str) -> None:
        wait_until(lambda: words in self.said, message=f"{words!r} is said")

    def audited(self) -> list[dict[str, Any]]:
        entries = self._world.redis.xrange(self._world.keyspace.audit)
        return [json.loads(fields[b"changes"]) for _, fields in entries if fields[b"what"] == b"settings reloaded"]


@pytest.fixture
def running(world: World, tmp_path: Path) -> Running:
    return Running(world, tmp_path)


def lifetimes(world: World) -> list[int]:
    """For how long each worker's sign of life is good: four beats."""
    names = world.redis.zrange(world.keyspace.workers, 0, -1)
    return [world.redis.pttl(world.keyspace.worker(name.decode())) for name in names]


QUICK: Final = "[worker]\nprocesses = 2\nbeat_ms = 100\nlease_ttl_ms = 1000\n"
SLOW: Final = "[worker]\nprocesses = 2\nbeat_ms = 2000\nlease_ttl_ms = 8000\n"


def test_workers_take_what_changes_in_the_file(world: World, running: Running) -> None:
    """Those that run, without a new start, and those that are started later; it is said, and audited."""
    with running.started("worker", "run", toml=QUICK) as child:
        pids: set[int] = set()  # of all that were seen: a sign of life that lasts so shortly may lapse

        def are_seen() -> bool:
            pids.update(world.shares())
            return len(pids) == 2

        wait_until(are_seen, timeout_s=60, message="both live")
        assert all(lifetime <= 400 for lifetime in lifetimes(world))

        running.write(SLOW)

        wait_until(lambda: [one > 4000 for one in lifetimes(world)] == [True, True], message="both beat slower")
        assert world.shares().keys() == pids
        running.wait_until_said("worker.beat_ms: 100 → 2000")
        wait_until(running.audited, message="it is audited")
        (changes,) = running.audited()
        assert changes == {
            "worker.beat_ms": {"was": 100, "is": 2000},
            "worker.lease_ttl_ms": {"was": 1000, "is": 8000},
        }
        victim = min(pids)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(set(children(child.pid)) - pids) == 1, message="another one is started")
        (fresh,) = set(children(child.pid)) - pids
        wait_until(lambda: fresh in world.shares(), timeout_s=60, message="it lives")
        (name,) = [one for one in world.redis.zrange(world.keyspace.workers, 0, -1) if b":%d:" % fresh in one]
        assert world.redis.pttl(world.keyspace.worker(name.decode())) > 4000


def test_workers_take_what_changes_also_where_their_number_is_another(world: World, running: Running) -> None:
    """By `--processes`: the number that the settings name is nobody's then."""
    with running.started("worker", "run", "--processes", "1", toml=QUICK):
        wait_until(lambda: len(world.shares()) == 1, timeout_s=60, message="it lives")
        running.write(SLOW)
        wait_until(lambda: [one > 4000 for one in lifetimes(world)] == [True], message="it beats slower")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[worker\n", "SETTING_INVALID"),
        ("[worker]\nprocesses = 2\nbeat_ms = 2000\nlease_ttl_ms = 1000\n", "every one runs out"),
        ("[worker]\nprocesses = 2\nbeet_ms = 2000\n", "did you mean 'worker.beat_ms'?"),
        (SLOW.replace("processes = 2", "processes = 3"), "fixed at the start: worker.processes (2 → 3)"),
    ],
)
def test_a_bad_file_changes_nothing(world: World, running: Running, toml: str, words: str) -> None:
    """Neither of its good settings nor for those that are started later; when it is mended, it is taken."""
    with running.started("worker", "run", toml=QUICK) as child:
        wait_until(lambda: len(world.shares()) == 2, timeout_s=60, message="both live")
        running.write(toml)
        running.wait_until_said(words)
        assert "settings not reloaded" in running.said
        os.kill(min(children(child.pid)), signal.SIGKILL)
        running.wait_until_said("runs again")
        wait_until(lambda: len(world.shares()) == 2, timeout_s=60, message="both live again")
        assert all(lifetime <= 400 for lifetime in lifetimes(world))
        assert running.audited() == []

        running.write(QUICK + "drain_s = 7\n")
        running.wait_until_said("worker.drain_s: 20.0 → 7.0")


def test_sighup_has_it_read_at_once(running: Running) -> None:
    """Also where nothing differs, which is said; whoever keeps workers does not end by it."""
    with running.started("worker", "run", toml=QUICK) as child:
        running.wait_until_said("workers run: ")
        wait_until(lambda: takes_hangups(child.pid), message="it takes the signal")
        child.send_signal(signal.SIGHUP)
        running.wait_until_said("settings reloaded: nothing differs")
        assert child.poll() is None


def takes_hangups(pid: int) -> bool:
    caught = int(re.findall(r"SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())[0], 16)
    return bool(caught >> (signal.SIGHUP - 1) & 1)


def asked(port: int, token: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def test_serve_takes_another_token_and_other_thresholds(running: Running) -> None:
    """Without a new start and on the same port; the secret is neither said nor audited."""
    with running.started("serve", "--port", "0", toml=f'[serve]\ntoken = "{TOKEN}"\n'):
        running.wait_until_said("/health")
        port = int(re.findall(r":(\d+)/health", running.said)[0])
        assert asked(port, TOKEN) in (200, 503)
        assert asked(port, OTHER) == 401

        running.write(f'[serve]\ntoken = "{OTHER}"\n[health]\nlag_warning_s = 3\n[alerts]\nrules = ""\n')

        wait_until(lambda: asked(port, OTHER) in (200, 503), message="the other token is taken")
        assert asked(port, TOKEN) == 401
        running.wait_until_said("serve.token: *** → ***")
        wait_until(running.audited, message="it is audited")
        (changes,) = running.audited()
        assert changes["health.lag_warning_s"] == {"was": 10.0, "is": 3.0}
        assert changes["serve.token"] == {"was": "***", "is": "***"}
        assert TOKEN not in running.said
        assert OTHER not in running.said + json.dumps(changes)


def test_a_secret_is_taken_from_its_file_when_that_changes(running: Running, tmp_path: Path) -> None:
    """As a rotated secret is mounted: the variable stays, what it names is another."""
    secret = tmp_path / "token"
    secret.write_text(TOKEN + "\n")
    with running.started("serve", "--port", "0", toml="", MUSTER_SERVE__TOKEN_FILE=str(secret)):
        running.wait_until_said("/health")
        port = int(re.findall(r":(\d+)/health", running.said)[0])
        assert asked(port, TOKEN) in (200, 503)

        beside = tmp_path / "token.new"
        beside.write_text(OTHER + "\n")
        beside.rename(secret)

        wait_until(lambda: asked(port, OTHER) in (200, 503), message="the other token is taken")
        assert asked(port, TOKEN) == 401


def test_what_was_written_while_a_process_started_is_taken(world: World, tmp_path: Path) -> None:
    """It was read first of all, and is watched once all else runs."""
    toml, said = tmp_path / "own.toml", list[str]()
    toml.write_text(QUICK)
    where = {"MUSTER_REDIS__URL": world.store.url, "MUSTER_NAMESPACE": world.store.namespace}
    reading = Reading(where | {"MUSTER_ENVIRONMENT": ENVIRONMENT}, toml=toml)
    in_force = InForce(reading.loaded().valid())
    with Reloading(reading, in_force, who="tester", say=said.append).running():
        pass
    assert said == []

    toml.write_text(SLOW)
    with Reloading(reading, in_force, who="tester", say=said.append).running():
        wait_until(lambda: said, message="it says so")
    assert in_force.settings.worker.beat_ms == 2000
    assert said == ["settings reloaded: worker.lease_ttl_ms: 1000 → 8000; worker.beat_ms: 100 → 2000"]


def test_a_token_that_is_needed_is_not_taken_away() -> None:
    """Beyond loopback nobody is served without one, also not because of a file that lost it."""
    settings = Settings(serve=ServeSettings("0.0.0.0", 0, TOKEN))
    in_force = InForce(settings)
    with HealthServer(settings) as server:
        in_force.tell(server.take, check=server.check)
        with pytest.raises(Misconfigured, match=r"serve\.token"):
            in_force.swap(structs.replace(settings, serve=ServeSettings("0.0.0.0", 0)))
        assert (server.token, in_force.settings) == (TOKEN, settings)


def test_the_table_of_what_may_change() -> None:
    """It names settings that there are; what says which store or server is meant is not in it; secrets are masked."""
    names = set(shown(Settings()))
    assert names >= RELOADABLE
    assert not {
        name for name in RELOADABLE if name.split(".")[0] in ("redis", "environment", "namespace", "partitions")
    }
    before, after = load({}), load({"MUSTER_REDIS__PASSWORD": TOKEN, "MUSTER_NAMESPACE": "n"})
    assert difference(before, after) == {"namespace": ("main", "n"), "redis.password": (None, "***")}
    assert values(after)["redis.password"] == TOKEN
