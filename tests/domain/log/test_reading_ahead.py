"""Reading ahead: many sessions one after another, and whatever happens to what was asked for before it was needed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest

from domain import Append, SessionLog
from domain.log.ahead import EACH_TOGETHER
from domain.log.uncollected import uncollected
from domain.stretch import Stretch
from tests.conftest import Store
from tests.domain.log.logs import note

#: More than a first page holds, and more sessions than are begun together.
COMMITS, SESSIONS = 300, EACH_TOGETHER + 3


@pytest.fixture(scope="module")
def names() -> list[str]:
    return [f"s-{number}" for number in range(SESSIONS)]


@pytest.fixture
def log(server_url: str, make_store: Callable[..., Store], names: list[str]) -> SessionLog:
    """A log of long sessions of single commits."""
    made = make_store(server_url).open()
    for _ in range(COMMITS):
        made.append_many([Append(name, (note(),)) for name in names])
    return made


def seqs(stretches: Iterator[Stretch]) -> list[int]:
    return [commit.last_seq for commit in chain.from_iterable(stretches)]


WHOLE = list(range(1, COMMITS + 1))


def in_use(log: SessionLog) -> int:
    """How many connections somebody holds."""
    pool: Any = log.client.connection_pool
    return len(pool._in_use_connections)


def test_a_connection_that_is_lost_on_the_way_costs_nothing(log: SessionLog, names: list[str]) -> None:
    """Every page that was asked for ahead loses its connection; it is asked for again, and none is missing."""
    reading = log.stretches_each(names)
    for stretches in reading:
        assert seqs(stretches) == WHOLE
        for connection in list(log.client.connection_pool._in_use_connections):
            connection._sock.close()


def test_sessions_may_be_left_before_their_end(log: SessionLog, names: list[str]) -> None:
    """A session that is left, or never begun, does not disturb those after it."""
    for number, stretches in enumerate(list(log.stretches_each(names))):
        if number % 3 == 0:
            assert seqs(stretches) == WHOLE
        elif number % 3 == 1:
            next(stretches)


def test_sessions_may_be_gone_through_in_another_order(log: SessionLog, names: list[str]) -> None:
    """It only takes longer."""
    readings = list(log.stretches_each(names))

    assert [seqs(stretches) for stretches in reversed(readings)] == [WHOLE] * len(names)


def test_nothing_is_held_by_who_does_not_read_on(log: SessionLog, names: list[str]) -> None:
    """Whoever leaves a reading leaves no connection behind that another could take a strange reply from."""
    readings = list(log.stretches_each(names))
    next(readings[0])
    assert in_use(log) == 1

    del readings
    gc.collect()

    assert in_use(log) == 0
    assert [commit.last_seq for commit in log.read(names[0])] == WHOLE


def test_the_collector_runs_again_after_a_page() -> None:
    """Whatever happens in it; and whoever runs without a collector keeps doing so."""

    def failing() -> None:
        with uncollected():
            assert not gc.isenabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert gc.isenabled()

    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
