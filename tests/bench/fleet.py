"""The fleet's figures against their goals: how soon an append is visible, how soon the dead are replaced, how fast a
backlog is drained, how much a checkpoint saves.

    ./scripts/bench        or: .venv/bin/python -m tests.bench.fleet

Each is a ratio of two times, or rates, of one run on one machine. A table goes to stderr, a summary to stdout.
Exit 0 only if every goal is reached, or listed as out of reach with the reason.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from dramatiq.brokers.redis import RedisBroker

from domain import Append, Event, SessionLog
from projections import session_view
from projections.lag import lag
from projections.lease import Leases, held_for_recovery
from projections.rebuild import Rebuild
from projections.store import ProjectionStore
from tests.bench.stock import QUEUE, broker_on, send
from workers.child_process import start_child
from workers.embedded import EmbeddedServer
from workers.leasing import living_workers
from workers.settings import Settings
from workers.stack import Stack

WORKERS = 2
#: The pace of appends whose visibility is measured, events/s, and how many of them.
PACE = 200
PACED = 4_000
SESSIONS = 50
KILLS = 5
BACKLOG = 200_000
#: Events of the session that is recovered from its checkpoint.
LONG = 100_000
#: Of these the stock queue gets a part, since it needs so much longer.
STOCK_BACKLOG = 3_000
DRAINING = "draining single commits, 2 processes, against a stock actor an event"
#: Goals that are missed now and then, and why.
OUT_OF_REACH = {DRAINING: "40 to 56 where two cores also run the server; most of a fold is the interpreter's"}


class Figure(NamedTuple):
    """What was measured, as a ratio, and what it should be: at most, or at least."""

    what: str
    ratio: float
    goal: float
    is_ceiling: bool
    detail: str

    @property
    def reached(self) -> bool:
        return self.ratio <= self.goal if self.is_ceiling else self.ratio >= self.goal


@contextmanager
def running() -> Iterator[tuple[Stack, SessionLog, ProjectionStore]]:
    """An embedded server and two workers that hold all partitions."""
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as data_dir:
        stack = Stack(EmbeddedServer(Path(data_dir)), Settings(), log=_say, workers=WORKERS)
        stack.start()
        try:
            with stack.open_log() as log:
                store = ProjectionStore(log.client, log.keyspace)
                _wait(lambda: len(living_workers(log.client, log.keyspace)) == WORKERS)
                _wait(lambda: all(cursor is not None for cursor, _ in store.standing(range(32)).values()))
                yield stack, log, store
        finally:
            stack.stop()


def paced(log: SessionLog, store: ProjectionStore, is_over: Callable[[int], bool]) -> tuple[list[float], list[float]]:
    """Appends at a steady pace until it is over, given how many there were; how long each took, and until it was
    visible after its reply, in seconds.

    The same thread appends, then asks for the view again and again: what is measured is late by half a question.
    """
    chance = random.Random(7)
    appends: list[float] = []
    visible: list[float] = []
    due = time.perf_counter()
    while not is_over(len(appends)):
        due += 1 / PACE
        time.sleep(max(0.0, due - time.perf_counter()))
        session = f"paced-{chance.randrange(SESSIONS)}"
        began = time.perf_counter()
        receipt = log.append(session, Event.of("tool.called", actor="a", data={"tool": "edit"}))
        replied = time.perf_counter()
        key, seen = log.keyspace.of(session).session_view(session), b""
        while True:
            stored = store.client.get(key) or b""
            if stored != seen:
                seen = stored
                view = session_view.readable(stored, session)
                if view is not None and view.seq >= receipt.last_seq:
                    break
        visible.append(time.perf_counter() - replied)
        appends.append(replied - began)
    return appends, visible


def visibility(log: SessionLog, store: ProjectionStore) -> list[Figure]:
    """From an append's reply until its view is there, against the append itself, at a steady pace."""
    appends, visible = paced(log, store, lambda count: count == PACED)
    figures = []
    for name, at, goal in (("p50", 49, 4.0), ("p99", 98, 8.0)):
        trip, seen_s = quantiles(appends, n=100)[at], quantiles(visible, n=100)[at]
        detail = f"visible {seen_s * 1000:.2f} ms after the reply, append {trip * 1000:.2f} ms"
        figures.append(Figure(f"append's reply → visible, {PACE} events/s, {name}", seen_s / trip, goal, True, detail))
    return figures


def takeover(stack: Stack, log: SessionLog, store: ProjectionStore) -> Figure:
    """From kill -9 of a worker until all its partitions have moved again, against the lease's time to live."""
    times = []
    for number in range(KILLS):
        _wait(lambda: len(living_workers(log.client, log.keyspace)) == WORKERS)
        _wait(lambda: sorted(len(w["partitions"]) for w in living_workers(log.client, log.keyspace)) == [16, 16])
        victim = living_workers(log.client, log.keyspace)[number % WORKERS]
        os.kill(int(victim["pid"]), signal.SIGKILL)
        began = time.perf_counter()
        log.append_many([Append(f"k-{n}", (Event.of("tool.called", actor="a"),)) for n in range(200)])
        _wait(lambda: lag(store).events == 0)
        times.append(time.perf_counter() - began)
        time.sleep(1.0)
    ttl = stack.settings.worker.lease_ttl_ms / 1000
    detail = f"median {median(times):.2f} s, longest {max(times):.2f} s, of {KILLS}; the lease {ttl:g} s"
    return Figure("worker killed -9 → its partitions move again", median(times) / ttl, 1.5, True, detail)


def recovered(log: SessionLog, store: ProjectionStore) -> Figure:
    """A long session whose view is gone: built again from its checkpoint, against from its first event."""
    session = "long"
    for _ in range(LONG // 100):
        log.append(session, [Event.of("tool.called", actor="a") for _ in range(100)])
    log.append(session, Event.of("modified", actor="a"))
    _wait(lambda: lag(store).events == 0)
    keys, partition = log.keyspace.of(session), log.keyspace.partition_of(session)
    right = store.client.get(keys.session_view(session))
    times: dict[bool, list[float]] = {True: [], False: []}
    with held_for_recovery(Leases(log.client, log.keyspace, "recovery:bench"), partition) as held:
        rebuild = Rebuild(store, log, partition, held.token, who="recovery:bench", quarantine=False, renew=held.renew)
        for _ in range(5):
            for is_short, taken in times.items():
                store.client.delete(keys.session_view(session))
                began = time.perf_counter()
                list(rebuild.sessions([session], [session] if is_short else []))
                taken.append(time.perf_counter() - began)
                assert store.client.get(keys.session_view(session)) == right
    short, whole = median(times[True]), median(times[False])
    detail = f"{short * 1000:.1f} ms against {whole * 1000:.0f} ms, commits of 100"
    return Figure(
        f"a session of {LONG:,} events from its checkpoint, against from zero", whole / short, 50, False, detail
    )


def draining(stack: Stack, log: SessionLog, store: ProjectionStore) -> Figure:
    """A backlog of single commits: two worker processes, against two of a stock Dramatiq actor a message."""
    assert stack.workers is not None
    workers = list(stack.workers.pids.values())
    names = [f"d-{n}" for n in range(1000)]
    # They sleep while the backlog grows, and begin both at once: how long a process takes to start is no part of it.
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    for _ in range(BACKLOG // len(names)):
        log.append_many([Append(name, (Event.of("tool.called", actor="a"),)) for name in names])
    began, left = time.perf_counter(), _left(store)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    _wait(lambda: _left(store) == 0, every_s=0.01)
    ours = left / (time.perf_counter() - began)
    stack.workers.stop()

    queue_url = f"{stack.url.rpartition('/')[0]}/2"
    broker = broker_on(queue_url)
    sent = 0
    for seq in range(1, STOCK_BACKLOG // len(names) + 1):
        for name in names:
            send(broker, name, seq)
            sent += 1
    settings = stack.settings
    command = [
        sys.executable,
        "-m",
        "tests.bench.stock",
        stack.url,
        settings.environment,
        settings.namespace,
        queue_url,
    ]
    children = [start_child(command) for _ in range(WORKERS)]
    try:
        _wait(lambda: _waiting(broker) < sent)
        began, left = time.perf_counter(), _waiting(broker)
        _wait(lambda: _waiting(broker) == 0)
        stock = left / (time.perf_counter() - began)
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
    detail = f"{ours:,.0f} events/s against {stock:,.0f}"
    return Figure(DRAINING, ours / stock, 50, False, detail)


def _waiting(broker: RedisBroker) -> int:
    return int(broker.client.hlen(f"{broker.namespace}:{QUEUE}.msgs"))


def measure() -> list[Figure]:
    """All figures."""
    with running() as (stack, log, store):
        return [
            *visibility(log, store),
            takeover(stack, log, store),
            recovered(log, store),
            draining(stack, log, store),
        ]


def main() -> int:
    figures = measure()
    _table(figures)
    missed = [figure.what for figure in figures if not figure.reached]
    print(f"{len(figures) - len(missed)} of {len(figures)} goals reached")
    known = {what: why for what, why in OUT_OF_REACH.items() if what in missed}
    for what, why in known.items():
        print(f"out of reach: {what}: {why}")
    if unexpected := [what for what in missed if what not in known]:
        print(f"missed: {'; '.join(unexpected)}")
    return 1 if unexpected else 0


def _table(figures: Sequence[Figure]) -> None:
    for figure in figures:
        sign = "≤" if figure.is_ceiling else "≥"
        word = "reached" if figure.reached else "MISSED"
        _say(f"{figure.what:<75} {figure.ratio:>7.2f} {sign} {figure.goal:<5g} {word:<8} {figure.detail}")


def _left(store: ProjectionStore) -> int:
    """How many events are not applied; asked so that those who work are hardly disturbed."""
    return sum(total - (position or 0) for position, total in store.standing(range(32)).values())


def _wait(is_so: Callable[[], bool], patience_s: float = 300, every_s: float = 0.002) -> None:
    deadline = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience_s:g} s")
        time.sleep(every_s)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
