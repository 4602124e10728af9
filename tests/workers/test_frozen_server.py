"""With a frozen server (SIGSTOP) every command of the CLI answers within its timeouts, and says what it is."""

from __future__ import annotations

import argparse
import io
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Final

import pytest

from domain.log import Spool, create_store
from tests.own_server import OwnServer
from workers.cli import GROUPS, main

#: Only a command that hangs takes so long, in seconds.
PATIENCE_S: Final = 60
#: Commands with a server of their own, or that run until they are told to stop (tests/workers/test_health.py).
OWN: Final = frozenset({"dev", "demo", "serve"})
#: What commands are asked with, where they need more than their name.
ARGUMENTS: Final = {
    "event append": "s start --actor a",
    "event import": "lines.ndjson",
    "event show": "s 1",
    "event tail": "s",
    "session show": "s",
    "session diff": "s --from 1 --to 2",
    "session timeline": "s",
    "session fork": "s --at 1",
    "session context": "s",
    "replay": "s",
    "agent show": "a",
    "agent events": "a",
    "entity show": "e",
    "projection verify": "--all",
    "projection show": "p",
    "projection pause": "p",
    "projection resume": "p",
    "projection publish": "p --version 1",
    "projection drop": "p --version 1",
    "recover undo": "s",
    "recover accept": "s --why x",
    "job run": "verify",
    "job show": "t",
    "job cancel": "t",
    "job wait": "t",
    "parked show": "s",
    "parked retry": "--all",
    "parked discard": "s --why x",
    "spool export": "spooled.ndjson",
    "subscription show": "n",
    "subscription drop": "n",
    "backup create": "backup",
    "backup verify": "backup",
    "backup restore": "backup",
    "config check": "--live",
    "read-only on": "--why x",
    "explain": "OOM",
}
#: The same commands, asked otherwise.
VARIANTS: Final = ("health --ready", "health --deep", "worker run --profile production", "stop --cancel", "top --once")
#: How commands end that are not ended by the server's silence: they look at files, or say how it is.
ENDS: Final = {
    "health": 1,
    "health --ready": 1,
    "health --deep": 1,
    "doctor": 1,
    "diagnostics": 7,
    "config show": 0,
    "config schema": 0,
    "explain": 0,
    "spool ls": 0,
    "spool export": 0,
    "backup verify": 4,
    "backup restore": 4,
}


def commands() -> Iterator[str]:
    """Every command there is."""
    for group in GROUPS:
        parser = argparse.ArgumentParser()
        import_module(f"workers.cli.{group.replace('-', '_')}").configure(parser)
        yield from _leaves(parser, group)


def _leaves(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield name
    for action in nested:
        for more, inner in action.choices.items():
            yield from _leaves(inner, f"{name} {more}")


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[OwnServer]:
    """A server with a store, which takes connections and answers nothing."""
    server = OwnServer(tmp_path / "server")
    server.start()
    try:
        with server.client() as client:
            create_store(client, environment="dev", namespace="main", partitions=2)
        server.pause()
        yield server
    finally:
        server.stop()


@contextmanager
def in_time() -> Iterator[None]:
    """Fails what hangs, instead of hanging with it."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no answer within {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("command", [*(command for command in commands() if command not in OWN), *VARIANTS])
def test_every_command_answers(
    frozen: OwnServer, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an exit code and words that say so; what needs no server does its work."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.ndjson").write_text('{"session":"s","type":"start","actor":"a","id":"i"}\n')
    for name in [name for name in os.environ if name.startswith("MUSTER_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "REDIS__URL": frozen.url,
        "REDIS__TIMEOUT_S": "0.2",
        "REDIS__RETRY_FOR_S": "0.2",
        "HEALTH__TIMEOUT_S": "0.2",
        "JOBS__URL": frozen.url.rpartition("/")[0] + "/1",
        "MIGRATE__FROM_URL": frozen.url,
        "MIGRATE__TO_URL": frozen.url,
    }.items():
        monkeypatch.setenv(f"MUSTER_{name}", value)
    if command.startswith("spool"):
        monkeypatch.setenv("MUSTER_SPOOL__PATH", str(tmp_path / "spool.db"))
        Spool(tmp_path / "spool.db").close()
    more = ["--timeout", "1"] if command == "diagnostics" else []
    out, err = io.StringIO(), io.StringIO()

    with in_time(), redirect_stdout(out), redirect_stderr(err):
        code = main([*command.split(), *ARGUMENTS.get(command, "").split(), *more])

    assert code == ENDS.get(command, 5), err.getvalue()
    if command not in ENDS:
        assert "UNREACHABLE" in err.getvalue() + out.getvalue()
        assert "Traceback" not in err.getvalue()
