"""Ways to a server: by user and password, over TLS, through a socket, through Sentinels; blocking and asyncio alike."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec import structs
from redis.exceptions import ExecAbortError, OutOfMemoryError, ReadOnlyError

from domain import AsyncSessionLog, Misconfigured, SessionLog, Unavailable
from domain.log import Connecting, ConnectionState, connect, create_store
from domain.log.connection import Attempts
from tests.domain.log.logs import Blocking, RunnableLog, ids, note, refused
from tests.own_server import Certificates, OwnSentinel, OwnServer
from tests.ports import own_port
from tests.waiting import wait_until

FACES = ("blocking", "asyncio")
SECRET = "s3cr3t-pa55"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., OwnServer]]:
    """Starts servers of the test's own and stops them."""
    servers: list[OwnServer] = []

    def start(*arguments: str | Path, sentinel: bool = False, **options: Any) -> OwnServer:
        kind = OwnSentinel if sentinel else OwnServer
        servers.append(kind(tmp_path / f"server-{len(servers)}", *arguments, **options))  # type: ignore[arg-type]
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls") / "certificates")


@pytest.fixture(params=FACES)
def open_log(request: pytest.FixtureRequest) -> Iterator[Callable[[Connecting], RunnableLog]]:
    """Opens a log of each face in turn, on a store that is made first."""
    opened: list[Any] = []

    def open_log(connecting: Connecting) -> RunnableLog:
        with connect(connecting) as client:
            create_store(client, partitions=1)
        if request.param == "asyncio":
            opened.append(Blocking(lambda: AsyncSessionLog.open(connecting)))
        else:
            opened.append(SessionLog.open(connecting))
        log: RunnableLog = opened[-1]
        return log

    yield open_log
    for log in opened:
        log.close()


def works(log: RunnableLog) -> None:
    """Something can be appended and read."""
    seq = log.append("s", note(os.urandom(4).hex())).last_seq
    assert len(ids(log.read("s"))) == seq


def failing(face: str, connecting: Connecting) -> Callable[[], object]:
    """Opens a log of this face, which is to fail."""
    return lambda: (
        Blocking(lambda: AsyncSessionLog.open(connecting)) if face == "asyncio" else SessionLog.open(connecting)
    )


# -- users, sockets, TLS ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["in the URL", "apart", "apart, over a wrong one in the URL"])
def test_a_user_and_a_password_may_be_given_in_the_url_or_apart(
    start: Callable[..., OwnServer], open_log: Callable[[Connecting], RunnableLog], given: str
) -> None:
    """What is given apart wins, so that a URL may lie in a file that others read."""
    server = start()
    at = f"127.0.0.1:{server.port}"
    ways = {
        "in the URL": Connecting(f"redis://ada:{SECRET}@{at}"),
        "apart": Connecting(f"redis://{at}", username="ada", password=SECRET),
        "apart, over a wrong one in the URL": Connecting(f"redis://ada:wrong@{at}", password=SECRET),
    }
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "ada", "on", f">{SECRET}", "~*", "+@all")
        client.execute_command("ACL", "SETUSER", "default", "off")

    works(open_log(ways[given]))


def test_a_log_may_reach_its_server_through_a_socket(
    start: Callable[..., OwnServer], open_log: Callable[[Connecting], RunnableLog], tmp_path: Path
) -> None:
    """unix:///path?db=N, where the server listens on one."""
    start("--unixsocket", tmp_path / "the.sock")

    works(open_log(Connecting(f"unix://{tmp_path}/the.sock?db=1")))


@pytest.mark.parametrize("clients", ["no", "yes"])
def test_a_log_may_speak_tls(
    start: Callable[..., OwnServer],
    open_log: Callable[[Connecting], RunnableLog],
    certificates: Certificates,
    clients: str,
) -> None:
    """With a certificate of the server's that a given authority vouches for, and one of the client's if asked."""
    port = own_port()
    start(*certificates.of_a_server(port, clients=clients))
    own = {"tls_cert_file": certificates.file("client.crt"), "tls_key_file": certificates.file("client.key")}
    ca = certificates.file("ca.crt")
    connecting = Connecting(f"rediss://localhost:{port}", tls_ca_file=ca)
    works(open_log(structs.replace(connecting, **own) if clients == "yes" else connecting))


@pytest.mark.parametrize("face", FACES)
def test_a_certificate_must_be_vouched_for_and_name_the_host(
    start: Callable[..., OwnServer], certificates: Certificates, face: str
) -> None:
    """Anything else is no TLS: an error at once, whatever time there is for retries."""
    port = own_port()
    start(*certificates.of_a_server(port))
    ca = certificates.file("ca.crt")
    by_name, by_address = f"rediss://localhost:{port}", f"rediss://127.0.0.1:{port}"
    for wrong in (
        Connecting(by_name, retry_for_s=60),
        Connecting(by_name, retry_for_s=60, tls_ca_file=certificates.file("other-ca.crt")),
        Connecting(by_address, retry_for_s=60, tls_ca_file=ca),
    ):
        refused(failing(face, wrong), Misconfigured, "TLS_FAILED")
    unchecked = Connecting(by_address, tls_ca_file=ca, tls_check_hostname=False)
    refused(failing(face, unchecked), Misconfigured, "STORE_MISSING")


@pytest.mark.parametrize(
    ("files", "url"),
    [
        ({"tls_ca_file": "none.crt"}, "rediss://localhost:1"),
        ({"tls_key_file": "client.key"}, "rediss://localhost:1"),
        ({"tls_cert_file": "client.crt", "tls_key_file": "server.key"}, "rediss://localhost:1"),
        ({"tls_ca_file": "ca.crt"}, "redis://localhost:1"),
    ],
)
@pytest.mark.parametrize("face", FACES)
def test_tls_files_that_cannot_work_are_an_error_at_once(
    certificates: Certificates, files: dict[str, str], url: str, face: str
) -> None:
    """Files that are missing, do not fit, or would be ignored are a setting's fault and no outage."""
    connecting = Connecting(url, **{name: certificates.file(file) for name, file in files.items()})  # type: ignore[arg-type]

    error = refused(failing(face, connecting), Misconfigured, "SETTING_INVALID")

    assert "tls_" in str(error)


# -- what is sent again ----------------------------------------------------------------------------------------------

READONLY = ReadOnlyError("You can't write against a read only replica.", status_code="READONLY")
OOM = OutOfMemoryError("command not allowed", status_code="OOM")
ABORTED = ExecAbortError("Transaction discarded because of previous errors.", status_code="EXECABORT")
ABORTED_FOR = ExecAbortError("Transaction discarded because of: LOADING the dataset", status_code="EXECABORT")
SET, GET, MULTI, EXEC = ["SET", "k", "v"], ["GET", "k"], ["MULTI"], ["EXEC"]


@pytest.mark.parametrize(
    ("commands", "replies", "again"),
    [
        ([SET], [b"OK"], False),
        ([SET], [READONLY], True),
        ([SET], [OOM], False),
        ([SET, SET], [READONLY, READONLY], True),
        ([SET, SET], [READONLY, OOM], True),
        ([SET, SET], [b"OK", READONLY], False),  # the first was done: say so, and do not ask anew
        ([GET, SET], [b"v", READONLY], True),
        ([MULTI, SET, EXEC], [b"OK", READONLY, ABORTED], True),
        ([MULTI, SET, EXEC], [b"OK", OOM, ABORTED], False),
        ([MULTI, SET, EXEC], [b"OK", b"QUEUED", [READONLY]], True),
        ([MULTI, SET, EXEC], [b"OK", b"QUEUED", ABORTED_FOR], True),
        ([MULTI, SET, GET, EXEC], [b"OK", b"QUEUED", b"QUEUED", [READONLY, b"v"]], True),
        ([MULTI, SET, SET, EXEC], [b"OK", b"QUEUED", b"QUEUED", [READONLY, b"OK"]], False),
    ],
)
def test_an_exchange_is_sent_again_when_nothing_was_written_for_a_reason_that_passes(
    commands: list[list[str]], replies: list[Any], again: bool
) -> None:
    """Every command that writes was refused, one of them for now; a transaction counts by what is in it."""
    attempts = Attempts(commands, Connecting(), wrote=True)

    if again:
        with pytest.raises(Exception, match="refused for now"):
            attempts.judge(replies)
    else:
        assert attempts.judge(replies) is replies


# -- Sentinels -------------------------------------------------------------------------------------------------------


class Watched(NamedTuple):
    """A primary and its replica, and two Sentinels that watch them as `main`, with a password of their own."""

    primary: OwnServer
    replica: OwnServer
    sentinels: list[OwnServer]

    def connecting(self, **options: Any) -> Connecting:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        patient: dict[str, Any] = {"retry_for_s": 120.0, "timeout_s": 30.0, "sentinel_password": SECRET}
        return Connecting(f"redis+sentinel://{hosts}/main/0", **(patient | options))

    def primary_port(self) -> int:
        """Where the primary is by the word of the first Sentinel."""
        with self.sentinels[0].client(password=SECRET) as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])

    def replicate(self) -> None:
        """Returns when the replica holds all that the primary does, and every Sentinel knows that it may take over."""
        with self.primary.client() as client:
            wait_until(lambda: client.info("replication").get("slave0", {}).get("state") == "online")
            client.incr("a-write")
            client.wait(1, 0)
        for sentinel in self.sentinels:
            with sentinel.client(password=SECRET) as client:
                wait_until(lambda: [one["master-link-status"] for one in client.sentinel_slaves("main")] == ["ok"])


@pytest.fixture
def watched(start: Callable[..., OwnServer]) -> Watched:
    at_once = ("--repl-diskless-sync-delay", "0")  # nobody waits for a second replica to come
    primary = start(*at_once)
    replica = start("--replicaof", f"127.0.0.1 {primary.port}", *at_once)
    watch = (
        f"requirepass {SECRET}",
        f"sentinel sentinel-pass {SECRET}",
        f"sentinel monitor main 127.0.0.1 {primary.port} 1",
        "sentinel down-after-milliseconds main 500",
        "sentinel failover-timeout main 3000",
    )
    sentinels = [start(*watch, sentinel=True) for _ in range(2)]
    for sentinel in sentinels:
        with sentinel.client(password=SECRET) as client:
            wait_until(lambda: client.sentinel_master("main")["num-slaves"] == 1)
    return Watched(primary, replica, sentinels)


def test_a_log_finds_the_new_primary_after_the_old_one_died(
    watched: Watched, open_log: Callable[[Connecting], RunnableLog]
) -> None:
    """The append that meets the failover waits for it and goes on; nobody is told to connect anew."""
    log = open_log(watched.connecting())
    first = log.append("s", note("1"))
    watched.replicate()

    watched.primary.kill()
    second = log.append("s", note("2"))

    assert (first.last_seq, second.last_seq) == (1, 2)
    assert ids(log.read("s")) == ["1", "2"]
    assert watched.primary_port() == watched.replica.port


def test_a_log_follows_when_the_primary_is_changed_while_both_live(
    watched: Watched, open_log: Callable[[Connecting], RunnableLog]
) -> None:
    """The old primary answers READONLY from then on: that is no answer as long as the Sentinels know another."""
    log = open_log(watched.connecting())
    log.append("s", note("1"))
    watched.replicate()

    with watched.sentinels[0].client(password=SECRET) as client:
        client.execute_command("SENTINEL", "FAILOVER", "main")
    wait_until(lambda: watched.primary_port() == watched.replica.port)
    seqs = [log.append("s", note(str(n))).last_seq for n in range(2, 5)]

    assert seqs == [2, 3, 4]
    with watched.replica.client() as client:
        assert client.info("replication")["role"] == "master"
        assert client.exists("{dev:main:0}:head:s")


def test_other_sentinels_are_asked_when_one_is_away(
    watched: Watched, open_log: Callable[[Connecting], RunnableLog]
) -> None:
    """Any one of them will do, also one that was not there when the log was opened."""
    watched.sentinels[0].kill()
    log = open_log(watched.connecting())
    works(log)

    watched.sentinels[0].start()
    watched.sentinels[1].kill()
    with watched.primary.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    works(log)


@pytest.mark.parametrize("face", FACES)
def test_what_sentinels_refuse_is_an_error_at_once(watched: Watched, face: str) -> None:
    """A wrong password and a service nobody knows do not pass by themselves; Sentinels that are away may come back."""
    service = Connecting(watched.connecting().url.replace("/main", "/other"), sentinel_password=SECRET)
    refused(failing(face, structs.replace(service, retry_for_s=60)), Misconfigured, "SERVICE_UNKNOWN")
    for wrong in (None, "wrong"):
        connecting = watched.connecting(retry_for_s=60, sentinel_password=wrong)
        error = refused(failing(face, connecting), Misconfigured, "ACCESS_DENIED")
        assert "Sentinel 127.0.0.1:" in str(error)
        assert SECRET not in str(error)

    for sentinel in watched.sentinels:
        sentinel.kill()
    error = refused(failing(face, watched.connecting(retry_for_s=0.2)), Unavailable, "UNREACHABLE")
    assert str(watched.sentinels[1].port) in str(error)


# -- what is known of the connection, and how many there are ------------------------------------------


def test_the_state_says_since_when_a_log_waits_and_why(
    start: Callable[..., OwnServer], open_log: Callable[[Connecting], RunnableLog]
) -> None:
    """While an append waits for its server, and after it; it is tried again as long as it takes."""
    server = start("--appendonly", "yes", "--appendfsync", "always", kind="valkey")
    log: Any = open_log(Connecting(server.url, timeout_s=60.0, retry_for_s=math.inf))
    log.append("s", note())
    assert log.connection == ConnectionState(True, None, None)
    began = time.time()
    server.kill()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(log.append, "s", note())
        wait_until(lambda: not log.connection.connected, message="the log notices")
        state = log.connection
        assert state.waiting_since is not None
        assert began - 1 <= state.waiting_since <= time.time()
        assert "UNREACHABLE" in (state.last_error or "")
        server.start()
        assert waiting.result(60).last_seq == 2
    assert log.connection.connected
    assert log.connection.waiting_since is None
    assert log.connection.last_error == state.last_error or log.connection.last_error


def test_a_log_has_no_more_connections_than_it_may(start: Callable[..., OwnServer]) -> None:
    """Many threads that read share them; whoever finds none free waits for its turn."""
    server = start(kind="valkey")
    with server.client() as client:
        create_store(client, partitions=1)
        connecting = Connecting(server.url, max_connections=4, retry_for_s=60.0)
        with SessionLog.open(connecting) as log, ThreadPoolExecutor(24) as threads:
            log.append("s", [note() for _ in range(50)])
            reading = [threads.submit(lambda: sum(1 for _ in log.read("s"))) for _ in range(400)]
            most = len(client.client_list()) - 1
            while not all(one.done() for one in reading):
                most = max(most, len(client.client_list()) - 1)
            assert [one.result() for one in reading] == [1] * 400
            assert 1 <= most <= 4


def test_whoever_finds_no_connection_free_in_time_is_told(start: Callable[..., OwnServer]) -> None:
    server = start(kind="valkey")
    with server.client() as client:
        create_store(client, partitions=1)
    with SessionLog.open(Connecting(server.url, max_connections=2, retry_for_s=0.1)) as log:
        pool: Any = log.client.connection_pool
        taken = [pool.get_connection() for _ in range(2)]
        refused(lambda: log.head("s"), Unavailable, "POOL_EXHAUSTED")
        for connection in taken:
            pool.release(connection)
        assert log.head("s") is None
