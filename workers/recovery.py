"""Recovery: findings become a plan, a plan becomes repairs, and what was repaired is verified again.

It works partition by partition, under the partition's lease: its worker waits meanwhile, appends and all other
partitions go on. Every step may be repeated, so a recovery that was interrupted is completed by running it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from msgspec import Struct

from domain.errors import Conflict
from domain.log import SessionLog
from projections.drift import Finding, Validator
from projections.lease import Leases, held_for_recovery
from projections.rebuild import Rebuild
from projections.store import ProjectionStore

PLAN_SCHEMA: Final = "muster.recovery-plan/1"
#: How long a recovery waits for another one that holds the same partition, in seconds.
BUSY_WAIT_S: Final = 30.0

#: Kinds of findings that call for building a whole partition again.
_WHOLE: Final = frozenset({"cursor", "feed"})


class PartitionPlan(Struct, frozen=True):
    """What is to be done in a partition: rebuild these sessions, or all of them; then sum the totals of agents."""

    partition: int
    sessions: list[str]
    whole: bool


class Plan(Struct, frozen=True):
    """What recovery would do, and why."""

    schema: str
    store: str
    partitions: list[PartitionPlan]
    findings: list[Finding]


class Repaired(Struct):
    """What recovery did."""

    sessions: int = 0
    changed: int = 0
    totals: int = 0
    quarantined: int = 0


def plan_of(store_id: str, findings: Iterable[Finding]) -> Plan:
    """The plan that acts on findings."""
    kept = list(findings)
    partitions = []
    for partition in sorted({finding.partition for finding in kept}):
        here = [finding for finding in kept if finding.partition == partition]
        sessions = sorted({finding.session for finding in here if finding.session is not None})
        partitions.append(PartitionPlan(partition, sessions, any(finding.kind in _WHOLE for finding in here)))
    return Plan(PLAN_SCHEMA, store_id, partitions, kept)


class Recovery:
    """Carries plans out. `who` is noted in the audit stream, `progress` is told what happens."""

    def __init__(self, store: ProjectionStore, log: SessionLog, *, who: str, progress: Callable[[str], None]) -> None:
        self._store = store
        self._log = log
        self._leases = Leases(store.client, store.keyspace, who)
        self._progress = progress
        self.repaired = Repaired()

    def apply(self, plan: Plan) -> list[Finding]:
        """Carries a plan out, verifies what it touched, and returns what is still found there."""
        for number, part in enumerate(plan.partitions, 1):
            self._progress(f"partition {part.partition} ({number} of {len(plan.partitions)})")
            self._partition(part)
        return list(self._verified(plan.partitions))

    def rebuild(self, partitions: Sequence[int]) -> Repaired:
        """Builds whole partitions again from the log, whether something was found in them or not."""
        for partition in partitions:
            self._progress(f"partition {partition}")
            self._partition(PartitionPlan(partition, [], whole=True), quarantine=False)
        return self.repaired

    def _partition(self, part: PartitionPlan, *, quarantine: bool = True) -> None:
        deadline = time.monotonic() + BUSY_WAIT_S
        while True:
            try:
                with held_for_recovery(self._leases, part.partition) as held:
                    rebuild = Rebuild(
                        self._store,
                        self._log,
                        part.partition,
                        held.token,
                        who=self._leases.holder,
                        quarantine=quarantine,
                        renew=held.renew,
                    )
                    self._swap(rebuild, part)
                return
            except Conflict as conflict:
                if time.monotonic() > deadline:
                    raise
                self._progress(f"waiting for partition {part.partition}: {conflict.cause}")
                time.sleep(0.2)

    def _swap(self, rebuild: Rebuild, part: PartitionPlan) -> None:
        outcomes = rebuild.everything() if part.whole else rebuild.sessions(part.sessions)
        for swapped in outcomes:
            self.repaired.sessions += 1
            self.repaired.changed += swapped.changed
            self.repaired.quarantined += swapped.quarantined
        if not part.whole:
            self.repaired.totals += rebuild.totals()

    def _verified(self, parts: Sequence[PartitionPlan]) -> Iterator[Finding]:
        validator = Validator(self._store, self._log)
        for part in parts:
            yield from validator.partition(part.partition)
