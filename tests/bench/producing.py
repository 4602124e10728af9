"""Producers of Muster's: one, many threads, many tasks; each waits for its receipt before it appends again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from domain import AsyncSessionLog, Event, SessionLog
from domain.log.keys import Keyspace
from tests.bench.arena import Arena
from tests.bench.events import event, identifier, in_partition
from tests.bench.row import Contestant, Measure


def one_producer(name: str, count: int, append: Callable[[SessionLog, str, Event], object]) -> Contestant:
    """One thread, one connection, an append a call, to 64 sessions in turn that all have begun."""

    def prepare(arena: Arena) -> Measure:
        log = arena.log()
        sessions = _sessions(log.keyspace, None, 64, name)
        events, calls = [event(number) for number in range(64)], arena.many(count, least=64)
        for session in sessions:
            append(log, session, events[0])

        def measure() -> float:
            began = time.perf_counter()
            for number in range(calls):
                append(log, sessions[number % 64], events[number % 64])
            return calls / (time.perf_counter() - began)

        return measure

    return Contestant(name, prepare)


def tasks(name: str, producers: int, count: int, *, partition: int | None = None, commit: int = 1) -> Contestant:
    """So many tasks of one asyncio client, each with a session of its own; `partition` None: spread over all.

    `count` is of events, `commit` how many of them an append holds. Events/s.
    """

    def prepare(arena: Arena) -> Measure:
        runner = arena.runner()
        log = arena.async_log(runner)
        sessions = _sessions(log.keyspace, partition, producers, name)
        events = [event(number) for number in range(commit)]
        each = arena.many(count // commit, least=producers) // producers

        async def produce(session: str, times: int) -> None:
            for _ in range(times):
                await log.append(session, events)

        async def all_of(log: AsyncSessionLog, times: int) -> None:
            await asyncio.gather(*(produce(session, times) for session in sessions))

        runner.run(all_of(log, 1))

        def measure() -> float:
            began = time.perf_counter()
            runner.run(all_of(log, each))
            return each * producers * commit / (time.perf_counter() - began)

        return measure

    return Contestant(name, prepare, x=producers)


def threads(name: str, producers: int, count: int, *, partition: int | None = None) -> Contestant:
    """So many threads that share one blocking log, each with a session of its own. Events/s."""

    def prepare(arena: Arena) -> Measure:
        log = arena.log()
        sessions = _sessions(log.keyspace, partition, producers, name)
        each, made = arena.many(count, least=producers) // producers, event()
        pool = arena.keep(ThreadPoolExecutor(producers))

        def produce(session: str, times: int) -> None:
            for _ in range(times):
                log.append(session, made)

        def all_of(times: int) -> None:
            list(pool.map(produce, sessions, [times] * producers))

        all_of(1)

        def measure() -> float:
            began = time.perf_counter()
            all_of(each)
            return each * producers / (time.perf_counter() - began)

        return measure

    return Contestant(name, prepare, x=producers)


def _sessions(keyspace: Keyspace, partition: int | None, count: int, name: str) -> Sequence[str]:
    return in_partition(keyspace, partition, count, prefix=identifier(name))
