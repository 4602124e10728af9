"""A backlog of single commits is drained by two worker processes, against two of a stock Dramatiq actor an event.

Both wait asleep while their backlog grows, and are timed from the first event done, so that waking up is no part of it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import structs

from domain import Append, Event
from tests.bench.arena import Arena, wait_until
from tests.bench.fleet import WORKERS, left, running
from tests.bench.peers.dramatiq_actor import READY, broker_on, command, send, waiting
from tests.bench.row import Contestant, Kind, Measure, Ratio, Row
from workers.child_process import start_child
from workers.settings import Settings, WorkerSettings

#: Leases outlast the sleep, so that no partition changes hands when the workers wake.
SETTINGS = structs.replace(Settings(), worker=WorkerSettings(lease_ttl_ms=120_000))
NAMES = [f"d-{number}" for number in range(1000)]


def muster(arena: Arena) -> Measure:
    stack, log, store = arena.keep(running(SETTINGS))
    assert stack.workers is not None
    pids = list(stack.workers.pids.values())
    rounds, names = arena.many(100, least=2), NAMES[: arena.whole(len(NAMES), smoke=100)]

    def measure() -> float:
        with asleep(pids):
            for _ in range(rounds):
                log.append_many([Append(name, (Event.of("tool.called", actor="a"),)) for name in names])
            backlog = left(store)
        return drained(lambda: left(store), backlog)

    return measure


def stock(arena: Arena) -> Measure:
    """The log that its actors read is filled once; each round sends a message for each of these events again."""
    log = arena.log()
    names, seqs = NAMES[: arena.whole(len(NAMES), smoke=20)], arena.many(3, least=1)
    for _ in range(seqs):
        log.append_many([Append(name, (Event.of("tool.called", actor="a"),)) for name in names])
    queue_url = f"{arena.server().url.rpartition('/')[0]}/2"
    broker = broker_on(queue_url)
    children = [start_child(command(arena.server().url, log.keyspace, queue_url), stdout=2) for _ in range(WORKERS)]
    pids = [child.pid for child in children]

    def end() -> None:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()

    arena.at_end(end)
    wait_until(lambda: int(log.client.get(READY) or 0) == WORKERS)

    def measure() -> float:
        with asleep(pids):
            log.client.delete(*(f"stock:{name}" for name in names))
            for seq in range(1, seqs + 1):
                for name in names:
                    send(broker, name, seq)
            backlog = waiting(broker)
        return drained(lambda: waiting(broker), backlog)

    return measure


@contextmanager
def asleep(pids: Sequence[int]) -> Iterator[None]:
    """Processes that are stopped meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def drained(rest: Callable[[], int], backlog: int) -> float:
    """Events/s, from the first event done to the last."""
    wait_until(lambda: rest() < backlog)
    began, first = time.perf_counter(), rest()
    wait_until(lambda: rest() == 0)
    return first / (time.perf_counter() - began) if first else 0.0


OUT_OF_REACH = "40 to 56 where two cores also run the server; most of a fold is the interpreter's"
MUSTER = Contestant("Muster", muster)
STOCK = Contestant("a stock Dramatiq actor an event", stock, Kind.PEER)

ROW = Row(
    "draining a backlog of single commits, two worker processes",
    "events/s",
    [MUSTER, STOCK],
    [Ratio(MUSTER.name, STOCK.name, at_least=50, out_of_reach=OUT_OF_REACH)],
    rounds=3,
)
