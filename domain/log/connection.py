"""The connection to a server: how it is reached, how commands are sent, what is sent again, and what errors mean.

redis-py's own retries are off: they would send a write again without telling. What is sent again is sent again here, by
one policy.
"""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from msgspec import Struct
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from tenacity import AsyncRetrying, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from domain.errors import Misconfigured, MusterError, OutcomeUnknown, Unavailable
from domain.log.protocol import Command, server_error, taken


class Connecting(Struct, frozen=True):
    """How to reach a server, and how long to keep trying."""

    url: str = "redis://127.0.0.1:6379/0"
    #: How long one connection attempt, and one command, may take.
    timeout_s: float = 5.0
    #: How long a request is sent again when no answer comes; 0 sends once.
    retry_for_s: float = 10.0


#: A server on this host, on the usual port.
LOCALHOST = Connecting()


def connection_options(connecting: Connecting) -> dict[str, Any]:
    """Options for redis-py, blocking and asyncio alike."""
    return {
        "socket_timeout": connecting.timeout_s,
        "socket_connect_timeout": connecting.timeout_s,
        "decode_responses": False,
        "protocol": 2,
    }


def connect(connecting: Connecting) -> redis.Redis:
    """A blocking client that never repeats a command by itself. Raises Misconfigured (SETTING_INVALID) for a bad
    URL.
    """
    options = {**connection_options(connecting), "retry": Retry(NoBackoff(), 0)}
    try:
        return redis.Redis.from_url(connecting.url, **options)
    except ValueError as error:
        raise Misconfigured(
            "SETTING_INVALID", f"the URL {without_password(connecting.url)} is invalid: {error}"
        ) from None


def connect_async(connecting: Connecting) -> redis.asyncio.Redis:
    """An asyncio client that never repeats a command by itself."""
    options = {**connection_options(connecting), "retry": AsyncRetry(NoBackoff(), 0)}
    try:
        return redis.asyncio.Redis.from_url(connecting.url, **options)
    except ValueError as error:
        raise Misconfigured(
            "SETTING_INVALID", f"the URL {without_password(connecting.url)} is invalid: {error}"
        ) from None


def without_password(url: str) -> str:
    """A URL as it may be shown: whatever stands between the user and the last @ is left out, also where it is wrong."""
    scheme, separator, rest = url.partition("://")
    user, at, address = rest.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}:***@{address}" if at else url


def connection_error(error: Exception, *, wrote: bool = False) -> MusterError:
    """The typed error for what redis-py raises when a command gets no good answer.

    `wrote`: an attempt to write was sent and got no reply, whatever a later attempt met.
    """
    if wrote:
        return OutcomeUnknown("OUTCOME_UNKNOWN", f"no reply to a write: {error}")
    word = _first_word(error)
    if word is not None:
        return server_error(f"{word} {error}")
    if isinstance(error, redis.ResponseError):
        return server_error(str(error))
    if isinstance(error, redis.AuthenticationError):
        return server_error(f"NOAUTH {error}")
    return Unavailable("UNREACHABLE", f"no answer from the server: {error}")


def _first_word(error: BaseException) -> str | None:
    """The word that redis-py cut off an error reply; None if there was none, or no reply."""
    word: str | None = getattr(error, "status_code", None)
    return word


class Sending:
    """One exchange with the server: the retry policy, and whether anything may have been sent."""

    def __init__(self, connecting: Connecting, *, wrote: bool) -> None:
        self._wrote = wrote
        self._sent = False
        #: Options for tenacity, blocking and asyncio alike. The delay is overshot by at most one attempt.
        self.policy: dict[str, Any] = {
            "retry": retry_if_exception(self._is_passing),
            "stop": stop_after_delay(connecting.retry_for_s),
            "wait": wait_random_exponential(multiplier=0.01, max=1.0),
            "reraise": True,
        }

    def _is_passing(self, error: BaseException) -> bool:
        """Whether sending the same again may help."""
        if isinstance(error, redis.AuthenticationError):
            return False
        if not isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError)):
            return False
        replied = _first_word(error) is not None
        self._sent = self._sent or not (replied or "connecting to" in str(error))
        return True

    def failed(self, error: Exception) -> MusterError:
        """The typed error, after the last attempt."""
        return connection_error(error, wrote=self._wrote and self._sent)


def send(client: redis.Redis, commands: list[Command], connecting: Connecting, *, wrote: bool) -> list[Any]:
    """Sends commands in one write and returns their replies; errors of single commands are among them."""
    sending = Sending(connecting, wrote=wrote)
    try:
        replies: list[Any] = Retrying(**sending.policy)(_send_once, client, commands)
        return replies
    except (redis.RedisError, OSError) as error:
        raise sending.failed(error) from error


def _send_once(client: redis.Redis, commands: list[Command]) -> list[Any]:
    # Straight on a connection: redis-py's pipeline costs as much again as the exchange itself.
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands(commands))
        return [_reply_or_error(connection) for _ in commands]
    except BaseException:
        connection.disconnect()  # replies that were not read must not be taken for those of the next caller
        raise
    finally:
        pool.release(connection)


def _reply_or_error(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error


async def send_async(
    client: redis.asyncio.Redis, commands: list[Command], connecting: Connecting, *, wrote: bool
) -> list[Any]:
    sending = Sending(connecting, wrote=wrote)
    try:
        replies: list[Any] = await AsyncRetrying(**sending.policy)(_send_once_async, client, commands)
        return replies
    except (redis.RedisError, OSError) as error:
        raise sending.failed(error) from error


async def _send_once_async(client: redis.asyncio.Redis, commands: list[Command]) -> list[Any]:
    pool: Any = client.connection_pool
    connection = await pool.get_connection()
    try:
        await connection.send_packed_command(connection.pack_commands(commands))
        return [await _reply_or_error_async(connection) for _ in commands]
    except BaseException:
        await connection.disconnect()
        raise
    finally:
        await pool.release(connection)


async def _reply_or_error_async(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except redis.ResponseError as error:
        return error


def raised(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise connection_error(reply)
    return taken(reply)
