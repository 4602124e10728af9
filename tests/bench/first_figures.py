"""First figures: import, projection, verification and rebuild of a log, in events/s, on this machine.

    .venv/bin/python -m tests.bench.first_figures FILE.ndjson.gz

Each is measured alone: the workers are away while the file is imported, so that projection is the drain of a backlog.
"""

from __future__ import annotations

import sys
import time

from projections.drift import Validator
from projections.lag import lag
from tests.bench.fleet import WORKERS, running
from workers.cli.event import opened_file, read_lines
from workers.fleet import worker_supervisor
from workers.importing import Importer
from workers.recovery import Recovery


def measure(path: str) -> dict[str, float]:
    """Events/s of each kind of work on the events of a file."""
    figures = {}
    with running() as (stack, log, store):
        assert stack.workers is not None
        stack.workers.stop()

        began = time.monotonic()
        with opened_file(path) as file:
            importer = Importer(log, reject=lambda _: None, progress=lambda _: None)
            events = importer.run(read_lines(file, log.limits.line_bytes)).appended
        figures["import"] = events / (time.monotonic() - began)

        workers = worker_supervisor(stack.settings, count=WORKERS, log=_say)
        began = time.monotonic()
        with workers:
            while (behind := lag(store)).applied == 0:
                time.sleep(0.001)
            began, first = time.monotonic(), behind.applied
            while lag(store).events:
                time.sleep(0.005)
            figures["projection"] = (events - first) / (time.monotonic() - began)

        validator, began = Validator(store, log), time.monotonic()
        findings = list(validator.everything())
        assert not findings, findings
        figures["verification"] = events / (time.monotonic() - began)

        recovery, began = Recovery(store, log, who="recovery:bench", progress=_say), time.monotonic()
        recovery.rebuild(range(log.keyspace.count))
        figures["rebuild"] = events / (time.monotonic() - began)
    return figures


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    for name, rate in measure(sys.argv[1]).items():
        print(f"{name:<14}{rate:>10,.0f} events/s")
