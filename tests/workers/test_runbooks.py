"""docs/runbooks: each symptom is made, what the runbook says to see and to mend is run as it stands, and it is gone.

And docs/operations.md: what it lists is what there is.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any, Final
from unittest.mock import patch

import msgspec
import pytest

from domain import Damaged, Event, SessionLog
from domain.log import Connecting, create_store
from domain.log.keys import Keyspace
from projections.store import Parked
from tests.conftest import missing
from tests.domain.log.subscribing.deliveries import rest
from tests.own_server import OwnServer
from tests.unhurried import unhurried
from tests.waiting import wait_until
from workers.child_process import ChildProcess, start_child
from workers.cli import main
from workers.health.probes import PROBES
from workers.settings import PROFILES, RELOADABLE, RELOADABLE_SECTIONS, Settings, shown

DOCS: Final = Path(__file__).parents[2] / "docs"
RUNBOOKS: Final = sorted(path.stem for path in (DOCS / "runbooks").glob("*.md"))
PASSWORD: Final = "s3cr3t-pa55-of-the-test"
KEYSPACE: Final = Keyspace("dev", "main", 2)


class Ill:
    """A server with a store of two sessions and a worker, as somebody on call has it before him."""

    def __init__(self, server: OwnServer, stack: ExitStack) -> None:
        self.server = server
        self.stack = stack
        self.child: ChildProcess | None = None
        self.ends: Callable[[], None] = lambda: None
        own = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        self.environ = own | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "MUSTER_REDIS__URL": server.url,
            "MUSTER_REDIS__RETRY_FOR_S": "0",
            **unhurried(),
        }

    def config(self, name: str, value: str) -> None:
        with self.server.client() as client:
            client.config_set(name, value)

    def command(self, *words: str) -> None:
        with self.server.client() as client:
            client.execute_command(*words)

    def work(self) -> None:
        """Starts a worker, which ends with the test, and waits until it has done all there is."""
        environ = self.environ | {"PYTHONPATH": str(DOCS.parent)}
        child = self.stack.enter_context(start_child([sys.executable, "-m", "workers.process"], env=environ))
        self.stack.callback(child.wait, 60)
        self.stack.callback(child.terminate)
        wait_until(lambda: self.found("worker", "ls"), timeout_s=60, message="it lives")
        wait_until(lambda: self.found("projection", "lag", "--wait", "--timeout", "60"), message="it has done all")

    def found(self, *words: str) -> str:
        """What a command prints, if it succeeds."""
        code, out = self.told(*words, "-o", "jsonl")
        return out if code == 0 else ""

    def told(self, *words: str) -> tuple[int, str]:
        """The exit code of a command, and what it prints. In this process: what is waited for is asked many times."""
        out = io.StringIO()
        with patch.dict(os.environ, self.environ, clear=True), redirect_stdout(out), redirect_stderr(io.StringIO()):
            code = main(words)
        return code, out.getvalue()

    def ran(self, block: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", block],
            env=self.environ,
            cwd=self.server.directory,
            capture_output=True,
            text=True,
            check=False,
        )

    def codes(self) -> set[str]:
        return {one["code"] for one in self.diagnosis()["findings"]}

    def diagnosis(self) -> dict[str, Any]:
        diagnosis: dict[str, Any] = json.loads(self.told("doctor", "-o", "json")[1])
        return diagnosis


@pytest.fixture
def ill(tmp_path: Path) -> Iterator[Ill]:
    if shutil.which("redis-cli") is None:
        missing("there is no redis-cli on the PATH")
    server = OwnServer(tmp_path / "server", "--appendonly", "yes", "--maxmemory", "200mb")
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        with server.client() as client:
            create_store(client, environment="dev", namespace="main", partitions=2)
        with SessionLog.open(Connecting(server.url), environment="dev", namespace="main") as log:
            for session in ("a", "b"):
                log.append(session, [Event.of("start", actor="x"), Event.of("completed", actor="x")])
        yield Ill(server, stack)


def parked(ill: Ill) -> None:
    ill.work()
    reason = msgspec.json.encode(Parked("EVENT_UNREADABLE", "an older worker could not read it", 2))
    with ill.server.client() as client:
        client.hset(KEYSPACE.of("a").parked("sessions"), "a", reason)


def drifted(ill: Ill) -> None:
    ill.work()
    with ill.server.client() as client:
        client.delete(KEYSPACE.of("a").session_view("a"))


def denied(ill: Ill) -> None:
    ill.config("requirepass", PASSWORD)


def let_in(ill: Ill) -> None:
    ill.environ["MUSTER_REDIS__PASSWORD"] = PASSWORD


def wrongly_set(ill: Ill) -> None:
    ill.environ["MUSTER_WORKER__THREADS"] = "many"


def rightly_set(ill: Ill) -> None:
    ill.environ["MUSTER_WORKER__THREADS"] = "3"


def spooled(ill: Ill) -> None:
    path = ill.server.directory / "spool.db"
    ill.environ["MUSTER_SPOOL__PATH"] = str(path)
    connecting = Connecting(ill.server.url, retry_for_s=0)
    with SessionLog.open(connecting, environment="dev", namespace="main", spool=path) as log:
        ill.server.kill()
        log.append("c", Event.of("start", actor="x", id="c-1"))


def without_room(ill: Ill) -> None:
    """Its next append-only file is /dev/full."""
    ill.config("appendonly", "no")
    (ill.server.directory / "appendonlydir" / "temp-appendonly.aof.incr").symlink_to("/dev/full")
    ill.config("appendonly", "yes")
    ill.command("SET", "anything", "1")
    wait_until(lambda: "SERVER_CANNOT_PERSIST" in ill.codes())


def with_room(ill: Ill) -> None:
    ill.config("appendonly", "no")
    for path in (ill.server.directory / "appendonlydir").iterdir():
        if path.is_symlink():
            path.unlink()
    ill.config("appendonly", "yes")


@contextmanager
def opened(ill: Ill) -> Iterator[SessionLog]:
    with SessionLog.open(Connecting(ill.server.url), environment="dev", namespace="main") as log:
        yield log


def frozen(ill: Ill) -> None:
    ill.environ["MUSTER_HEALTH__TIMEOUT_S"] = "1"
    ill.server.pause()


def slowed(ill: Ill) -> None:
    """Clients keep it busy, for longer at a time than may be."""
    ill.environ["MUSTER_HEALTH__LATENCY_WARNING_S"] = "0.01"
    ill.environ |= {"MUSTER_WORKER__LEASE_TTL_MS": "60000", "MUSTER_WORKER__BEAT_MS": "10000"}  # it shall live on
    ill.work()
    stop = Flag()
    busy = "local t = redis.call('TIME') repeat local n = redis.call('TIME') until (n[1]-t[1])*1e6+n[2]-t[2] > 25000"

    def hog() -> None:
        with ill.server.client() as client:
            while not stop.is_set():
                client.eval(busy, 0)

    hogs = [Thread(target=hog) for _ in range(2)]
    for one in hogs:
        one.start()

    def end() -> None:
        stop.set()
        for one in hogs:
            one.join()

    ill.ends = end
    ill.stack.callback(end)


def unslowed(ill: Ill) -> None:
    ill.ends()


def with_a_gap(ill: Ill) -> None:
    ill.environ["SESSION"] = "gap"
    ill.work()
    with opened(ill) as log:
        for number in range(3):
            log.append("gap", Event.of("modified", actor="x", id=f"g{number}"))
    assert ill.found("projection", "lag", "--wait", "--timeout", "60")
    ill.command("XDEL", KEYSPACE.of("gap").log("gap"), "2-1")


def with_a_loss(ill: Ill) -> None:
    """A producer has a receipt for what is not there any more."""
    with opened(ill) as log:
        log.append("lost", Event.of("start", actor="x"))
        keys = KEYSPACE.of("lost")
        ill.command("DEL", keys.log("lost"), keys.head("lost"))
        ill.command("ZREM", keys.sessions, "lost")
        with suppress(Damaged):
            log.append("lost", Event.of("joined", actor="x"))


def forsaken(ill: Ill) -> None:
    """A member acknowledged something, then went away, and more came."""
    ill.environ["SUBSCRIPTION"] = "audit"
    ill.work()
    with opened(ill) as log, log.subscribe_as("audit", after="beginning") as member:
        assert member.get(timeout_s=30) is not None
        member.ack()
    with opened(ill) as log:
        log.append("c", Event.of("start", actor="x"))


def subscribed_again(ill: Ill) -> None:
    with opened(ill) as log, log.subscribe_as("audit", after="beginning") as member:
        rest(member)
        member.ack()


def hanging(ill: Ill, **settings: str) -> None:
    """The one worker hangs at a commit for as long as a file is there."""
    cause = ill.server.directory / "cause"
    cause.touch()
    environ = ill.environ | {"PYTHONPATH": str(DOCS.parent), "MORTAL_FILE": str(cause)} | settings
    ill.child = start_child([sys.executable, "-m", "tests.workers.mortal", "a", "1", "hang"], env=environ)
    ill.stack.callback(ill.child.wait)
    ill.stack.callback(ill.child.kill)
    wait_until(Path(f"{cause}.met").exists, timeout_s=60, message="it is in the middle of a batch")


def stuck(ill: Ill) -> None:
    ill.environ["MUSTER_HEALTH__LAG_WARNING_S"] = "0.5"
    hanging(ill)
    wait_until(lambda: "PROJECTION_BEHIND" in ill.codes(), timeout_s=60)


def unstuck(ill: Ill) -> None:
    """The process that the doctor names is ended, and another one is started."""
    (ill.server.directory / "cause").unlink()
    (pid,) = re.findall(r"held by [^ :]+:(\d+):", ill.ran("muster doctor").stdout.splitlines()[0])
    os.kill(int(pid), signal.SIGKILL)
    assert ill.child is not None
    ill.child.wait()
    ill.work()


def not_stopping(ill: Ill) -> None:
    hanging(ill, MUSTER_WORKER__DRAIN_S="600")
    ill.environ["MUSTER_WORKER__DRAIN_S"] = "0.5"
    assert ill.ran("muster stop --timeout 0.5").returncode == 10
    wait_until(lambda: "STOP_UNFINISHED" in ill.codes(), timeout_s=60)


def killed(ill: Ill) -> None:
    (pid,) = re.findall(r"has not stopped: process (\d+) on ", ill.ran("muster doctor").stdout.splitlines()[0])
    os.kill(int(pid), signal.SIGKILL)
    assert ill.child is not None
    ill.child.wait()


def nothing(ill: Ill) -> None:
    pass


#: How each symptom is made, and what is done by hand between seeing and mending.
SYMPTOMS: Final[dict[str, tuple[Callable[[Ill], Any], Callable[[Ill], Any]]]] = {
    "server-down": (lambda ill: ill.server.kill(), lambda ill: ill.server.start()),
    "server-frozen": (frozen, lambda ill: ill.server.resume()),
    "access-denied": (denied, let_in),
    "memory-full": (lambda ill: ill.config("maxmemory", "600kb"), nothing),
    "server-evicts": (lambda ill: ill.config("maxmemory-policy", "allkeys-lru"), nothing),
    "persistence-off": (lambda ill: ill.config("appendonly", "no"), nothing),
    "functions-missing": (lambda ill: ill.command("FUNCTION", "FLUSH"), nothing),
    "read-only": (lambda ill: ill.ran("muster read-only on --why 'a look'"), nothing),
    "fleet-stopped": (lambda ill: ill.ran("muster stop --why 'a new release'"), nothing),
    "no-workers": (nothing, Ill.work),
    "parked-sessions": (parked, nothing),
    "drift": (drifted, nothing),
    "bad-settings": (wrongly_set, rightly_set),
    "spool-waits": (spooled, lambda ill: ill.server.start()),
    "disk-full": (without_room, with_room),
    "server-slow": (slowed, unslowed),
    "log-damaged": (with_a_gap, nothing),
    "lost-commits": (with_a_loss, nothing),
    "subscriber-cut": (forsaken, subscribed_again),
    "worker-hangs": (stuck, unstuck),
    "shutdown-hangs": (not_stopping, killed),
}


#: Symptoms that are a matter of taste in development, or behind which another one stands that is worse.
BEHIND_OTHERS: Final = frozenset({"persistence-off", "spool-waits"})


def test_every_runbook_has_its_symptom() -> None:
    """None is there that no test runs."""
    assert sorted(SYMPTOMS) == RUNBOOKS


@pytest.mark.parametrize("name", RUNBOOKS)
def test_what_a_runbook_says_mends_its_symptom(ill: Ill, name: str) -> None:
    """The doctor comes to name it first; its commands are run as they stand: those under See answer, those under Mend
    succeed, and it goes away.
    """
    page = (DOCS / "runbooks" / f"{name}.md").read_text("utf-8")
    (code,) = re.findall(r"\*\*([A-Z_]+)\.\*\*", page)
    see, mend = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    make, by_hand = SYMPTOMS[name]

    make(ill)
    if name in BEHIND_OTHERS:
        wait_until(lambda: code in ill.codes(), message=code)
    else:
        wait_until(lambda: ill.diagnosis()["verdict"].startswith(f"{code}: "), timeout_s=120, message=code)
    for line in see.strip().splitlines():
        ran = ill.ran(line)
        assert ran.returncode in (0, 1, 3), (line, ran)
    by_hand(ill)
    for line in mend.strip().splitlines():
        ran = ill.ran(line)
        assert ran.returncode == 0, (line, ran)
    wait_until(lambda: code not in ill.codes(), message=f"{code} is gone")


def test_the_page_lists_what_there_is() -> None:
    """Every component, every profile with what it sets, and no setting that is none."""
    page = (DOCS / "operations.md").read_text("utf-8")

    assert re.findall(r"^\| (\w+) \|.*\|.*\|.*\|$", page.split("## Health")[1].split("## ")[0], re.MULTILINE) == [
        "component",
        *PROBES,
    ]
    taken = page.split("Taken at run time are")[1].split(";")[0]
    sections = {f"{section}.*" for section in RELOADABLE_SECTIONS}
    names = {name for name in RELOADABLE if name.partition(".")[0] not in RELOADABLE_SECTIONS}
    assert set(re.findall(r"`([a-z_.*]+)`", taken)) == sections | names
    assert f"| | {' | '.join(PROFILES)} |" in page
    for preset in PROFILES.values():
        for setting, value in preset.items():
            assert (value if isinstance(value, str) else f"{value:g}") in page
            assert setting.rpartition(".")[2] in page
    assert (
        set(re.findall(r"`((?:serve|jobs|redis|worker|health|log|telemetry)\.[a-z_]+[a-z])`", page))
        <= shown(Settings()).keys()
    )
