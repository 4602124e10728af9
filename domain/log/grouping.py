"""Group commit: appends of concurrent callers of one log travel together, each with its own answer.

Theory of operation. A caller that finds nothing under way sends at once, so a lone producer waits for nobody.
Callers that come while IN_FLIGHT groups are under way wait together, and leave as the next group as soon as one of
these is answered. So groups grow by themselves with load, without a timer. One caller waits for its own answer
before it appends again, so its order in a session is kept.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from threading import Event, Lock
from typing import Any, Final, Generic, TypeVar

from domain.log.protocol import Request

#: What is sent: requests to the server, or entries to the spool.
Q = TypeVar("Q")

#: Groups under way at a time: while the server works on one, the next is being encoded.
IN_FLIGHT: Final = 2
#: Where nothing is under way and so many wait, they leave as two groups, one after the other: else all would wait for
#: one reply, and then the server for all.
SPLIT_FROM: Final = 4
#: A group holds at most so many requests.
GROUP_REQUESTS: Final = 1024


class _Waiting(Generic[Q]):
    """A caller's requests, and what became of them."""

    def __init__(self, requests: list[Q]) -> None:
        self.requests = requests
        self.answers: list[Any] | None = None
        self.error: BaseException | None = None
        self.woken = Event()


class ThreadGrouping(Generic[Q]):
    """Groups the requests of threads. The thread whose turn it is sends for all that wait; then it wakes the next."""

    def __init__(self, send: Callable[[list[Q]], list[Any]]) -> None:
        self._send = send
        self._begin()

    def _begin(self) -> None:
        self._lock = Lock()
        self._waiting: list[_Waiting[Q]] = []
        self._under_way = 0
        self._process = os.getpid()

    def exchange(self, requests: list[Q]) -> list[Any]:
        """The answers to these requests; raises what sending them raised."""
        own: _Waiting[Q] | None = None
        if self._process != os.getpid():
            self._begin()  # forked: the threads that hold the lock, or are under way, are the parent's
        with self._lock:
            if self._under_way < IN_FLIGHT:
                self._under_way += 1
            else:
                own = _Waiting(requests)
                self._waiting.append(own)
        if own is None:
            try:
                return self._send(requests)
            finally:
                self._pass_on()
        try:
            own.woken.wait()
        except BaseException:
            self._abandon(own)
            raise
        if own.answers is None and own.error is None:
            self._send_for_all()
        if own.error is not None:
            raise own.error
        assert own.answers is not None
        return own.answers

    def _send_for_all(self) -> None:
        with self._lock:
            group = _first(self._waiting)
            if self._under_way < IN_FLIGHT and len(self._waiting) >= SPLIT_FROM:
                group = group[: (len(self._waiting) + 1) // 2]
                self._under_way += 1
                self._waiting[len(group)].woken.set()
            del self._waiting[: len(group)]
        try:
            answers = self._send([request for waiting in group for request in waiting.requests])
            _hand_out(group, answers)
        except BaseException as error:
            for waiting in group:
                waiting.error = error
        finally:
            for waiting in group:
                waiting.woken.set()
            self._pass_on()

    def _abandon(self, own: _Waiting[Q]) -> None:
        """Takes back what an interrupted thread did not send yet; its turn, if it had it, is the next one's."""
        with self._lock:
            is_waiting = own in self._waiting
            if is_waiting:
                self._waiting.remove(own)
        if is_waiting and own.woken.is_set():
            self._pass_on()

    def _pass_on(self) -> None:
        """Gives the turn to whoever waits longest; it sends for itself and for all who wait with it."""
        with self._lock:
            if self._waiting:
                self._waiting[0].woken.set()
            else:
                self._under_way -= 1


class TaskGrouping:
    """Groups the requests of asyncio tasks of one event loop."""

    def __init__(self, send: Callable[[list[Request]], Awaitable[list[Any]]]) -> None:
        self._send = send
        self._waiting: list[tuple[list[Request], asyncio.Future[list[Any]]]] = []
        self._senders: set[asyncio.Task[None]] = set()
        self._under_way = 0

    async def exchange(self, requests: list[Request]) -> list[Any]:
        """The answers to these requests; raises what sending them raised. Cancelling the caller does not unsend
        them.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._waiting.append((requests, future))
        if len(self._senders) < IN_FLIGHT:
            # It begins when this turn of the loop ends, and takes what all tasks of the turn have to send.
            sender = loop.create_task(self._send_waiting())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)  # also of one that was cancelled before it began
        return await future

    async def _send_waiting(self) -> None:
        this = asyncio.current_task()
        assert this is not None
        try:
            while self._waiting:
                await self._send_group()
        finally:
            # In the same step as the last look at who waits. The task's callback comes later, and a caller that comes
            # in between would rely on a sender that looks no more.
            self._senders.discard(this)

    async def _send_group(self) -> None:
        count = len(self._waiting)
        if not self._under_way and count >= SPLIT_FROM:
            count = (count + 1) // 2
        group = self._waiting[: min(count, GROUP_REQUESTS)]
        del self._waiting[: len(group)]
        self._under_way += 1
        try:
            answers = await self._send([request for requests, _ in group for request in requests])
        except BaseException as error:
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            at = 0
            for requests, future in group:
                if not future.done():
                    future.set_result(answers[at : at + len(requests)])
                at += len(requests)
        finally:
            self._under_way -= 1


def _first(waiting: list[_Waiting[Q]]) -> list[_Waiting[Q]]:
    """As many of those who wait as fit into a group, but at least one."""
    group: list[_Waiting[Q]] = []
    size = 0
    for one in waiting:
        size += len(one.requests)
        if group and size > GROUP_REQUESTS:
            break
        group.append(one)
    return group


def _hand_out(group: list[_Waiting[Q]], answers: list[Any]) -> None:
    at = 0
    for waiting in group:
        waiting.answers = answers[at : at + len(waiting.requests)]
        at += len(waiting.requests)
