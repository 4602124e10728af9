"""The logs under the contract: on the embedded Valkey (blocking and asyncio), on Redis 7, and in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from domain import Limits, MemoryLog
from tests.conftest import Servers, Store
from tests.domain.log.logs import Blocking, MakeLog, RunnableLog

KINDS = ("valkey", "valkey-async", "redis7", "memory")


@pytest.fixture(params=KINDS)
def make_log(request: pytest.FixtureRequest, servers: Servers, make_store: Callable[..., Store]) -> Iterator[MakeLog]:
    """Opens logs of each kind in turn; all that a test opens hold the same sessions."""
    kind: str = request.param
    if kind == "memory":
        ticks = count(1_700_000_000_000)
        log = MemoryLog(clock_ms=lambda: next(ticks))

        def make(limits: Limits = Limits()) -> RunnableLog:  # noqa: B008 (a frozen value)
            another = log.another()
            another.limits = limits
            return another

        yield make
        return

    server, _, face = kind.partition("-")
    store = make_store(servers.url(server))
    opened: list[Blocking] = []

    def open_log(limits: Limits = Limits()) -> RunnableLog:  # noqa: B008 (a frozen value)
        if face != "async":
            return store.open(limits=limits)
        opened.append(Blocking(lambda: store.open_async(limits=limits)))
        return opened[-1]

    yield open_log
    for blocking in opened:
        blocking.close()


@pytest.fixture
def log(make_log: MakeLog) -> RunnableLog:
    """An empty log of each kind in turn."""
    return make_log()
