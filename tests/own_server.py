"""Servers of a test's own, started with any arguments: with TLS, users, a socket, as a replica, as a Sentinel."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import redis

from domain.log import Connecting, connect
from tests.conftest import missing
from tests.ports import own_port
from tests.waiting import wait_until
from workers.child_process import ChildProcess, start_child
from workers.embedded import find_server_binary


def binary(name: str) -> Path:
    """The program of a server: `valkey` is the embedded one, `redis7` the distribution's."""
    if name == "valkey":
        return find_server_binary()
    found = shutil.which("redis-server")
    if found is None:
        missing("there is no redis-server on the PATH")
    return Path(found)


class OwnServer:
    """A server on loopback whose arguments are the test's; stopped by its own process id, also when it is paused."""

    def __init__(self, directory: Path, *arguments: str | Path, kind: str = "redis7", port: int | None = None) -> None:
        self.directory = directory
        self.port = own_port() if port is None else port
        self._binary = binary(kind)
        self._arguments = arguments
        self._process: ChildProcess | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self, *more: str | Path) -> None:
        """Starts the server and returns when it listens; it may still be loading."""
        self.directory.mkdir(parents=True, exist_ok=True)
        standard = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory, "--save", "")
        with (self.directory / "server.log").open("ab") as log:
            command = [self._binary, *self._command(), *standard, *self._arguments, *more]
            self._process = start_child(command, stdout=log, stderr=log)
        with self._killed_unless_done():
            wait_until(self._listens, message=f"a server on port {self.port}; {self.directory}/server.log says why")

    def start(self, *more: str | Path) -> None:
        """Starts the server and returns when it answers commands."""
        self.launch(*more)
        with self._killed_unless_done(), self.client() as client:
            wait_until(lambda: _answers(client), message=f"an answer on port {self.port}")

    @contextmanager
    def _killed_unless_done(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.kill()
            raise

    def _command(self) -> list[str | Path]:
        return []

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "server.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @contextmanager
    def client(self, **options: Any) -> Iterator[Any]:
        """A client of the server's default user."""
        client: Any = connect(Connecting(self.url, **options))
        try:
            yield client
        finally:
            client.close()

    def pause(self) -> None:
        """The server keeps its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Ends the server at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Ends the server, whatever state it is in: nobody needs what it holds any more."""
        self.kill()


class OwnSentinel(OwnServer):
    """A Sentinel; `watch` lists the lines of its configuration that say what it watches."""

    def __init__(self, directory: Path, *watch: str, kind: str = "redis7") -> None:
        super().__init__(directory, kind=kind)
        self._watch = watch

    def _command(self) -> list[str | Path]:
        path = self.directory / "sentinel.conf"  # a Sentinel writes down what it learns, so it needs a file
        if not path.exists():
            path.write_text("\n".join(self._watch) + "\n")
        return [path, "--sentinel"]


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.AuthenticationError:
        return True  # it answers those who may ask
    except (redis.RedisError, OSError):
        return False


class Certificates:
    """A certificate authority of the test's own, a server's and a client's certificate by it, and one nobody trusts."""

    NAMES: Final = ("server", "client")

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        if shutil.which("openssl") is None:
            missing("there is no openssl on the PATH")
        directory.mkdir()
        for ca in ("ca", "other-ca"):
            self._openssl("req", "-x509", *self._key(ca), "-out", f"{ca}.crt", "-days", "2", "-subj", f"/CN={ca}")
        (directory / "names").write_text("subjectAltName=DNS:localhost\n")  # and not the address 127.0.0.1
        for name in self.NAMES:
            self._openssl("req", *self._key(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
            self._openssl(
                *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
                *("-out", f"{name}.crt", "-days", "2", "-extfile", "names"),
            )

    def file(self, name: str) -> str:
        """The path of `ca.crt`, `other-ca.crt`, `server.crt`, `server.key`, `client.crt` or `client.key`."""
        return str(self._directory / name)

    def of_a_server(self, port: int, *, clients: str = "no") -> list[str]:
        """The arguments of a server that speaks TLS on `port`; `clients`: whether it wants certificates of them."""
        return [
            *("--tls-port", str(port), "--tls-auth-clients", clients, "--tls-ca-cert-file", self.file("ca.crt")),
            *("--tls-cert-file", self.file("server.crt"), "--tls-key-file", self.file("server.key")),
        ]

    def _key(self, name: str) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._directory, check=True, capture_output=True)
