"""Reading ahead: a page is asked for before the one at hand is gone through, so that server and reader both work.

Nothing depends on it. What was asked for ahead and gets no answer is asked for again, in the way that everything is: so
here no error is judged, and none is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import redis

from domain.log.protocol import Command, Flow, ReadFlow, Request
from domain.log.uncollected import uncollected
from domain.stretch import Stretch

T = TypeVar("T")


class Asked(Protocol):
    """Requests that were sent."""

    def answers(self) -> list[Any]:
        """Their answers; waits for them."""
        ...

    def drop(self) -> None:
        """Nobody wants them any more."""
        ...


class Runs(Protocol):
    """What asks the requests of flows."""

    def run(self, flow: Flow[T]) -> T: ...
    def ask(self, requests: list[Request]) -> Asked: ...


class ReadingAhead:
    """The further pages of readings, one reading after another."""

    def __init__(self, log: Runs, readings: Iterable[ReadFlow]) -> None:
        self._log = log
        self._waiting = [reading for reading in readings if not reading.done][::-1]
        self._asked: tuple[Flow[Stretch | None], Asked] | None = None
        self._ask()

    def page(self, reading: ReadFlow) -> Stretch | None:
        """The next page of a reading; None at its end."""
        if reading not in self._waiting:
            return None if reading.done else self._log.run(reading.next_page())
        while self._waiting[-1] is not reading:  # given up by whoever read it
            if self._asked is not None:
                self._asked[1].drop()
                self._asked = None
            self._waiting.pop()
        page = self._answered() if self._asked is not None else self._log.run(reading.next_page())
        if reading.done:
            self._waiting.pop()
        self._ask()
        return page

    def _ask(self) -> None:
        if self._waiting:
            flow = self._waiting[-1].next_page()
            self._asked = flow, self._log.ask(next(flow))

    def _answered(self) -> Stretch | None:
        assert self._asked is not None
        (flow, asked), self._asked = self._asked, None
        page: Stretch | None = last_answers(flow, asked.answers())
        return page


def last_answers(flow: Generator[Any, list[Any], T], answers: list[Any]) -> T:
    """What comes of a flow that asks nothing more after these answers."""
    try:
        flow.send(answers)
    except StopIteration as done:
        found: T = done.value
        return found
    raise AssertionError("a page is one exchange")


class Sent:
    """Commands on their way, on a connection of their own until their replies are taken."""

    def __init__(self, client: redis.Redis, commands: list[Command]) -> None:
        self._pool: Any = client.connection_pool
        self._count = len(commands)
        self._connection: Any = None
        with suppress(redis.RedisError, OSError):
            self._connection = self._pool.get_connection()
        if self._connection is not None:
            try:
                self._connection.send_packed_command(self._connection.pack_commands(commands))
            except (redis.RedisError, OSError):
                self.drop()
            except BaseException:
                self.drop()
                raise

    def replies(self) -> list[Any] | None:
        """The replies; None if they did not come, or one of them is an error."""
        connection = self._connection
        if connection is None:
            return None
        try:
            replies = [connection.read_response(disconnect_on_error=False) for _ in range(self._count)]
        except (redis.RedisError, OSError):
            self.drop()
            return None
        except BaseException:
            self.drop()
            raise
        self._connection = None
        self._pool.release(connection)
        return replies

    def drop(self) -> None:
        """Gives the connection up: what is still to be read from it must not be taken for another's."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)

    def __del__(self) -> None:
        self.drop()  # whoever read ahead did not read on


class AskedAhead:
    """Requests whose commands are on their way; `again` asks in the ordinary way."""

    def __init__(self, sent: Sent, read: Callable[[list[Any]], list[Any]], again: Callable[[], list[Any]]) -> None:
        self._sent = sent
        self._read = read
        self._again = again
        self.drop = sent.drop

    def answers(self) -> list[Any]:
        with uncollected():
            replies = self._sent.replies()
            if replies is not None:
                return self._read(replies)
        return self._again()


class AskedLater:
    """Requests that are asked when their answers are wanted: where asking ahead saves nothing."""

    def __init__(self, again: Callable[[], list[Any]]) -> None:
        self.answers = again

    def drop(self) -> None:
        pass
