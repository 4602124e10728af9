"""The reading half of every blocking log: written once, over whatever answers its requests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from domain.codec import Commit
from domain.log.ahead import Asked, AskedLater, ReadingAhead
from domain.log.contract import Head, Position
from domain.log.keys import Keyspace
from domain.log.protocol import (
    EACH_FIRST_PAGE_ENTRIES,
    Flow,
    ReadBackFlow,
    ReadFlow,
    RegistryFlow,
    Request,
    head_flow,
    limited,
    seek_flow,
)
from domain.stretch import Stretch

T = TypeVar("T")


class BlockingReads:
    """Heads, commits and session ids, read page by page. See `EventLog` for what each method promises."""

    keyspace: Keyspace

    @abstractmethod
    def _exchange(self, requests: list[Request]) -> list[Any]:
        """The answers to requests, in their order."""

    def head(self, session: str) -> Head | None:
        return self.heads([session])[0]

    def heads(self, sessions: Sequence[str]) -> list[Head | None]:
        return self.run(head_flow(sessions))

    def read(self, session: str, *, after: int = 0, to: int | None = None) -> Iterator[Commit]:
        return self._pages(ReadFlow(session, after=after, to=to))

    def read_each(self, sessions: Sequence[str]) -> Iterator[Iterator[Commit]]:
        return map(chain.from_iterable, self.stretches_each(sessions))

    def stretches(self, session: str, *, after: int = 0) -> Iterator[Stretch]:
        return self._whole_pages(ReadFlow(session, after=after))

    def stretches_each(self, sessions: Sequence[str]) -> Iterator[Iterator[Stretch]]:
        readings = [ReadFlow(session, first_page=EACH_FIRST_PAGE_ENTRIES) for session in sessions]
        return map(ReadingAhead(self, readings).stretches, readings)

    def ask(self, requests: list[Request]) -> Asked:
        """Sends requests, for whoever goes through other things before the answers."""
        return AskedLater(partial(self._exchange, requests))

    def read_back(self, session: str, *, before: int | None = None) -> Iterator[Commit]:
        return self._pages(ReadBackFlow(session, before=before))

    def position_at(self, session: str, at_ms: int) -> Position:
        return self.run(seek_flow(session, at_ms))

    def sessions(self, *, after: str | None = None, limit: int | None = None) -> Iterator[str]:
        return limited(self._pages(RegistryFlow(self.keyspace, after)), limit)

    def run(self, flow: Flow[T]) -> T:
        """Runs a flow of the protocol to its end, and returns its result."""
        try:
            requests = next(flow)
            while True:
                requests = flow.send(self._exchange(requests))
        except StopIteration as done:
            result: T = done.value
            return result

    def _whole_pages(self, reading: ReadFlow) -> Iterator[Stretch]:
        while (page := self.run(reading.next_page())) is not None:
            yield page

    def _pages(self, reading: ReadFlow | ReadBackFlow | RegistryFlow) -> Iterator[Any]:
        while (page := self.run(reading.next_page())) is not None:
            yield from page
