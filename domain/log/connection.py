"""The connection to a server: how it is reached, how commands are sent, what is sent again, and what errors mean.

redis-py's own retries are off: they would send a write again without telling. What is sent again is sent again here, by
one policy. An attempt ends in one of three ways:

- it got all replies, and no write succeeded while some command was refused for a reason that passes by itself (PASSES):
  nothing was written, so the same is sent again;
- it did not get all replies: the same is sent again, and from now on the exchange is *in doubt*, because the server may
  have done what it did not answer. Only a good reply to the write settles that; whatever else comes last, the outcome
  is UNKNOWN;
- anything else is the answer.

Through Sentinels, each new connection asks them who the primary is. A server that says it is none loses its connections
at once, so the next attempt finds the new one.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, TypeAlias

import redis
import redis.asyncio
from hiredis import pack_command
from msgspec import Meta, Struct
from redis import connection as blocking
from redis.asyncio import connection as asynchronous
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, MasterDownError, MaxConnectionsError, NoPermissionError, ReadOnlyError
from redis.retry import Retry
from tenacity import AsyncRetrying, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from domain.errors import Misconfigured, MusterError, OutcomeUnknown, Unavailable
from domain.log.address import Address, parse_address, without_password
from domain.log.protocol import Command, server_error, taken
from domain.log.timing import Timing

#: What passes by itself, so that the same is sent again for `retry_for_s`; everything else fails at once. The server
#: still refuses writes for lack of replicas in the first moments of a new primary.
PASSES: Final = frozenset(
    {
        "UNREACHABLE",
        "SERVER_LOADING",
        "SERVER_BUSY",
        "SERVER_FULL",
        "SERVER_READ_ONLY",
        "SERVER_CUT_OFF",
        "SERVER_LACKS_REPLICAS",
        "POOL_EXHAUSTED",
    }
)
#: How many connections a log opens at most, unless told otherwise. Appends need two, however many producers there are.
MAX_CONNECTIONS: Final = 64
#: Told what a server says of itself: its run id and its replication id are in it.
Met: TypeAlias = Callable[[bytes], None]
_WHO_IS_IT: Final = ("INFO", "server", "replication")
#: What a server says that is not the primary, or no longer.
_NO_PRIMARY: Final = frozenset({"SERVER_READ_ONLY", "SERVER_CUT_OFF"})
#: The longest one Sentinel is waited for before the next is asked, in seconds.
SENTINEL_TIMEOUT_S: Final = 1.0
#: Commands that write nothing themselves. One that is missing here is taken for a write, which errs on the safe side.
_READS: Final = frozenset(
    {"CONFIG", "EXEC", "GET", "HGET", "HGETALL", "HMGET", "INFO", "MGET", "MULTI", "TIME", "WAIT", "WAITAOF"}
    | {"XRANGE", "XREVRANGE", "ZRANGEBYLEX", "ZSCORE"}
)


class Connecting(Struct, frozen=True):
    """How to reach a server, and how long to keep trying. Its repr shows no password."""

    #: Address of the server or of its Sentinels; domain/log/address.py has the forms.
    url: str = "redis://127.0.0.1:6379/0"
    #: How long one connection attempt, and one command, may take, in seconds.
    timeout_s: Annotated[float, Meta(gt=0)] = 5.0
    #: How long a request without an answer is sent again, in seconds; 0 sends once, `inf` as long as it takes.
    retry_for_s: Annotated[float, Meta(ge=0)] = 10.0
    #: User and password on the server; each wins over the one in the URL.
    username: str | None = None
    password: str | None = None
    #: Who vouches for the server's certificate, beside those the system trusts (PEM).
    tls_ca_file: str | None = None
    #: The client's own certificate and key, if the server wants one (PEM, the key without a passphrase).
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    #: Whether the certificate must name the host that was connected to.
    tls_check_hostname: bool = True
    #: User and password on the Sentinels, which have their own.
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    #: How many connections to have at most; whoever finds none free tries again as after an outage.
    max_connections: Annotated[int, Meta(ge=2)] = MAX_CONNECTIONS
    #: From how long on an append is logged, with its phases, in seconds.
    slow_append_s: Annotated[float, Meta(gt=0)] = 1.0

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["url"] = without_password(self.url)
        for name in ("password", "sentinel_password"):
            shown[name] = None if shown[name] is None else "***"
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


#: A server on this host, on the usual port.
LOCALHOST = Connecting()


def connect(connecting: Connecting, met: Met | None = None) -> redis.Redis:
    """A blocking client that never repeats a command by itself. `met` is told which server a new connection leads to.

    Raises Misconfigured (SETTING_INVALID) for a bad URL and for TLS files that cannot be used.
    """
    address = parse_address(connecting.url)
    options = _options(address, connecting) | {"retry": Retry(NoBackoff(), 0), "met": met}
    if address.service:
        options["sentinels"] = _Sentinels(address, connecting, _TlsConnection if address.tls else _TcpConnection)
        options["connection_class"] = _TlsViaSentinels if address.tls else _ViaSentinels
    elif address.path:
        options["connection_class"] = _SocketConnection
    else:
        options["connection_class"] = _TlsConnection if address.tls else _TcpConnection
    return redis.Redis.from_pool(_Pool(max_connections=connecting.max_connections, **options))


def connect_async(connecting: Connecting, met: Met | None = None) -> redis.asyncio.Redis:
    """An asyncio client that never repeats a command by itself. As `connect`."""
    address = parse_address(connecting.url)
    # `send_async` bounds every step itself: redis-py makes a task for each write that has a timeout.
    options = _options(address, connecting) | {"retry": AsyncRetry(NoBackoff(), 0), "met": met, "socket_timeout": None}
    if address.service:
        ask = _AsyncTlsConnection if address.tls else _AsyncTcpConnection
        options["sentinels"] = _AsyncSentinels(address, connecting, ask)
        options["connection_class"] = _AsyncTlsViaSentinels if address.tls else _AsyncViaSentinels
    elif address.path:
        options["connection_class"] = _AsyncSocketConnection
    else:
        options["connection_class"] = _AsyncTlsConnection if address.tls else _AsyncTcpConnection
    return redis.asyncio.Redis.from_pool(_AsyncPool(max_connections=connecting.max_connections, **options))


def _options(address: Address, connecting: Connecting) -> dict[str, Any]:
    """Options of redis-py's connections to the server, blocking and asyncio alike."""
    options: dict[str, Any] = {
        "db": address.db,
        "username": connecting.username or address.username,
        "password": connecting.password or address.password,
        "socket_timeout": connecting.timeout_s,
        "socket_connect_timeout": connecting.timeout_s,
        "decode_responses": False,
        "protocol": 2,
        **_tls_options(address, connecting),
    }
    if address.path:
        return options | {"path": address.path}
    host, port = address.hosts[0]
    return options | {"host": host, "port": port}


def _tls_options(address: Address, connecting: Connecting) -> dict[str, Any]:
    """The part about TLS. What cannot work, or would be ignored in silence, is an error now and not an outage later."""
    ca, certificate, key = connecting.tls_ca_file, connecting.tls_cert_file, connecting.tls_key_file
    if not address.tls:
        if ca or certificate or key:
            raise Misconfigured(
                "SETTING_INVALID", "redis.tls_… files are set, but redis.url asks for no TLS: rediss:// does"
            )
        return {}
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate:
            context.load_cert_chain(certificate, key, password="")  # empty: a passphrase would be asked for on the tty
        elif key:
            raise OSError("a key without a certificate")
    except OSError as error:  # as ssl.SSLError is
        raise Misconfigured(
            "SETTING_INVALID",
            f"the files of redis.tls_ca_file, tls_cert_file, tls_key_file ({ca}, {certificate}, {key}) do not work: "
            f"{error}",
        ) from None
    return {
        "ssl_ca_certs": ca,
        "ssl_certfile": certificate,
        "ssl_keyfile": key,
        "ssl_password": "",
        "ssl_check_hostname": connecting.tls_check_hostname,
    }


# -- connections -----------------------------------------------------------------------------------------------------


class _LeavesReplicas(blocking.AbstractConnection):
    """A connection that asks which server it leads to, and is not used again when that says it is not the primary."""

    def __init__(self, *, met: Met | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._met = met

    def on_connect_check_health(self, check_health: bool = True) -> None:
        super().on_connect_check_health(check_health=check_health)
        if self._met is not None:
            self.send_command(*_WHO_IS_IT)  # type: ignore[no-untyped-call]
            with suppress(redis.ResponseError):  # a user without the right to ask finds losses append by append
                self._met(self.read_response())

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except (ReadOnlyError, MasterDownError):
            self.mark_for_reconnect()  # type: ignore[no-untyped-call]
            raise


class _TcpConnection(_LeavesReplicas, blocking.Connection):
    pass


class _TlsConnection(_LeavesReplicas, blocking.SSLConnection):
    pass


class _SocketConnection(_LeavesReplicas, blocking.UnixDomainSocketConnection):
    pass


class _ViaSentinels(_TcpConnection):
    """Connects to whoever the Sentinels call the primary by then."""

    def __init__(self, *, sentinels: _Sentinels, **options: Any) -> None:
        super().__init__(**options)
        self._sentinels = sentinels

    def _connect(self) -> Any:
        self.host, self.port = self._sentinels.primary()
        return super()._connect()  # type: ignore[no-untyped-call]


class _TlsViaSentinels(_ViaSentinels, _TlsConnection):
    pass


class _AsyncLeavesReplicas(asynchronous.AbstractConnection):
    def __init__(self, *, met: Met | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._met = met

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health=check_health)
        if self._met is not None:
            await self.send_command(*_WHO_IS_IT)
            with suppress(redis.ResponseError):
                self._met(await self.read_response())

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except (ReadOnlyError, MasterDownError):
            self.mark_for_reconnect()  # type: ignore[no-untyped-call]
            raise


class _AsyncTcpConnection(_AsyncLeavesReplicas, asynchronous.Connection):
    pass


class _AsyncTlsConnection(_AsyncLeavesReplicas, asynchronous.SSLConnection):
    pass


class _AsyncSocketConnection(_AsyncLeavesReplicas, asynchronous.UnixDomainSocketConnection):
    pass


class _AsyncViaSentinels(_AsyncTcpConnection):
    def __init__(self, *, sentinels: _AsyncSentinels, **options: Any) -> None:
        super().__init__(**options)
        self._sentinels = sentinels

    async def _connect(self) -> None:
        self.host, self.port = await self._sentinels.primary()
        await super()._connect()  # type: ignore[no-untyped-call]


class _AsyncTlsViaSentinels(_AsyncViaSentinels, _AsyncTlsConnection):
    pass


# -- pools -----------------------------------------------------------------------------------------------------------


class _Pool(redis.ConnectionPool):
    """redis-py's pool, with what it does for every exchange and nobody here looks at left out: it took longer than all
    else the client does for one append.
    """

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        self._checkpid()
        with self._lock:
            connection = self._available_connections.pop() if self._available_connections else self.make_connection()
            self._in_use_connections.add(connection)
        try:
            _make_ready(connection)
        except BaseException:
            connection.disconnect()  # it may be half-way through its handshake
            self.release(connection)
            raise
        return connection

    def release(self, connection: Any) -> None:
        if connection.pid != self.pid or connection.should_reconnect():
            super().release(connection)
            return
        self._checkpid()
        with self._lock:
            if connection in self._in_use_connections:
                self._in_use_connections.remove(connection)
                self._available_connections.append(connection)


def _make_ready(connection: Any) -> None:
    """Connects, also anew where the server has closed the connection or something is left on it."""
    if connection.is_connected:
        try:
            if not connection.can_read():
                return
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            pass
        connection.disconnect()
    connection.connect()


class _AsyncPool(redis.asyncio.ConnectionPool):
    """As `_Pool`. Nothing is awaited between looking for a free connection and taking it, so no lock is needed."""

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        connection: Any = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            if not connection.is_connected or await connection.can_read():
                await connection.disconnect()
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        if connection.should_reconnect():
            await super().release(connection)
            return
        self._in_use_connections.remove(connection)
        self._available_connections.append(connection)


# -- Sentinels -------------------------------------------------------------------------------------------------------


class ServiceUnknown(redis.ConnectionError):
    """The Sentinels that answered watch no service of this name."""


class _AllSentinels:
    """The Sentinels of a service, and how each is asked: on a connection of its own, once. Does no I/O."""

    def __init__(self, address: Address, connecting: Connecting, connection_class: type[Any]) -> None:
        self.question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
        self.service = address.service
        #: In the order they are asked: the one that answered last comes first.
        self.order: Sequence[tuple[str, int]] = address.hosts
        self._class = connection_class
        timeout_s = min(connecting.timeout_s, SENTINEL_TIMEOUT_S)
        self._options = _options(address, connecting) | {
            "db": 0,
            "username": connecting.sentinel_username,
            "password": connecting.sentinel_password,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
        }

    def connection(self, sentinel: tuple[str, int], retry: Any) -> Any:
        host, port = sentinel
        return self._class(**(self._options | {"host": host, "port": port, "retry": retry}))

    def named(self, sentinel: tuple[str, int], reply: Any) -> tuple[str, int] | None:
        """The primary by a Sentinel's word; None if it does not know the service."""
        if not reply:
            return None
        self.order = [sentinel, *(other for other in self.order if other != sentinel)]
        host, port = reply
        return host.decode(), int(port)

    def nobody(self, errors: list[tuple[tuple[str, int], Exception]]) -> redis.ConnectionError | redis.ResponseError:
        """Why no Sentinel named a primary. What will not pass by itself goes before what may."""
        for (host, port), error in errors:
            if isinstance(error, (redis.AuthenticationError, NoPermissionError)):
                return type(error)(f"{error} (so the Sentinel {host}:{port})", status_code=error.status_code)
        if len(errors) < len(self.order):
            return ServiceUnknown(f"the Sentinels know no service {self.service!r}")
        told = "; ".join(f"{host}:{port}: {error}" for (host, port), error in errors)
        return redis.ConnectionError(f"no Sentinel answered ({told})")


class _Sentinels(_AllSentinels):
    def primary(self) -> tuple[str, int]:
        """Where the primary is. Raises redis-py's errors."""
        errors: list[tuple[tuple[str, int], Exception]] = []
        for sentinel in self.order:
            connection = self.connection(sentinel, Retry(NoBackoff(), 0))
            try:
                connection.connect()
                connection.send_command(*self.question)
                found = self.named(sentinel, connection.read_response())
            except (redis.RedisError, OSError) as error:
                errors.append((sentinel, error))
                continue
            finally:
                connection.disconnect()
            if found is not None:
                return found
        raise self.nobody(errors)


class _AsyncSentinels(_AllSentinels):
    async def primary(self) -> tuple[str, int]:
        errors: list[tuple[tuple[str, int], Exception]] = []
        for sentinel in self.order:
            connection = self.connection(sentinel, AsyncRetry(NoBackoff(), 0))
            try:
                await connection.connect()
                await connection.send_command(*self.question)
                found = self.named(sentinel, await connection.read_response())
            except (redis.RedisError, OSError) as error:
                errors.append((sentinel, error))
                continue
            finally:
                await connection.disconnect()
            if found is not None:
                return found
        raise self.nobody(errors)


# -- errors ----------------------------------------------------------------------------------------------------------


def connection_error(error: Exception) -> MusterError:
    """The typed error for what redis-py raises when a command gets no good answer."""
    error = _origin(error)
    word = _first_word(error)
    if word is not None:
        return server_error(f"{word} {error}")
    if isinstance(error, redis.ResponseError):
        return server_error(str(error))
    if isinstance(error, redis.AuthenticationError):
        return server_error(f"NOAUTH {error}")
    if isinstance(error, MaxConnectionsError):
        return Unavailable("POOL_EXHAUSTED", f"all connections of this client are in use: {error}")
    if isinstance(error, ServiceUnknown):
        return Misconfigured("SERVICE_UNKNOWN", str(error))
    if isinstance(error, ssl.SSLError):
        return Misconfigured("TLS_FAILED", f"no TLS with the server: {error}")
    if isinstance(error, InvalidResponse):
        return Misconfigured(
            "NO_SUCH_PROTOCOL", f"what answers at the address does not speak as a server does: {error}"
        )
    if not isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError)):
        return Unavailable("SERVER_ERROR", f"the client says: {error}")
    return Unavailable("UNREACHABLE", f"no answer from the server: {error}")


def _origin(error: Exception) -> Exception:
    """What redis-py wrapped into a general ConnectionError, where that says more.

    One step back and only to these: further back is what the caller was handling already.
    """
    broke = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  # the connection did, nobody refused
    for inner in (error.__cause__, error.__context__):
        if isinstance(inner, ssl.SSLError) and not isinstance(inner, broke):
            return inner
    if type(error) is redis.ConnectionError and isinstance(error.__cause__, redis.RedisError):
        return error.__cause__
    return error


def _first_word(error: BaseException) -> str | None:
    """The word that redis-py cut off an error reply; None if there was none, or no reply."""
    word: str | None = getattr(error, "status_code", None)
    return word


def raised(reply: Any) -> Any:
    """The reply, unless it is an error: that is raised, typed."""
    if isinstance(reply, Exception):
        raise connection_error(reply)
    return taken(reply)


# -- exchanges -------------------------------------------------------------------------------------------------------


class ConnectionState(Struct, frozen=True):
    """Whether the server answered when it was last asked; if not, since when that is so (seconds since 1970), and the
    last error, whether it is over or not.
    """

    connected: bool
    waiting_since: float | None
    last_error: str | None


class Line:
    """What a log knows of its connection, kept by every exchange."""

    def __init__(self) -> None:
        self._waiting_since: float | None = None
        self._last_error: str | None = None

    @property
    def state(self) -> ConnectionState:
        return ConnectionState(self._waiting_since is None, self._waiting_since, self._last_error)

    def answered(self) -> None:
        self._waiting_since = None

    def failed(self, error: Exception) -> None:
        if self._waiting_since is None:
            self._waiting_since = time.time()
        self._last_error = str(connection_error(error))


class _NotSent(Exception):
    """An attempt that found no connection, and why."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Refused(Exception):
    """An attempt whose replies say that nothing was written, for a reason that passes."""

    def __init__(self, replies: list[Any], *, by_no_primary: bool) -> None:
        super().__init__("refused for now")
        self.replies = replies
        self.by_no_primary = by_no_primary


class Attempts:
    """One exchange with the server: the retry policy, and what is known of a write after the attempts so far."""

    def __init__(self, commands: Sequence[Command], connecting: Connecting, *, wrote: bool, once: bool = False) -> None:
        self._commands = commands
        self._wrote = wrote
        self._in_doubt = False
        self._until = time.monotonic() + (0 if once else connecting.retry_for_s)

    def go_on(self, error: Exception) -> bool:
        """Whether there is to be another attempt after the first one, which ended so."""
        return self._is_passing(error) and time.monotonic() < self._until

    def policy(self) -> dict[str, Any]:
        """Options for tenacity, blocking and asyncio alike. The delay is overshot by at most one attempt."""
        return {
            "retry": retry_if_exception(self._is_passing),
            "stop": stop_after_delay(max(0.0, self._until - time.monotonic())),
            "wait": wait_random_exponential(multiplier=0.01, max=1.0),
            "reraise": True,
        }

    def _is_passing(self, error: BaseException) -> bool:
        """Whether sending the same again may help."""
        if isinstance(error, _NotSent):
            error = error.error
        elif isinstance(error, (redis.RedisError, OSError)):
            self._in_doubt = True
        else:
            return isinstance(error, _Refused)
        return connection_error(error).code in PASSES

    def judge(self, replies: list[Any]) -> list[Any]:
        """The replies to an attempt, if they are the answer. Raises _Refused or OutcomeUnknown."""
        errors = [reply for _, reply in self._outcomes(replies) if isinstance(reply, Exception)]
        if not errors:
            return replies
        codes = {connection_error(error).code for error in errors}
        if codes & PASSES and not any(self._has_written(*outcome) for outcome in self._outcomes(replies)):
            raise _Refused(replies, by_no_primary=bool(codes & _NO_PRIMARY))
        return self.last_word(replies)

    def last_word(self, replies: list[Any]) -> list[Any]:
        """The replies, unless a write of an earlier attempt is in doubt: that it is refused now does not settle it."""
        if self._wrote and self._in_doubt:
            for command, reply in self._outcomes(replies):
                if isinstance(reply, Exception) and (command[0] == "EXEC" or command[0] not in _READS):
                    cause = connection_error(reply).cause
                    raise OutcomeUnknown("OUTCOME_UNKNOWN", f"no reply to a write, and then: {cause}")
        return replies

    def failed(self, error: Exception) -> MusterError:
        """The typed error, after the last attempt."""
        if self._wrote and self._in_doubt:
            return OutcomeUnknown("OUTCOME_UNKNOWN", f"no reply to a write: {error}")
        return connection_error(error)

    def _has_written(self, command: Command, reply: Any) -> bool:
        return self._wrote and command[0] not in _READS and not isinstance(reply, Exception)

    def _outcomes(self, replies: list[Any]) -> Iterator[tuple[Command, Any]]:
        """Each command with its own reply; those of a transaction are in the reply to its EXEC."""
        queued: list[Command] | None = None
        for command, reply in zip(self._commands, replies, strict=True):
            if command[0] == "MULTI":
                queued = []
            elif command[0] == "EXEC" and isinstance(reply, list):
                yield from zip(queued or [], reply, strict=True)
                queued = None
            elif queued is not None and reply == b"QUEUED":
                queued.append(command)
            else:
                yield command, reply


def send(
    client: redis.Redis,
    commands: list[Command],
    connecting: Connecting,
    *,
    wrote: bool,
    once: bool = False,
    line: Line | None = None,
    timing: Timing | None = None,
) -> list[Any]:
    """Sends commands in one write and returns their replies; errors of single commands are among them.

    `wrote`: some of the commands write. `once`: they are not sent again. Raises the typed error when no replies came,
    OutcomeUnknown when a write may or may not have been done. `timing` is told when they were sent.
    """
    attempts = Attempts(commands, connecting, wrote=wrote, once=once)

    def attempt() -> list[Any]:
        try:
            replies = _send_once(client, commands, timing)
        except (_NotSent, redis.RedisError, OSError) as error:
            if line is not None:
                line.failed(error.error if isinstance(error, _NotSent) else error)
            raise
        if line is not None:
            line.answered()
        try:
            return attempts.judge(replies)
        except _Refused as refused:
            if refused.by_no_primary:
                client.connection_pool.disconnect(inuse_connections=False)  # the idle ones lead to the same server
            raise

    try:
        try:
            return attempt()  # nearly all end here; a policy is set up for those that do not
        except Exception as error:
            if not attempts.go_on(error):
                raise
        return Retrying(**attempts.policy())(attempt)
    except _Refused as refused:
        return attempts.last_word(refused.replies)
    except _NotSent as not_sent:
        raise attempts.failed(not_sent.error) from not_sent.error
    except (redis.RedisError, OSError) as error:
        raise attempts.failed(error) from error


def _send_once(client: redis.Redis, commands: list[Command], timing: Timing | None = None) -> list[Any]:
    # Straight on a connection: redis-py's pipeline costs as much again as the exchange itself.
    pool: Any = client.connection_pool
    try:
        connection = pool.get_connection()
    except (redis.RedisError, OSError) as error:
        raise _NotSent(error) from error
    try:
        connection.send_packed_command([_packed(commands)])
        if timing is not None:
            timing.sent = time.perf_counter()
        return [_reply_or_error(connection) for _ in commands]
    except BaseException:
        connection.disconnect()  # replies that were not read must not be taken for those of the next caller
        raise
    finally:
        pool.release(connection)


def _packed(commands: list[Command]) -> bytes:
    """The commands as they are sent. hiredis packs text, bytes and numbers, and there is nothing else."""
    return b"".join([pack_command(tuple(command)) for command in commands])


def _reply_or_error(connection: Any) -> Any:
    try:
        return connection.read_response(disconnect_on_error=False)
    except redis.RedisError as error:
        return _replied(error)


def _replied(error: redis.RedisError) -> redis.RedisError:
    """The error, if it is a reply of the server: then the next reply can be read. Raises it otherwise."""
    if isinstance(error, redis.ResponseError) or _first_word(error) is not None:
        return error
    raise error


async def send_async(
    client: redis.asyncio.Redis,
    commands: list[Command],
    connecting: Connecting,
    *,
    wrote: bool,
    once: bool = False,
    line: Line | None = None,
    timing: Timing | None = None,
) -> list[Any]:
    """As `send`."""
    attempts = Attempts(commands, connecting, wrote=wrote, once=once)

    async def attempt() -> list[Any]:
        try:
            replies = await _send_once_async(client, commands, connecting.timeout_s, timing)
        except (_NotSent, redis.RedisError, OSError) as error:
            if line is not None:
                line.failed(error.error if isinstance(error, _NotSent) else error)
            raise
        if line is not None:
            line.answered()
        try:
            return attempts.judge(replies)
        except _Refused as refused:
            if refused.by_no_primary:
                await client.connection_pool.disconnect(inuse_connections=False)
            raise

    try:
        try:
            return await attempt()
        except Exception as error:
            if not attempts.go_on(error):
                raise
        return await AsyncRetrying(**attempts.policy())(attempt)
    except _Refused as refused:
        return attempts.last_word(refused.replies)
    except _NotSent as not_sent:
        raise attempts.failed(not_sent.error) from not_sent.error
    except (redis.RedisError, OSError) as error:
        raise attempts.failed(error) from error


async def _send_once_async(
    client: redis.asyncio.Redis, commands: list[Command], timeout_s: float, timing: Timing | None = None
) -> list[Any]:
    pool: Any = client.connection_pool
    try:
        async with asyncio.timeout(timeout_s):
            connection = await pool.get_connection()
    except TimeoutError as error:
        raise _NotSent(redis.TimeoutError("Timeout connecting to the server")) from error
    except (redis.RedisError, OSError) as error:
        raise _NotSent(error) from error
    try:
        async with asyncio.timeout(timeout_s) as limit:
            await connection.send_packed_command(_packed(commands))
            if timing is not None:
                timing.sent = time.perf_counter()
            replies = []
            for _ in commands:
                replies.append(await _reply_or_error_async(connection))
                if len(commands) > 1:
                    limit.reschedule(asyncio.get_running_loop().time() + timeout_s)
            return replies
    except TimeoutError as error:
        await connection.disconnect()
        raise redis.TimeoutError("Timeout reading from the server") from error
    except BaseException:
        await connection.disconnect()
        raise
    finally:
        await pool.release(connection)


async def _reply_or_error_async(connection: Any) -> Any:
    try:
        return await connection.read_response(disconnect_on_error=False)
    except redis.RedisError as error:
        return _replied(error)
