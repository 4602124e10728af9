"""A replication group to break: a primary, replicas and Sentinels, each a process of its own on a loopback port.

Nothing here knows Muster. A node is killed, paused, cut off and started again by its own process id; what it was
(primary or replica, and of whom) stands in its configuration file, where Sentinel keeps it current, as on real hosts.

Theory of operation. Sentinel decides by time, and a test must not: so everything here waits for facts (`settled`, a
changed primary) with a deadline that only a broken group reaches, and no operation relies on how long another took.
A tail is lost for certain, not by luck: what a primary sent to a paused replica is in the replica's receive buffer and
would be applied when it goes on, so `cut_off` also closes the connection at the primary's end before anything is
appended, and the paused replica cannot come back for it.
"""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.waiting import wait_until
from workers.child_process import ChildProcess, start_child
from workers.embedded import find_server_binary

#: The name under which the Sentinels know the group.
SERVICE: Final = "muster"
#: How long a node must be silent before a Sentinel calls it down. Longer than this machine's scheduler ever pauses a
#: process, as far as that can be had: a failover nobody asked for is a fact of life too, and no test may depend on it.
DOWN_AFTER_MS: Final = 1000
#: How long a failover may take before another is tried; also how long a Sentinel waits after a split vote, twice.
FAILOVER_TIMEOUT_MS: Final = 3000
#: A Sentinel looks and talks at the pace of long outages; a test has seconds. Tilt is its answer to a clock that jumps,
#: or to a process that did not run for two seconds: it then does nothing, by default for half a minute.
#: A ping a second would leave none to spare within DOWN_AFTER_MS: the new primary was then called down now and then,
#: and an old one that had just come back without the newest commits was made primary again.
_SENTINEL_PACE: Final = {
    "ping-period": 200,
    "info-period": 500,
    "publish-period": 400,
    "ask-period": 300,
    "tilt-period": 1000,
}
#: Below the range the kernel takes for outgoing connections, and apart from that of workers.embedded: a port must stay
#: free for its node while that is dead.
_PORTS: Final = range(11_000, 20_000)
#: How long anything the group does by itself may take before the test fails.
PATIENCE_S: Final = 60.0

Fsync = Literal["everysec", "always", "off"]


class Node:
    """One process of the group: a server or a Sentinel, with its directory and its configuration file."""

    def __init__(self, name: str, directory: Path, port: int, binary: Path, config: Iterable[str]) -> None:
        self.name = name
        self.port = port
        self.is_paused = False
        self._directory = directory
        self._binary = binary
        self._process: ChildProcess | None = None
        self._config = directory / "node.conf"
        directory.mkdir(parents=True)
        self._config.write_text("\n".join([f"port {port}", "bind 127.0.0.1", f"dir {directory}", *config, ""]))

    def __repr__(self) -> str:
        return f"{self.name}:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """It has a process, which may be paused."""
        return self._process is not None and self._process.poll() is None

    @property
    def answers_at_all(self) -> bool:
        """It runs and is not paused. Whoever is paused is never asked: the question would wait in its socket."""
        return self.is_running and not self.is_paused

    def start(self) -> None:
        """Starts the process, as what its configuration file says it was, and waits until it answers."""
        assert not self.is_running, f"{self} runs"
        mode = ["--sentinel"] if self.name.startswith("sentinel") else []
        with (self._directory / "node.log").open("ab") as log:
            self._process = start_child([self._binary, self._config, *mode], stdout=log, stderr=log)
        self.is_paused = False
        wait_until(self._is_up, timeout_s=PATIENCE_S, message=f"{self} answers")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.is_paused = False

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections, takes what arrives into its buffers, and says nothing."""
        self._signal(signal.SIGSTOP)
        self.is_paused = True

    def resume(self) -> None:
        """SIGCONT: it goes on as if no time had passed, with whatever arrived meanwhile."""
        self._signal(signal.SIGCONT)
        self.is_paused = False

    def ask(self, *command: Any) -> Any:
        """Sends one command on a connection of its own and returns the reply; redis-py's errors go through."""
        with closing(self.client()) as client:
            execute: Callable[..., Any] = client.execute_command
            return execute(*command)

    def client(self) -> redis.Redis:
        """A client that repeats nothing and waits for no answer longer than a failover takes."""
        # RESP 2, whose replies redis-py leaves as they are for whoever asks by `execute_command`.
        once = Retry(NoBackoff(), 0)
        return redis.Redis("127.0.0.1", self.port, protocol=2, socket_timeout=10, socket_connect_timeout=10, retry=once)

    def info(self, section: str) -> dict[str, Any]:
        """A section of INFO."""
        with closing(self.client()) as client:
            found: dict[str, Any] = client.info(section)
        return found

    def role(self) -> tuple[str, str]:
        """`master` and no address; or `slave` and its primary's address, empty while the link is down."""
        match self.ask("ROLE"):
            case [b"master", *_]:
                return "master", ""
            case [b"slave", host, port, b"connected", _]:
                return "slave", f"{host.decode()}:{port}"
            case other:
                return other[0].decode(), ""

    def last_words(self, lines: int = 12) -> str:
        """The end of what it logged, for the message of a test that failed."""
        return "\n".join((self._directory / "node.log").read_text(errors="replace").splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, f"{self} was never started"
        self._process.send_signal(number)

    def _is_up(self) -> bool:
        assert self.is_running, f"{self} ended: {self.last_words()}"
        with suppress(redis.RedisError, OSError):
            return self.ask("PING") in (True, b"PONG")
        return False


class Group:
    """A primary with replicas, watched by three Sentinels. `with Group(directory) as group:` starts and stops it.

    `fsync`: `off` means no append-only file at all. `min_replicas`: the server's own min-replicas-to-write, with a lag
    of `min_replicas_max_lag_s`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        replicas: int = 2,
        fsync: Fsync = "everysec",
        min_replicas: int = 0,
        min_replicas_max_lag_s: int = 2,
        binary: Path | None = None,
    ) -> None:
        binary = binary if binary is not None else find_server_binary()
        self._ports = _Ports(1 + replicas + 3)
        ports = self._ports.numbers
        first, server_ports, sentinel_ports = ports[0], ports[: 1 + replicas], ports[1 + replicas :]
        durability = ["appendonly no"] if fsync == "off" else ["appendonly yes", f"appendfsync {fsync}"]
        server = [
            *durability,
            'save ""',
            "stream-node-max-bytes 1024",
            f"min-replicas-to-write {min_replicas}",
            f"min-replicas-max-lag {min_replicas_max_lag_s}",
            "repl-diskless-sync-delay 0",  # nobody waits for a third replica to come
            "repl-ping-replica-period 1",
        ]
        self.servers = [
            Node(
                f"server-{index}",
                directory / f"server-{index}",
                port,
                binary,
                server if port == first else [*server, f"replicaof 127.0.0.1 {first}"],
            )
            for index, port in enumerate(server_ports)
        ]
        ids = {port: uuid4().hex + uuid4().hex[:8] for port in sentinel_ports}
        self.sentinels = [
            Node(
                f"sentinel-{index}",
                directory / f"sentinel-{index}",
                port,
                binary,
                [
                    f"sentinel myid {ids[port]}",
                    f"sentinel monitor {SERVICE} 127.0.0.1 {first} 2",
                    f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
                    f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}",
                    f"sentinel parallel-syncs {SERVICE} 1",
                    # They know each other and the replicas from the start, instead of finding out over many seconds.
                    *(f"sentinel known-replica {SERVICE} 127.0.0.1 {port}" for port in server_ports[1:]),
                    *(
                        f"sentinel known-sentinel {SERVICE} 127.0.0.1 {other} {id}"
                        for other, id in ids.items()
                        if other != port
                    ),
                ],
            )
            for index, port in enumerate(sentinel_ports)
        ]

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts everything and waits until replicas follow and Sentinels watch."""
        try:
            for node in [*self.servers, *self.sentinels]:
                node.start()
            for sentinel in self.sentinels:
                for name, ms in _SENTINEL_PACE.items():
                    sentinel.ask("SENTINEL", "DEBUG", name, ms)
            self.wait_until_settled()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends every process, paused ones too. What they wrote stays in the directory."""
        for node in [*self.sentinels, *self.servers]:
            node.kill()
        self._ports.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # -- what is so --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The address of the group, over its Sentinels."""
        return f"redis+sentinel://{','.join(node.address for node in self.sentinels)}/{SERVICE}/0"

    def primary(self) -> Node:
        """The server that most Sentinels call the primary; it may be dead or paused."""
        named = [self._named_by(sentinel) for sentinel in self.sentinels if sentinel.answers_at_all]
        (address,) = {address for address in named if 2 * named.count(address) > len(self.sentinels)} or {""}
        for node in self.servers:
            if node.address == address:
                return node
        raise AssertionError(f"no majority of the Sentinels agrees on a primary: {named}")

    def replicas(self) -> list[Node]:
        """All servers but the primary, whatever state they are in."""
        primary = self.primary()
        return [node for node in self.servers if node is not primary]

    def is_settled(self) -> bool:
        """One primary, whom every Sentinel names and every other server that can answer follows; and no Sentinel takes
        any of those for down.
        """
        try:
            primary = self.primary()
            if not primary.answers_at_all or primary.role()[0] != "master":
                return False
            following = [node for node in self.servers if node is not primary and node.answers_at_all]
            return all(node.role() == ("slave", primary.address) for node in following) and all(
                self._sees_well(sentinel, primary, following) for sentinel in self.sentinels if sentinel.answers_at_all
            )
        except (redis.RedisError, OSError, AssertionError):
            return False

    def wait_until_settled(self) -> None:
        wait_until(self.is_settled, timeout_s=PATIENCE_S, message=f"the group settles; {self.state()}")

    def wait_for_failover(self, old: Node) -> Node:
        """Waits until another server is primary, by its own word and that of every Sentinel, and returns it.

        Every one: a Sentinel that slept through the failover would make the new primary a replica of an old one that
        came back sooner than the news.
        """

        def has_moved() -> bool:
            try:
                new = self.primary()
                named = {self._named_by(sentinel) for sentinel in self.sentinels if sentinel.answers_at_all}
                return new is not old and named == {new.address} and new.role()[0] == "master"
            except (redis.RedisError, OSError, AssertionError):
                return False

        wait_until(has_moved, timeout_s=PATIENCE_S, message=f"another server than {old} becomes primary")
        return self.primary()

    def wait_until_replicated(self) -> None:
        """Waits until every replica that can answer holds what the primary holds now."""
        primary = self.primary()
        offset = int(primary.info("replication")["master_repl_offset"])
        for node in self.servers:
            if node is not primary and node.answers_at_all:
                wait_until(_has_reached(node, offset), timeout_s=PATIENCE_S, message=f"{node} holds offset {offset}")

    def state(self) -> str:
        """What every node says of itself, for a message."""
        said = []
        for node in [*self.servers, *self.sentinels]:
            if not node.answers_at_all:
                said.append(f"{node} {'paused' if node.is_running else 'dead'}")
                continue
            try:
                said.append(f"{node} {node.role() if node in self.servers else 'names ' + self._named_by(node)}")
            except (redis.RedisError, OSError) as error:
                said.append(f"{node} {error!r}")
        return "; ".join(said)

    # -- what happens to it ------------------------------------------------------------------------------------------

    def cut_off(self, replicas: Sequence[Node]) -> None:
        """Nothing that the primary takes from now on reaches these replicas: they are paused, their links closed.

        They may be resumed once the primary is dead or paused for good; before, they would fetch what they missed.
        """
        primary = self.primary()
        for node in replicas:
            node.pause()
        primary.ask("CLIENT", "KILL", "TYPE", "replica")  # who is not paused comes back at once and misses nothing
        others = [node for node in self.servers if node is not primary and node.answers_at_all]
        for node in others:
            wait_until(_follows(node, primary), timeout_s=PATIENCE_S, message=f"{node} follows {primary} again")

    # -- what is asked -----------------------------------------------------------------------------------------------

    def _named_by(self, sentinel: Node) -> str:
        host, port = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return f"{_text(host)}:{_text(port)}"

    def _sees_well(self, sentinel: Node, primary: Node, following: list[Node]) -> bool:
        """Whether a Sentinel knows this primary and these replicas, and takes none of them for down or on the move."""
        if self._named_by(sentinel) != primary.address:
            return False
        rows = [_fields(row) for row in sentinel.ask("SENTINEL", "REPLICAS", SERVICE)]
        flags = {f"{row['ip']}:{row['port']}": row["flags"] for row in rows}
        master = _fields(sentinel.ask("SENTINEL", "MASTER", SERVICE))
        return (
            all(flags.get(node.address) == "slave" for node in following)
            and master["flags"] == "master"
            and int(master["num-other-sentinels"]) == len(self.sentinels) - 1
        )


def _follows(node: Node, primary: Node) -> Callable[[], bool]:
    return lambda: node.role() == ("slave", primary.address)


def _has_reached(node: Node, offset: int) -> Callable[[], bool]:
    return lambda: int(node.info("replication")["slave_repl_offset"]) >= offset


def _fields(flat: Sequence[Any]) -> dict[str, str]:
    """A reply of names and values in turn, as a dict."""
    texts = [_text(item) for item in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class _Ports:
    """Loopback ports nobody listens on, all different, and no other group's until they are released.

    A name in the kernel's own namespace of sockets says so: whoever holds it may die in any way.
    """

    def __init__(self, count: int) -> None:
        self._held: list[socket.socket] = []
        self.numbers: list[int] = []
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            if len(self.numbers) == count:
                break
            if _is_free(port) and self._hold(port):
                self.numbers.append(port)

    def release(self) -> None:
        for held in self._held:
            held.close()

    def _hold(self, port: int) -> bool:
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0muster-chaos-{port}")
        except OSError:
            name.close()
            return False
        self._held.append(name)
        return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
