"""How far a fleet is with stopping: who works still, by name, and why that is thought.

Nobody is taken for stopped because he is silent. A worker has stopped if it says so itself, if it is gone and left no
lease in its name, or if it ran on this host and its process is gone. Whoever else holds a partition or a job, such as
a recovery that somebody runs by hand, is named too.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from domain.log import SessionLog
from projections.lease import Leases
from projections.own.publishing import Publications
from projections.store import ProjectionStore
from workers.halting import DRAINING, FORCED, STOPPED, Halting
from workers.leasing import living_workers
from workers.tasks import Tasks

#: What a worker process is called: where it runs, and as what.
WORKER: Final = re.compile(r"(?P<host>.+):(?P<pid>\d+):[0-9a-f]+")
#: How long a worker that holds nothing any more may take to say that it has stopped, in seconds; then it has all the
#: same.
ENDS_WITHIN_S: Final = 10.0


class Working(Struct, frozen=True):
    """Somebody who did not stop yet. `host` and `pid` are those of a worker process."""

    who: str
    why: str
    host: str | None = None
    pid: int | None = None


class Fleet(Struct, frozen=True):
    """What a look found: who works still, and how many stopped, of them so many in the middle of a batch."""

    working: list[Working]
    stopped: int
    forced: int


class Draining:
    """Looks at a fleet again and again; a worker that was seen once is not forgotten."""

    def __init__(self, log: SessionLog, halting: Halting) -> None:
        self._log = log
        self._halting = halting
        self._publications = Publications(log.client, log.keyspace)
        self._tasks = Tasks(log.client, log.keyspace)
        self._seen: dict[str, dict[str, Any]] = {}
        self._given_back: dict[str, float] = {}

    def look(self) -> Fleet:
        """Who works now."""
        notes = self._halting.notes()
        living = {worker["worker"]: worker for worker in living_workers(self._log.client, self._log.keyspace)}
        self._seen |= living
        for name in notes.keys() - self._seen.keys():  # who fell silent before this process first looked
            if (found := WORKER.fullmatch(name)) is not None:
                self._seen[name] = found.groupdict()
        holders = self._holders()
        working, stopped = [], 0
        for name in self._seen.keys() | notes.keys():
            why = self._why_it_works(name, notes.get(name), name in living, holders.get(name, []))
            if why is None:
                stopped += 1
            else:
                about = self._seen.get(name, {})
                pid = int(about["pid"]) if "pid" in about else None
                working.append(Working(name, why, about.get("host"), pid))
        known = {one.who for one in working} | {name for name, phase in notes.items() if phase in (STOPPED, FORCED)}
        working += [
            Working(name, f"holds {', '.join(held)}") for name, held in self._held_now().items() if name not in known
        ]
        working += self._jobs(known)
        forced = sum(phase == FORCED for phase in notes.values())
        return Fleet(sorted(working, key=lambda one: one.who), stopped, forced)

    def _why_it_works(self, name: str, phase: str | None, is_alive: bool, held: list[str]) -> str | None:
        """Why a worker counts as working; None if it has stopped."""
        if phase in (STOPPED, FORCED):
            return None
        if is_alive:
            return "finishes what is in flight" if phase == DRAINING else "has not seen the stop yet"
        if self._is_gone(name):
            return None
        if not held:
            given_back_at = self._given_back.setdefault(name, time.monotonic())
            is_ending = phase == DRAINING and time.monotonic() - given_back_at < ENDS_WITHIN_S
            return "has given everything back, and ends" if is_ending else None
        return f"gives no sign of life, with {', '.join(held)} in its name: it is frozen, cut off or dead"

    def _is_gone(self, name: str) -> bool:
        """Whether a worker of this host has no process any more."""
        about = self._seen.get(name)
        if about is None or about["host"] != platform.node():
            return False
        try:
            os.kill(int(about["pid"]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def _held_now(self) -> dict[str, list[str]]:
        """Who holds which partitions, by leases that have not run out."""
        return self._holders(at_ms=self._now())

    def _holders(self, at_ms: int = 0) -> dict[str, list[str]]:
        """In whose names leases stand that last beyond a time, and of what."""
        holders: dict[str, list[str]] = {}
        for owned in self._owned():
            leases = Leases(self._log.client, self._log.keyspace, "", owned=owned)
            for partition, owner in enumerate(leases.owners()):
                if owner is not None and owner[1] > at_ms:
                    holders.setdefault(owner[0], []).append(f"partition {partition} of {owned}")
        return holders

    def _owned(self) -> list[str]:
        built_in = ProjectionStore(self._log.client, self._log.keyspace).owned
        return [built_in, *(version.label for version in self._publications.versions())]

    def _jobs(self, known: set[str]) -> Iterator[Working]:
        for task in self._tasks.open():
            worker = (task.holder or "").removesuffix(f":{task.id}")
            if worker and worker not in known:
                yield Working(worker, f"does job {task.id} ({task.kind})")

    def _now(self) -> int:
        seconds, micros = self._log.client.time()
        return int(seconds) * 1000 + int(micros) // 1000
