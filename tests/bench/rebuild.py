"""What it costs to build everything again while appends go on, and how fast that is.

    .venv/bin/python -m tests.bench.rebuild FILE.ndjson.gz | NUMBER OF EVENTS

Everything is rebuilt three times by a process of its own: with nothing else to do, while 200 events/s are appended, and
from nothing, every derived key deleted, by the workers. That the views stay right all the while is shown by
tests/chaos/test_rebuild_under_load.py.
"""

from __future__ import annotations

import sys
import time
from statistics import quantiles

from domain import Append, Event, SessionLog
from projections.lag import lag
from projections.store import ProjectionStore
from tests.bench.fleet import PACE, paced, running
from workers.child_process import ChildProcess, start_child
from workers.cli.event import opened_file, read_lines
from workers.importing import Importer
from workers.stack import Stack

_MUSTER = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]
#: How long live projection is measured without a rebuild, in appends.
UNDISTURBED = 1_000


def fill(log: SessionLog, source: str) -> None:
    """The events of a file, or so many generated ones, ten a commit, in sessions of five hundred."""
    if not source.isdigit():
        with opened_file(source) as file:
            Importer(log, reject=lambda _: None, progress=lambda _: None).run(read_lines(file, log.limits.line_bytes))
        return
    names = [f"g-{n}" for n in range(int(source) // 500)]
    for _ in range(50):
        for at in range(0, len(names), 100):
            events = tuple(Event.of("tool.called", actor=f"a-{n}", data={"tool": "edit"}) for n in range(10))
            log.append_many([Append(name, events) for name in names[at : at + 100]])


def measure(source: str) -> None:
    """Prints what was measured."""
    with running() as (stack, log, store):
        fill(log, source)
        _wait_until_caught_up(store)
        events = lag(store).total
        print(f"{events:,} events")

        began = time.monotonic()
        _done(_rebuilding(stack))
        _tell("rebuilt, nothing else to do", events, began)

        _live("live projection", *paced(log, store, lambda count: count == UNDISTURBED))
        began, child = time.monotonic(), _rebuilding(stack)
        figures = paced(log, store, lambda _: child.poll() is not None)
        _tell(f"rebuilt under {PACE} events/s", events, began)
        _done(child)
        _live("live projection meanwhile", *figures)

        _wait_until_caught_up(store)
        _delete_what_is_derived(store)
        began = time.monotonic()
        _wait_until_caught_up(store)
        _tell("from nothing, by two workers", events, began)


def _rebuilding(stack: Stack) -> ChildProcess:
    """Its workers and this process go on."""
    return start_child([*_MUSTER, "projection", "rebuild"], env=stack.settings.environ(), stdout=2, stderr=2)


def _done(child: ChildProcess) -> None:
    assert child.wait() == 0


def _delete_what_is_derived(store: ProjectionStore) -> None:
    """Views and checkpoints first, the cursors last: the workers begin when they miss those."""
    cursors = []
    for keys in store.keyspace.partitions:
        names = list(store.client.scan_iter(match=keys.sessions.replace("sessions", "*"), count=5000))
        derived = [name for name in names if name.startswith(tuple(
            key.encode() for key in (keys.session_view(""), keys.agent_view(""), keys.checkpoints(""), keys.agents)
        ))]  # fmt: skip
        for at in range(0, len(derived), 5000):
            store.client.delete(*derived[at : at + 5000])
        cursors.append(keys.cursor(store.name, store.version))
    store.client.delete(*cursors)


def _wait_until_caught_up(store: ProjectionStore) -> None:
    while lag(store).events:
        time.sleep(0.01)


def _tell(what: str, events: int, began: float) -> None:
    seconds = time.monotonic() - began
    print(f"{what:<32}{events / seconds:>10,.0f} events/s in {seconds:.1f} s")


def _live(what: str, appends: list[float], visible: list[float]) -> None:
    append, seen = quantiles(appends, n=100), quantiles(visible, n=100)
    print(
        f"{what:<32} append p50 {append[49] * 1000:.2f} p99 {append[98] * 1000:.2f} ms; visible after the reply "
        f"p50 {seen[49] * 1000:.2f} p99 {seen[98] * 1000:.2f} longest {max(visible) * 1000:.0f} ms"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    measure(sys.argv[1])
