"""Muster as its users run it: the command `muster`, and a `muster dev` with its server, its workers and its data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import IO, Any, Final, Self

import redis
from msgspec import Struct

from domain.log import Connecting, connect
from domain.log.keys import Keyspace
from tests.waiting import has_ended, wait_until
from workers.child_process import ChildProcess, start_child

MUSTER: Final = Path(sys.executable).with_name("muster")
#: Only a broken law waits so long.
PATIENCE_S: Final = 120
#: The store that a `muster dev` makes where nothing else is asked for.
_KEYS: Final = Keyspace("dev", "main", 32)


class Answer(Struct, frozen=True):
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


class Muster:
    """The command line, with settings from the environment and nothing else."""

    def __init__(self, **settings: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
        self.environ: Mapping[str, str] = inherited | settings

    def run(self, *arguments: str | Path, stdin: bytes = b"") -> Answer:
        """Runs a command to its end, whatever that is."""
        done = subprocess.run(
            [MUSTER, *arguments],
            env=self.environ,
            input=stdin,
            capture_output=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *arguments: str | Path, stdin: bytes = b"") -> str:
        """What a command prints that must succeed."""
        answer = self.run(*arguments, stdin=stdin)
        assert answer.code == 0, (arguments, answer)
        return answer.out

    def document(self, *arguments: str | Path, stdin: bytes = b"") -> dict[str, Any]:
        """The one line of JSON that a command prints."""
        (line,) = self.ok(*arguments, "-o", "json", stdin=stdin).splitlines()
        found: dict[str, Any] = json.loads(line)
        return found

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """The lines of JSON that a command prints."""
        return [json.loads(line) for line in self.ok(*arguments, "-o", "jsonl").splitlines()]

    def sessions(self) -> dict[str, dict[str, Any]]:
        return {row["session"]: row for row in self.rows("session", "ls", "--all")}

    def agents(self) -> dict[str, dict[str, Any]]:
        return {row["agent"]: row for row in self.rows("agent", "ls", "--all")}

    def workers(self) -> dict[int, dict[str, Any]]:
        """The living workers by pid."""
        return {row["pid"]: row for row in self.rows("worker", "ls")}

    def findings(self) -> list[dict[str, Any]]:
        """What verification of everything finds; its exit code says the same."""
        answer = self.run("projection", "verify", "--all", "-o", "jsonl")
        found = [json.loads(line) for line in answer.out.splitlines()]
        assert answer.code == (1 if found else 0), answer
        return found

    def appended(self) -> int:
        """How many events the log holds."""
        return sum(part["total"] for part in self.document("projection", "lag")["partitions"])

    def caught_up(self) -> None:
        """Returns when all that was appended is projected."""
        self.ok("projection", "lag", "--wait", "--timeout", str(PATIENCE_S))


class Feeding:
    """An import that reads from a pipe, so that it gets as far as the test lets it, however quick the machine is.

    It gets `lines` at once; what is `held_back`, and the end of the file, come with `finish`.
    """

    def __init__(
        self, process: ChildProcess, out: IO[bytes], err: IO[bytes], lines: Iterable[bytes], held_back: Iterable[bytes]
    ) -> None:
        self.process = process
        self._out = out
        self._err = err
        self._lines = lines
        self._held_back = held_back
        self._finishing = Event()
        self._feeder = Thread(target=self._feed)
        self._feeder.start()

    def finish(self) -> Answer:
        """Gives it the rest, and waits for its end."""
        self._finishing.set()
        self._feeder.join()
        code = self.process.wait(PATIENCE_S)
        return Answer(code, _content(self._out), _content(self._err))

    def end(self) -> None:
        """Kills an import that was not finished."""
        self.process.kill()
        self._finishing.set()
        self._feeder.join()
        self.process.wait()

    def _feed(self) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        with suppress(BrokenPipeError), pipe:  # it was killed, or gave up
            for line in self._lines:
                pipe.write(line)
            pipe.flush()
            self._finishing.wait()
            for line in self._held_back:
                pipe.write(line)


@contextmanager
def feeding(
    muster: Muster, lines: Iterable[bytes], held_back: Iterable[bytes] = (), *, rate: int = 20_000
) -> Iterator[Feeding]:
    """An import of lines that lasts as long as the block at most."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start_child(
            # A rate, because its windows are short: without one, many lines are read before the first is appended.
            [MUSTER, "event", "import", "-", "--rate", str(rate), "-o", "json"],
            env=muster.environ,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
        )
        running = Feeding(process, out, err, lines, held_back)
        try:
            yield running
        finally:
            running.end()


class Dev:
    """A `muster dev`, started by `with`; after it the process has ended with 0 and nothing of it is left.

    `data_dir` None: its own temporary one. `scratch` is where its output goes. `muster` is the command line for its
    store.
    """

    def __init__(self, scratch: Path, data_dir: Path | None, **settings: str) -> None:
        self.muster = Muster(**settings)
        self._command: list[str | Path] = [MUSTER, "dev"]
        if data_dir is not None:
            self._command += ["--data-dir", data_dir]
        self._out = scratch / "dev.out"
        self._err = scratch / "dev.err"
        self._settings = settings
        self._process: ChildProcess | None = None
        self._client: redis.Redis | None = None

    def launch(self) -> ChildProcess:
        """Starts the process, which may not be ready yet."""
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = start_child(self._command, env=self.muster.environ, stdout=out, stderr=err)
        return self._process

    def start(self) -> None:
        """Starts the process, and returns when it says that it is ready."""
        process = self.launch()
        wait_until(lambda: "\n" in self.out or process.poll() is not None, timeout_s=PATIENCE_S)
        assert self.out.startswith("ready redis://127.0.0.1:"), self.err
        self.muster = Muster(MUSTER_REDIS__URL=self.url, **self._settings)
        self._client = connect(Connecting(self.url))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self, number: int = signal.SIGTERM, *, waits_for_children: bool = False) -> int:
        """Sends the process alone a signal, and returns its exit code. Nothing of it may be left afterwards.

        `waits_for_children`: for a signal that leaves it no time to; they may then take their own.
        """
        assert self._process is not None
        family = descendants(self._process.pid)
        if self._client is not None:
            self._client.close()
            self._client = None
        os.kill(self._process.pid, number)
        code = self._process.wait(PATIENCE_S)
        if waits_for_children:
            wait_until(lambda: all(map(has_ended, family)), message="children ended")
        left = [pid for pid in family if not has_ended(pid)]
        assert not left, f"of the processes {sorted(family)} these are left: {left}"
        self._process = None
        return code

    def ended(self) -> int:
        """The exit code of a process that ends by itself. Nothing of it may be left afterwards."""
        assert self._process is not None
        family = descendants(self._process.pid)
        if self._client is not None:
            self._client.close()
            self._client = None
        code = self._process.wait(PATIENCE_S)
        assert all(map(has_ended, family))
        self._process = None
        return code

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def url(self) -> str:
        return self.out.split()[1]

    @property
    def client(self) -> redis.Redis:
        """A connection to the server, for what happens behind Muster's back."""
        assert self._client is not None
        return self._client

    def appended(self) -> int:
        """How many events the log holds, by the server's word, for who asks all the time.

        Commands one after the other would take the processor from the very work that they watch.
        """
        with self.client.pipeline(transaction=False) as pipe:
            for keys in _KEYS.partitions:
                pipe.hget(keys.meta, "total")
            return sum(map(int, pipe.execute()))

    @property
    def server_pid(self) -> int:
        return int(self.client.info("server")["process_id"])

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        if kind is not None:
            print(f"dev wrote:\n{self.err[-5000:]}")
        try:
            code = self.stop()
            assert code == 0 or kind is not None, (code, self.err)
        finally:
            self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def descendants(pid: int) -> set[int]:
    """The processes that a process started, and those that they started."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                stat = Path(entry.path, "stat").read_text()
                children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found: set[int] = set()
    new = [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        found.update(new)
    return found


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()
