"""What a producer and a worker meet when a server fails, each fault made for real: which error, and is it waited for.

The table below is the law. Every fault is made on a server of the test's own (Redis 7), and every row is tried with the
blocking log, the asyncio log and a worker's step:

- the error is the row's, and its cause holds the server's own words;
- nothing was written that the error does not tell of;
- where the row says `waits`, the same call succeeds once the fault is over, within its `retry_for_s`; where it does
  not, the call fails at its first attempt, however much time it has;
- where the row says `reads`, the session can be read all the while.

Nothing here waits for a time to pass: an attempt is counted when it is made, and a fault ends when attempts were.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any, Final, NamedTuple

import pytest
import redis
from msgspec import structs

from domain import AsyncSessionLog, Misconfigured, MusterError, OutcomeUnknown, SessionLog, Unavailable
from domain.log import Connecting, connect, connection, create_store
from domain.log.connection import connection_error
from domain.log.keys import Keyspace
from projections.lease import Leases
from projections.store import ProjectionStore
from tests.domain.log.logs import Blocking, RunnableLog, ids, note
from tests.own_server import Certificates, OwnServer
from tests.ports import own_port
from tests.waiting import wait_until
from workers.following import PASSING


class Row(NamedTuple):
    """A fault, and what an append that meets it comes to."""

    error: type[MusterError]
    code: str
    words: str  # what the cause holds
    waits: bool  # sent again until it passes, or `retry_for_s` is over
    reads: str  # "go on", or the code that a read comes to


#: Faults of a server that a log is connected to.
TABLE: Final = {
    # the server refuses writes
    "out of memory": Row(Unavailable, "SERVER_OUT_OF_MEMORY", "OOM", waits=False, reads="go on"),
    "disk full": Row(Unavailable, "SERVER_CANNOT_PERSIST", "No space left on device", waits=False, reads="go on"),
    "snapshots fail": Row(Unavailable, "SERVER_CANNOT_PERSIST", "MISCONF", waits=False, reads="go on"),
    "demoted": Row(Unavailable, "SERVER_READ_ONLY", "READONLY", waits=True, reads="go on"),
    "too few replicas": Row(Unavailable, "SERVER_LACKS_REPLICAS", "NOREPLICAS", waits=True, reads="go on"),
    # the server refuses everything for now
    "loading": Row(Unavailable, "SERVER_LOADING", "LOADING", waits=True, reads="SERVER_LOADING"),
    "busy": Row(Unavailable, "SERVER_BUSY", "BUSY", waits=True, reads="SERVER_BUSY"),
    "cut off": Row(Unavailable, "SERVER_READ_ONLY", "READONLY", waits=True, reads="SERVER_CUT_OFF"),
    "too many clients": Row(Unavailable, "SERVER_FULL", "max number of clients", waits=True, reads="SERVER_FULL"),
    # the server refuses this user
    "no password given": Row(Misconfigured, "ACCESS_DENIED", "NOAUTH", waits=False, reads="ACCESS_DENIED"),
    "password changed": Row(Misconfigured, "ACCESS_DENIED", "WRONGPASS", waits=False, reads="ACCESS_DENIED"),
    "right taken away": Row(Misconfigured, "ACCESS_DENIED", "NOPERM", waits=False, reads="go on"),
    # the server is not there, or does not answer: then nobody knows what became of a write that was sent
    "down": Row(Unavailable, "UNREACHABLE", "Error 111 connecting", waits=True, reads="UNREACHABLE"),
    "killed in the middle": Row(OutcomeUnknown, "OUTCOME_UNKNOWN", "no reply", waits=True, reads="UNREACHABLE"),
    "silent": Row(OutcomeUnknown, "OUTCOME_UNKNOWN", "Timeout reading", waits=True, reads="UNREACHABLE"),
}


class Wrong(NamedTuple):
    """A fault of an address, and what opening a log there comes to."""

    error: type[MusterError]
    code: str
    words: str
    waits: bool


ADDRESSES: Final = {
    "a name nobody knows": Wrong(Unavailable, "UNREACHABLE", "connecting to nowhere.invalid", waits=True),
    "nobody listens": Wrong(Unavailable, "UNREACHABLE", "connecting to 127.0.0.1", waits=True),
    "a certificate nobody vouches for": Wrong(Misconfigured, "TLS_FAILED", "CERTIFICATE_VERIFY_FAILED", waits=False),
    "a certificate for another host": Wrong(Misconfigured, "TLS_FAILED", "is not valid for", waits=False),
    # who speaks plainly to a port with TLS is hung up on, and cannot tell that from an outage
    "TLS wanted, none spoken": Wrong(Unavailable, "UNREACHABLE", "onnection", waits=True),
    "no server of this kind": Wrong(Misconfigured, "NO_SUCH_PROTOCOL", "does not speak", waits=False),
}

#: Long enough that no test sees its end.
LONG_S: Final = 3600.0
SESSION: Final = "s"
PASSWORD: Final = "s3cr3t-pa55"


# -- the faults ------------------------------------------------------------------------------------------------------


class World:
    """A server with a store, its user `ada`, and ways to break it; each fault is over when its context is left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        arguments = ("--loading-process-events-interval-bytes", "1024", "--repl-diskless-sync-delay", "0")
        ada = ("--user", "ada", "on", f">{PASSWORD}", "~*", "+@all")
        self.server = OwnServer(directory / "server", *arguments, "--rdbcompression", "no", *ada)
        self.server.start()
        self.others: list[OwnServer] = []
        #: A way in that no fault closes: it is there before.
        self.admin: Any = connect(Connecting(self.server.url))
        self.keyspace = Keyspace("dev", "main", 1)
        create_store(self.admin, partitions=1)

    def close(self) -> None:
        self.admin.close()
        for server in (*self.others, self.server):
            server.stop()

    def connecting(self, fault: str, **options: Any) -> Connecting:
        """How the log under test connects: as `ada`, unless the fault is about who gives no password."""
        if fault == "no password given":
            return Connecting(self.server.url, **options)
        return Connecting(self.server.url, username="ada", password=PASSWORD, **options)

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        with getattr(self, "_" + name.replace(" ", "_"))():
            yield

    def drop_clients(self) -> None:
        self.admin.client_kill_filter(_type="normal", skipme=True)

    @contextmanager
    def _config(self, **values: str) -> Iterator[None]:
        before = {name.replace("_", "-"): None for name in values}
        before = {name: self.admin.config_get(name)[name] for name in before}
        for name, value in values.items():
            self.admin.config_set(name.replace("_", "-"), value)
        yield
        for name, old in before.items():
            self.admin.config_set(name, old)

    @contextmanager
    def _out_of_memory(self) -> Iterator[None]:
        with self._config(maxmemory="1"):
            yield

    @contextmanager
    def _disk_full(self) -> Iterator[None]:
        """Its append-only file is /dev/full, where every write meets a full disk."""
        folder = self.server.directory / "appendonlydir"
        folder.mkdir(exist_ok=True)
        (folder / "temp-appendonly.aof.incr").symlink_to("/dev/full")
        with self._config(appendonly="yes"):
            self.admin.set("anything", "1")
            wait_until(lambda: self.admin.info("persistence")["aof_last_write_status"] == "err")
            yield

    @contextmanager
    def _snapshots_fail(self) -> Iterator[None]:
        """A directory lies where the snapshot should, so that root fails to write it too."""
        (self.server.directory / "dump.rdb").mkdir()
        with self._config(save="3600 1"):
            self.admin.bgsave()
            wait_until(lambda: self.admin.info("persistence")["rdb_last_bgsave_status"] == "err")
            yield
        (self.server.directory / "dump.rdb").rmdir()

    @contextmanager
    def _demoted(self) -> Iterator[None]:
        """The server becomes a replica of what was its replica."""
        other = OwnServer(self.directory / "other", "--replicaof", f"127.0.0.1 {self.server.port}")
        self.others.append(other)
        other.start()
        with other.client() as client:
            wait_until(lambda: client.info("replication").get("master_link_status") == "up")
            client.replicaof("NO", "ONE")
            self.admin.replicaof("127.0.0.1", other.port)
            wait_until(lambda: self.admin.info("replication").get("master_link_status") == "up")
            yield
        self.admin.replicaof("NO", "ONE")

    @contextmanager
    def _too_few_replicas(self) -> Iterator[None]:
        with self._config(min_replicas_to_write="1"):
            yield

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """A server that was started again and takes its time to read its snapshot."""
        with self.admin.pipeline() as pipe:
            for number in range(5000):
                pipe.set(f"filling:{number}", "x" * 1000)
            pipe.execute()
        self.admin.save()
        self.server.kill()
        self.server.launch("--key-load-delay", "20000")
        yield
        self.admin.config_set("key-load-delay", "0")
        self._wait_for_the_server()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """A function that never ends."""
        self.admin.function_load(
            "#!lua name=slow\nredis.register_function('never_ends', function() while true do end end)"
        )
        with self._config(busy_reply_threshold="1"), ThreadPoolExecutor(1) as others, self.server.client() as client:
            running = others.submit(self._ignore, lambda: client.fcall("never_ends", 0))
            wait_until(self._says_busy)
            yield
            self.admin.function_kill()
            running.result()
        self._wait_for_the_server()

    @staticmethod
    def _ignore(call: Callable[[], object]) -> None:
        with suppress(redis.RedisError):
            call()

    def _says_busy(self) -> bool:
        with suppress(redis.ResponseError):
            self.admin.get("anything")
            return False
        return True

    @contextmanager
    def _cut_off(self) -> Iterator[None]:
        """A replica that serves no stale data and has lost its primary."""
        with self._config(replica_serve_stale_data="no"):
            self.admin.replicaof("127.0.0.1", own_port())
            yield
            self.admin.replicaof("NO", "ONE")

    @contextmanager
    def _too_many_clients(self) -> Iterator[None]:
        self.admin.ping()
        with self._config(maxclients="1"):
            self.drop_clients()
            yield

    @contextmanager
    def _no_password_given(self) -> Iterator[None]:
        with self._config(requirepass=PASSWORD):
            self.drop_clients()
            yield

    @contextmanager
    def _password_changed(self) -> Iterator[None]:
        self.admin.execute_command("ACL", "SETUSER", "ada", "resetpass", ">another")
        self.drop_clients()
        yield
        self.admin.execute_command("ACL", "SETUSER", "ada", "resetpass", f">{PASSWORD}")

    @contextmanager
    def _right_taken_away(self) -> Iterator[None]:
        self.admin.execute_command("ACL", "SETUSER", "ada", "-fcall")
        yield
        self.admin.execute_command("ACL", "SETUSER", "ada", "+fcall")

    @contextmanager
    def _down(self) -> Iterator[None]:
        self.admin.save()
        self.server.kill()
        yield
        self._wait_for_the_server(start=True)

    @contextmanager
    def _killed_in_the_middle(self) -> Iterator[None]:
        """It dies when a request has arrived that it has not read."""
        self.admin.save()
        self.server.pause()
        killer = Thread(target=self._kill_when_a_request_came)
        killer.start()
        yield
        killer.join()
        self._wait_for_the_server(start=True)

    def _kill_when_a_request_came(self) -> None:
        wait_until(self._has_unread)
        self.server.kill()

    def _has_unread(self) -> bool:
        """Whether a request waits in one of the server's sockets, by the kernel's word."""
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            port, unread = int(fields[1].partition(":")[2], 16), int(fields[4].partition(":")[2], 16)
            if port == self.server.port and fields[3] == "01" and unread > 0:  # 01: established
                return True
        return False

    @contextmanager
    def _silent(self) -> Iterator[None]:
        self.server.pause()
        yield
        self.server.resume()

    def _wait_for_the_server(self, *, start: bool = False) -> None:
        if start:
            self.server.start()
        wait_until(lambda: not self._refuses())

    def _refuses(self) -> bool:
        try:
            return not self.admin.exists("{dev:main:0}:meta")
        except (redis.RedisError, OSError):
            return True


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture(params=["blocking", "asyncio"])
def open_log(request: pytest.FixtureRequest) -> Iterator[Callable[[Connecting], RunnableLog]]:
    """Opens logs of each face in turn."""
    opened: list[Any] = []

    def open_log(connecting: Connecting) -> RunnableLog:
        if request.param == "asyncio":
            opened.append(Blocking(lambda: AsyncSessionLog.open(connecting)))
        else:
            opened.append(SessionLog.open(connecting))
        log: RunnableLog = opened[-1]
        return log

    yield open_log
    for log in opened:
        log.close()


class Enough(Exception):
    """Ends a call that would go on."""


class Attempts:
    """Counts the attempts of exchanges, made by any log; ends the call at attempt number `most`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.most: int | None = None
        self.reached = Flag()
        blocking, asynchronous = connection._send_once, connection._send_once_async

        def send(client: Any, commands: Any, *timing: Any) -> Any:
            self._note()
            return blocking(client, commands, *timing)

        async def send_async(client: Any, commands: Any, timeout_s: float, *timing: Any) -> Any:
            self._note()
            return await asynchronous(client, commands, timeout_s, *timing)

        monkeypatch.setattr(connection, "_send_once", send)
        monkeypatch.setattr(connection, "_send_once_async", send_async)

    def _note(self) -> None:
        self.count += 1
        if self.count == self.most:
            raise Enough


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Attempts:
    return Attempts(monkeypatch)


def timeout_for(fault: str) -> float:
    """A command may take as long as it likes, where a timeout is not the point."""
    return 1.0 if fault == "silent" else 60.0


# -- the laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", TABLE)
def test_a_fault_is_the_error_of_the_table(
    world: World, open_log: Callable[[Connecting], RunnableLog], attempts: Attempts, fault: str
) -> None:
    """The append that meets it says what it is; reads go on where the table says so; afterwards all is well again."""
    row = TABLE[fault]
    patience = 0.0 if row.waits else LONG_S
    log = open_log(world.connecting(fault, timeout_s=timeout_for(fault), retry_for_s=patience))
    log.append(SESSION, note("1"), expected=0)

    with world.fault(fault):
        attempts.count, attempts.most = 0, 2
        with pytest.raises(row.error) as raised:
            log.append(SESSION, note("2"), expected=1)
        assert attempts.count == 1
        attempts.most = None
        assert reading(log) == row.reads

    error = raised.value
    assert (type(error), error.code) == (row.error, row.code)
    assert row.words in error.cause
    assert error.remedy
    assert PASSWORD not in f"{error}"
    seqs = [log.append(SESSION, note(str(number)), expected=number - 1).last_seq for number in (2, 3)]
    assert seqs == [2, 3]
    assert ids(log.read(SESSION)) == ["1", "2", "3"]


def reading(log: RunnableLog) -> str:
    """What reading the session comes to."""
    try:
        assert ids(log.read(SESSION)) == ["1"]
    except MusterError as error:
        return error.code
    return "go on"


@pytest.mark.parametrize("fault", [fault for fault, row in TABLE.items() if row.waits])
def test_what_passes_by_itself_is_waited_for(
    world: World, open_log: Callable[[Connecting], RunnableLog], attempts: Attempts, fault: str
) -> None:
    """The append that met the fault succeeds when it is over, and its event is there once."""
    log = open_log(world.connecting(fault, timeout_s=timeout_for(fault), retry_for_s=LONG_S))
    log.append(SESSION, note("1"), expected=0)

    with ThreadPoolExecutor(1) as producers:
        with world.fault(fault):
            attempts.count = 0
            appending = producers.submit(lambda: log.append(SESSION, note("2"), expected=1))
            wait_until(lambda: attempts.count >= 3 or appending.done())
            assert not appending.done(), appending.exception()
        receipt = appending.result()

    assert (receipt.first_seq, receipt.last_seq) == (2, 2)
    assert ids(log.read(SESSION)) == ["1", "2"]


@pytest.mark.parametrize(("refusal", "retry_for_s"), [("out of memory", LONG_S), ("too few replicas", 1.0)])
def test_a_refusal_does_not_settle_a_write_in_doubt(
    world: World,
    open_log: Callable[[Connecting], RunnableLog],
    monkeypatch: pytest.MonkeyPatch,
    refusal: str,
    retry_for_s: float,
) -> None:
    """A write whose reply was lost, and that is refused when it is sent again, is UNKNOWN: it may be there, as here."""
    log = open_log(world.connecting(refusal, timeout_s=60.0, retry_for_s=retry_for_s))
    log.append(SESSION, note("1"), expected=0)
    with ExitStack() as faults:

        def lose() -> None:
            monkeypatch.undo()
            faults.enter_context(world.fault(refusal))
            raise redis.ConnectionError("Connection closed by server.")

        blocking, asynchronous = connection._send_once, connection._send_once_async

        def send(client: Any, commands: Any, *timing: Any) -> None:
            blocking(client, commands, *timing)
            lose()

        async def send_async(client: Any, commands: Any, timeout_s: float, *timing: Any) -> None:
            await asynchronous(client, commands, timeout_s, *timing)
            lose()

        monkeypatch.setattr(connection, "_send_once", send)
        monkeypatch.setattr(connection, "_send_once_async", send_async)
        with pytest.raises(OutcomeUnknown) as raised:
            log.append(SESSION, note("2"), expected=1)

    assert TABLE[refusal].words in raised.value.cause
    found = log.resolve(raised.value.doubts[0])
    assert found is not None
    assert (found.last_seq, ids(log.read(SESSION))) == (2, ["1", "2"])


@pytest.mark.parametrize("fault", ADDRESSES)
def test_a_wrong_address_is_the_error_of_the_table(
    world: World, open_log: Callable[[Connecting], RunnableLog], attempts: Attempts, fault: str
) -> None:
    """Who opens a log there is told at once what will not pass, and waits for what may."""
    row = ADDRESSES[fault]
    with address(world, fault) as connecting:
        attempts.most = 2
        with pytest.raises(row.error) as raised:
            open_log(structs.replace(connecting, retry_for_s=0.0 if row.waits else LONG_S))
        assert attempts.count == 1
        assert (type(raised.value), raised.value.code) == (row.error, row.code)
        assert row.words in raised.value.cause

        attempts.count, attempts.most = 0, 3
        with pytest.raises(Enough if row.waits else row.error):
            open_log(structs.replace(connecting, retry_for_s=LONG_S))
        assert attempts.count == (3 if row.waits else 1)


@contextmanager
def address(world: World, fault: str) -> Iterator[Connecting]:
    """How to connect to where the fault is."""
    with ExitStack() as stack:
        port, ca = own_port(), ""
        if "certificate" in fault or "TLS" in fault:
            certificates = Certificates(world.directory / "certificates")
            server = OwnServer(world.directory / "tls", *certificates.of_a_server(port))
            stack.callback(server.stop)
            server.start()
            ca = certificates.file("ca.crt")
        match fault:
            case "a name nobody knows":
                yield Connecting("redis://nowhere.invalid:6379/0")
            case "nobody listens":
                yield Connecting(f"redis://127.0.0.1:{port}/0")
            case "a certificate nobody vouches for":
                yield Connecting(f"rediss://localhost:{port}/0")
            case "a certificate for another host":
                yield Connecting(f"rediss://127.0.0.1:{port}/0", tls_ca_file=ca)
            case "TLS wanted, none spoken":
                yield Connecting(f"redis://localhost:{port}/0")
            case "no server of this kind":
                listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                Thread(target=_greet, args=(listener,), daemon=True).start()
                stack.callback(listener.shutdown, socket.SHUT_RDWR)
                yield Connecting(f"redis://127.0.0.1:{listener.getsockname()[1]}/0")


def _greet(listener: socket.socket) -> None:
    """Speaks first, and another protocol."""
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 mail.example ESMTP\r\n")
                connection.recv(4096)


@pytest.mark.parametrize("fault", TABLE)
def test_a_worker_meets_the_same(world: World, fault: str) -> None:
    """A step that meets the fault writes nothing its worker would not read again, and passes for a worker's bad day."""
    row = TABLE[fault]
    with connect(world.connecting(fault, timeout_s=timeout_for(fault))) as client:
        store = ProjectionStore(client, world.keyspace)
        token = Leases(client, world.keyspace, "worker").claim(0, ttl_ms=3_600_000)
        assert token is not None

        def step(cursor_from: int | None, cursor_to: int) -> None:
            store.step(0, token=token, cursor_from=cursor_from, cursor_to=cursor_to, operations=[])

        step(None, 1)
        with world.fault(fault):
            if row.code == "SERVER_OUT_OF_MEMORY":
                step(1, 2)  # what is built can be archived, and that frees memory
                return
            with pytest.raises(PASSING) as raised:
                step(1, 2)
            if row.reads == "go on":
                assert store.cursor(0).position == 1

        code = connection_error(raised.value).code
        assert code == ("UNREACHABLE" if row.code == "OUTCOME_UNKNOWN" else row.code)
        position = store.cursor(0).position
        assert position in ((1, 2) if row.code == "OUTCOME_UNKNOWN" else (1,))
        step(position, 3)
        assert store.cursor(0).position == 3
