"""docs/runbooks: each symptom is made, what the runbook says to see and to mend is run as it stands, and it is gone.

And docs/operations.md: what it lists is what there is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from domain import Event, SessionLog
from domain.log import Connecting, create_store
from domain.log.keys import Keyspace
from projections.store import Parked
from tests.conftest import missing
from tests.own_server import OwnServer
from tests.waiting import wait_until
from workers.child_process import start_child
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
        self._stack = stack
        own = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        self.environ = own | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "MUSTER_REDIS__URL": server.url,
            "MUSTER_REDIS__RETRY_FOR_S": "0",
            "MUSTER_HEALTH__TIMEOUT_S": "1",
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
        child = self._stack.enter_context(start_child([sys.executable, "-m", "workers.process"], env=environ))
        self._stack.callback(child.wait, 60)
        self._stack.callback(child.terminate)
        wait_until(
            lambda: self.ran("muster projection lag --wait --timeout 60 && muster worker ls").stdout.count("\n") > 2
        )

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
        told = json.loads(self.ran("muster doctor -o json").stdout)
        return {one["code"] for one in told["findings"]}


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


def nothing(ill: Ill) -> None:
    pass


#: How each symptom is made, and what is done by hand between seeing and mending.
SYMPTOMS: Final[dict[str, tuple[Callable[[Ill], Any], Callable[[Ill], Any]]]] = {
    "server-down": (lambda ill: ill.server.kill(), lambda ill: ill.server.start()),
    "server-frozen": (lambda ill: ill.server.pause(), lambda ill: ill.server.resume()),
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
}


def test_every_runbook_has_its_symptom() -> None:
    """None is there that no test runs."""
    assert sorted(SYMPTOMS) == RUNBOOKS


@pytest.mark.parametrize("name", RUNBOOKS)
def test_what_a_runbook_says_mends_its_symptom(ill: Ill, name: str) -> None:
    """Its commands are run as they stand: those under See answer, those under Mend succeed, and it is gone."""
    page = (DOCS / "runbooks" / f"{name}.md").read_text("utf-8")
    (code,) = re.findall(r"\*\*([A-Z_]+)\.\*\*", page)
    see, mend = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    make, by_hand = SYMPTOMS[name]

    make(ill)
    assert code in ill.codes()
    for line in see.strip().splitlines():
        ran = ill.ran(line)
        assert ran.returncode in (0, 1, 3), (line, ran)
    by_hand(ill)
    for line in mend.strip().splitlines():
        ran = ill.ran(line)
        assert ran.returncode == 0, (line, ran)
    assert code not in ill.codes()


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
