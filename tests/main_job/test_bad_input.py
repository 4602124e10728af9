"""Bad input on the command line: each is refused with its code, its cause and the remedy, and nothing is written."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest
from msgspec import Struct

from domain import Event, Refused
from domain.errors import REGISTRY
from domain.log import SessionLog
from tests.main_job.inputs import path_of, written
from tests.main_job.running import Dev, Muster


class Bad(Struct, frozen=True):
    """A command that must be refused: with which exit code, and which code of the registry."""

    command: str
    exit_code: int
    code: str
    settings: dict[str, str] = {}


#: The store holds the session `open`, which stands at seq 2, and the session `done`, which is completed.
BAD: Final = (
    Bad("event append open note.taken --actor a --expect 7", 6, "SEQ_CONFLICT"),
    Bad("event append open note.taken --actor a --expect new", 6, "SEQ_CONFLICT"),
    Bad("event append nobody note.taken --actor a --expect 1", 6, "SEQ_CONFLICT"),
    Bad("event append open note.taken --actor a --expect soon", 9, "EXPECTED_INVALID"),
    Bad("event append done modified --actor a", 9, "GATE_REFUSED"),
    Bad("event append new banana --actor a", 9, "TYPE_UNKNOWN"),
    Bad("event append new start --actor muster", 9, "ACTOR_RESERVED"),
    Bad("event append new start --actor a --data []", 9, "FIELD_INVALID"),
    Bad('event append new start --actor a --data {"a":1,"a":2}', 9, "KEY_DUPLICATE"),
    Bad("event import no-such-file.ndjson", 4, "FILE_UNREADABLE"),
    Bad("event show open 3", 4, "SEQ_UNKNOWN"),
    Bad("session show nobody", 4, "SESSION_UNKNOWN"),
    Bad("parked show nobody", 4, "NOT_PARKED"),
    Bad("session show open --at 3", 4, "SEQ_UNKNOWN"),
    Bad("agent show nobody", 4, "AGENT_UNKNOWN"),
    Bad("projection verify --session nobody", 4, "SESSION_UNKNOWN"),
    Bad("explain NOTHING", 4, "CODE_UNKNOWN"),
    Bad("session ls", 3, "STORE_MISSING", {"MUSTER_NAMESPACE": "empty"}),
    Bad("event append s start --actor a", 3, "STORE_MISSING", {"MUSTER_NAMESPACE": "empty"}),
    Bad("worker run", 3, "STORE_MISSING", {"MUSTER_NAMESPACE": "empty"}),
    Bad("event append s start --actor a", 3, "PARTITIONS_DIFFER", {"MUSTER_PARTITIONS": "7"}),
    Bad("init --partitions 7", 3, "PARTITIONS_DIFFER"),
    Bad("session ls", 3, "SETTING_INVALID", {"MUSTER_PARTITIONS": "0"}),
    Bad("session ls", 3, "SETTING_UNKNOWN", {"MUSTER_REDIS__ULR": "redis://127.0.0.1"}),
    Bad("frobnicate", 2, "USAGE"),
    Bad("session frobnicate", 2, "USAGE"),
    Bad("event append open note.taken", 2, "USAGE"),
)


@pytest.fixture(scope="module")
def muster(module_dev: Dev) -> Muster:
    """The command line for a store with one open and one completed session."""
    muster = module_dev.muster
    for session, type in (("open", "start"), ("open", "modified"), ("done", "completed")):
        muster.ok("event", "append", session, type, "--actor", "a")
    muster.caught_up()
    return muster


@contextmanager
def nothing_is_written(dev: Dev) -> Iterator[None]:
    """No key comes, goes or changes during the block."""
    before, keys = written(dev.client), lasting(dev.client)
    yield
    assert written(dev.client) == before
    assert lasting(dev.client) == keys


def lasting(client: Any) -> set[bytes]:
    """All keys but the locks of the schedule's ticks, which come and go by themselves."""
    return {key for key in client.keys() if b":tick:" not in key}  # noqa: SIM118


def says(error: str, code: str) -> None:
    """The error has the code, a cause and the remedy that the registry knows, on its last two lines."""
    *_, first, second = error.splitlines()
    assert first.startswith(f"error: {code}: "), error
    assert len(first) > len(f"error: {code}: ")
    assert second.startswith("remedy: "), error
    if code != "USAGE":  # whose remedy names the help of that very command
        assert second == f"remedy: {REGISTRY[code].remedy}"


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.command} {' '.join(bad.settings)}".strip())
def test_a_bad_command_is_refused(muster: Muster, module_dev: Dev, bad: Bad) -> None:
    """The exit code says what the caller can do; stderr has code, cause and remedy; stdout is empty."""
    settings = {"MUSTER_REDIS__URL": module_dev.url} | bad.settings
    with nothing_is_written(module_dev):
        answer = Muster(**settings).run(*bad.command.split())

    assert (answer.code, answer.out) == (bad.exit_code, ""), answer
    says(answer.err, bad.code)


def test_a_conflict_says_what_was_expected_and_what_is(muster: Muster) -> None:
    """The seq the caller named and the one the session stands at are both in the cause."""
    answer = muster.run("event", "append", "open", "note.taken", "--actor", "a", "--expect", "7")

    assert "7" in answer.err.splitlines()[0]
    assert "2" in answer.err.splitlines()[0]


def test_an_unreachable_server_is_said_to_be_unreachable() -> None:
    """Nobody listens there: exit 5, after the time that the settings allow."""
    with socket.socket() as taken:  # bound and not listening, so that nobody else can
        taken.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        answer = Muster(MUSTER_REDIS__URL=url, MUSTER_REDIS__RETRY_FOR_S="0.2").run("session", "ls")

    assert (answer.code, answer.out) == (5, "")
    says(answer.err, "UNREACHABLE")


def test_a_server_that_is_too_old_is_refused() -> None:
    """Redis 6.2 lacks functions: exit 3, before anything else is asked of it."""
    with OldServer() as url:
        answer = Muster(MUSTER_REDIS__URL=url).run("session", "ls")

    assert (answer.code, answer.out) == (3, ""), answer
    says(answer.err, "SERVER_TOO_OLD")
    assert "6.2.14" in answer.err


class OldServer:
    """Something that says of itself to be Redis 6.2, and knows nothing else. With `with`, its address."""

    def __enter__(self) -> str:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._threads = [Thread(target=self._accept)]
        self._connections: list[socket.socket] = []
        self._threads[0].start()
        return f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in self._connections:
            connection.close()
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._threads.append(Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as commands:
            while first := commands.readline():
                words = [commands.read(int(commands.readline()[1:]) + 2)[:-2] for _ in range(int(first[1:]))]
                connection.sendall(self._answer(words[0].upper()))

    @staticmethod
    def _answer(command: bytes) -> bytes:
        info = b"# Server\r\nredis_version:6.2.14\r\nredis_mode:standalone\r\n"
        match command:
            case b"INFO":
                return b"$%d\r\n%s\r\n" % (len(info), info)
            case b"HGETALL":
                return b"*0\r\n"
            case b"TIME":
                return b"*2\r\n$1\r\n1\r\n$1\r\n0\r\n"
            case b"CLIENT" | b"PING" | b"SELECT":
                return b"+OK\r\n"
            case _:
                return b"-ERR unknown command\r\n"


def line(**fields: Any) -> bytes:
    return json.dumps({"session": "big", "type": "note.taken", "actor": "a", "id": "big:1", **fields}).encode() + b"\n"


def test_an_oversize_event_is_refused(muster: Muster, module_dev: Dev, tmp_path: Path) -> None:
    """More than 256 KiB of data: its line is refused with the reason, and nothing is written."""
    with nothing_is_written(module_dev):
        answer = muster.run(
            "event", "import", "-", "--rejects", tmp_path / "rejects", stdin=line(data={"text": "x" * 256 * 1024})
        )

    assert answer.code == 7, answer
    (reject,) = [json.loads(line) for line in (tmp_path / "rejects").read_text().splitlines()]
    assert (reject["line"], reject["id"], reject["code"]) == (1, "big:1", "EVENT_TOO_LARGE")


@pytest.mark.parametrize("size", ["events", "bytes"])
def test_an_oversize_commit_is_refused(muster: Muster, module_dev: Dev, size: str) -> None:
    """More than 1,000 events or 4 MiB in one commit; the command line cannot make one, so the library is asked."""
    text = "x" * 200_000 if size == "bytes" else ""
    events = [
        Event.of("note.taken", actor="a", id=f"big:{number}", data={"text": text})
        for number in range(1001 if size == "events" else 25)
    ]
    with (
        nothing_is_written(module_dev),
        SessionLog.open(module_dev.url, environment="dev", namespace="main") as log,
        pytest.raises(Refused) as refused,
    ):
        log.append("big", events)

    assert refused.value.code == "COMMIT_TOO_LARGE"
    assert refused.value.cause


@pytest.mark.usefixtures("real_logs")
def test_malformed_lines_write_nothing(muster: Muster, module_dev: Dev, tmp_path: Path) -> None:
    """A file of lines that are each broken in their own way leaves every key as it was."""
    with nothing_is_written(module_dev):
        answer = muster.run("event", "import", path_of("malformed"), "--rejects", tmp_path / "rejects")

    assert answer.code == 7, answer


def test_what_is_only_tried_writes_nothing(muster: Muster, module_dev: Dev) -> None:
    """`--dry-run` checks, says how much it would touch, and touches nothing."""
    with nothing_is_written(module_dev):
        assert "1 event" in muster.run("event", "append", "new", "start", "--actor", "a", "--dry-run").err
        assert "2 sessions" in muster.run("projection", "rebuild", "--dry-run").err
        muster.ok("recover", "apply", "--dry-run")
