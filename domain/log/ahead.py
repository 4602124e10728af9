"""Reading ahead: a page is asked for before the one at hand is gone through, so that server and reader both work.

Nothing depends on it. What was asked for ahead and gets no answer is asked for again, in the way that everything is: so
here no error is judged, and none is raised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

import redis

from domain.errors import MusterError
from domain.log.protocol import Command, Flow, ReadFlow, Request, first_pages_flow, taken
from domain.log.uncollected import uncollected
from domain.stretch import Stretch

T = TypeVar("T")

#: Of how many sessions the first pages are read together.
EACH_TOGETHER: Final = 8


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
    """Many sessions, read one after another: the first pages of some of them together, then what more there is of each.

    One question is on its way at any time, for whatever will be needed next.
    """

    def __init__(self, log: Runs, readings: Sequence[ReadFlow]) -> None:
        self._log = log
        self._groups = deque(readings[at : at + EACH_TOGETHER] for at in range(0, len(readings), EACH_TOGETHER))
        self._first: dict[ReadFlow, Stretch | MusterError | None] = {}
        self._waiting: deque[ReadFlow] = deque()
        self._asked: tuple[Flow[Any], Asked] | None = None

    def stretches(self, reading: ReadFlow) -> Iterator[Stretch]:
        """A session, from its beginning on."""
        while reading not in self._first and self._groups:
            self._begin()
        first = taken(self._first.pop(reading, None))
        if first is None:
            return
        # The first page may be a small one: what follows it is gone through together with it.
        second = self._page(reading)
        yield first if second is None else first.followed_by(second)
        while (page := self._page(reading)) is not None:
            yield page

    def _begin(self) -> None:
        """Takes the first pages of the next sessions in."""
        self._give_up(len(self._waiting))
        group = self._groups[0]
        pages = self._answer(first_pages_flow(group))
        self._groups.popleft()
        self._first |= zip(group, pages, strict=True)
        self._waiting += [
            reading
            for reading, page in zip(group, pages, strict=True)
            if not (reading.done or isinstance(page, MusterError))
        ]
        self._ask()

    def _page(self, reading: ReadFlow) -> Stretch | None:
        """The next page of a session; None at its end."""
        if reading.done:
            return None
        if reading not in self._waiting:  # out of turn
            return self._log.run(reading.next_page())
        self._give_up(self._waiting.index(reading))
        page: Stretch | None = self._answer(reading.next_page())
        if reading.done:
            self._waiting.popleft()
        self._ask()
        return page

    def _give_up(self, count: int) -> None:
        """Of so many of those that wait nobody wants to know more."""
        if count and self._asked is not None:
            self._asked[1].drop()
            self._asked = None
        for _ in range(count):
            self._waiting.popleft()

    def _ask(self) -> None:
        flow: Flow[Any]
        if self._waiting:
            flow = self._waiting[0].next_page()
        elif self._groups:
            flow = first_pages_flow(self._groups[0])
        else:
            return
        self._asked = flow, self._log.ask(next(flow))

    def _answer(self, flow: Flow[T]) -> T:
        """What comes of what was asked for ahead; of this flow, if nothing was."""
        if self._asked is None:
            self._asked = flow, self._log.ask(next(flow))
        (begun, asked), self._asked = self._asked, None
        found: T = last_answers(begun, asked.answers())
        return found


def last_answers(flow: Generator[Any, list[Any], T], answers: list[Any]) -> T:
    """What comes of a flow that asks nothing more after these answers."""
    try:
        flow.send(answers)
    except StopIteration as done:
        found: T = done.value
        return found
    raise AssertionError("a page is one exchange")


def answers_at_once(wire: Generator[Any, list[Any], list[Any]], replies: list[Any]) -> list[Any] | None:
    """The answers that a wire has with these replies; None if it wants more."""
    try:
        wire.send(replies)
    except StopIteration as done:
        answers: list[Any] = done.value
        return answers
    wire.close()
    return None


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

    def __init__(
        self, sent: Sent, read: Callable[[list[Any]], list[Any] | None], again: Callable[[], list[Any]]
    ) -> None:
        self._sent = sent
        self._read = read
        self._again = again
        self.drop = sent.drop

    def answers(self) -> list[Any]:
        with uncollected():  # for no longer than a reply may take: what is sent again is sent outside
            replies = self._sent.replies()
            answers = None if replies is None else self._read(replies)
        return self._again() if answers is None else answers


class AskedLater:
    """Requests that are asked when their answers are wanted: where asking ahead saves nothing."""

    def __init__(self, again: Callable[[], list[Any]]) -> None:
        self.answers = again

    def drop(self) -> None:
        pass
