"""Recovery: findings become a plan, a plan becomes repairs, and what was repaired is verified again.

It works partition by partition, under the partition's lease: its worker waits meanwhile, appends and all other
partitions go on. Every step may be repeated, so a recovery that was interrupted is completed by running it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Final

from msgspec import Struct, structs

from domain.errors import Conflict, Refused
from domain.log import SessionLog
from domain.log.contract import EventLog
from domain.log.keys import Keyspace
from projections.drift import Validator
from projections.findings import Finding
from projections.grafting import MENDABLE, Graft, Unfit
from projections.lease import Leases, held_for_recovery
from projections.own.catchup import OwnProjector
from projections.own.forgetting import forget as forget_own
from projections.own.publishing import Publications
from projections.own.store import OwnStore
from projections.parking import DISCARDABLE
from projections.rebuild import Rebuild
from projections.store import MEMBER_PAGE, Parked, ProjectionStore
from workers.pacing import Pace

PLAN_SCHEMA: Final = "muster.recovery-plan/1"
#: How long a recovery waits for another one that holds the same partition, in seconds.
BUSY_WAIT_S: Final = 30.0

#: Kinds of findings that call for building a whole partition again.
_WHOLE: Final = frozenset({"cursor", "feed"})
#: Cursors of subscriptions, which nothing is built by.
_NOTHING_DERIVED: Final = frozenset({"SUBSCRIPTION_DAMAGED", "SUBSCRIPTION_LOST"})
#: Conflicts that end when whoever holds the partition, or moves its cursor, has finished.
_PASSING: Final = frozenset({"PARTITION_BUSY", "LEASE_TAKEN", "CURSOR_MOVED"})
_VIEW_ALONE: Final = frozenset({"VIEW_MISSING", "VIEW_UNREADABLE", "VIEW_DIFFERS", "VIEW_BEHIND", "VIEW_AHEAD"})


class PartitionPlan(Struct, frozen=True):
    """What is to be done in a partition: rebuild these sessions, or all of them; then sum the totals of agents.

    Of the sessions in `shortcuts` nothing but the view was found wrong, so their checkpoints are right.
    """

    partition: int
    sessions: list[str]
    whole: bool
    agents: list[str] = []
    shortcuts: list[str] = []
    #: How many events these sessions have: at most so many are read.
    events: int = 0


class Plan(Struct, frozen=True):
    """What recovery would do, and why."""

    schema: str
    store: str
    partitions: list[PartitionPlan]
    findings: list[Finding]
    #: How many sessions and events are gone through, and how long that takes at the pace they were verified at.
    sessions: int = 0
    events: int = 0
    seconds: float | None = None
    #: Logs that are completed first, and those of which it was looked in vain what is missing.
    grafts: list[Graft] = []
    unfit: list[Unfit] = []


class Repaired(Struct):
    """What recovery did."""

    sessions: int = 0
    changed: int = 0
    totals: int = 0
    quarantined: int = 0


class Retried(Struct):
    """What became of parked sessions that were tried again."""

    tried: int = 0
    moving: int = 0
    still_parked: int = 0


class Discarded(Struct):
    """What became of parked sessions whose bad commit was to be discarded.

    `moving` ones stand behind all their commits again; `still_parked` ones met another one, or a damaged log.
    """

    discarded: int = 0
    moving: int = 0
    still_parked: int = 0


def check_discardable(session: str, reason: Parked) -> None:
    """Refuses to discard what is no poison event (DISCARD_REFUSED)."""
    if reason.code not in DISCARDABLE:
        raise Refused(
            "DISCARD_REFUSED", f"session {session} is parked because of {reason.code}: {reason.cause}", session=session
        )


def plan_of(store_id: str, findings: Iterable[Finding]) -> Plan:
    """The plan that acts on findings."""
    kept = list(findings)
    partitions = []
    for partition in sorted({finding.partition for finding in kept}):
        here = [finding for finding in kept if finding.partition == partition]
        sessions = sorted({finding.session for finding in here if finding.session is not None})
        agents = sorted({finding.agent for finding in here if finding.agent is not None})
        whole = any(finding.kind in _WHOLE and finding.code not in _NOTHING_DERIVED for finding in here)
        partitions.append(PartitionPlan(partition, sessions, whole, agents, _with_right_checkpoints(here)))
    return Plan(PLAN_SCHEMA, store_id, partitions, kept)


def with_grafts(plan: Plan, found: Iterable[Graft | Unfit], keyspace: Keyspace) -> Plan:
    """The plan with logs that are completed first; their sessions are rebuilt with the others."""
    kept = list(found)
    grafts = [one for one in kept if isinstance(one, Graft)]
    parts = {part.partition: part for part in plan.partitions}
    for graft in grafts:
        at = keyspace.partition_of(graft.session)
        part = parts.get(at, PartitionPlan(at, [], whole=False))
        shortcuts = [session for session in part.shortcuts if session != graft.session]
        sessions = sorted({*part.sessions, graft.session})
        parts[at] = structs.replace(part, sessions=sessions, shortcuts=shortcuts)
    unfit = [one for one in kept if isinstance(one, Unfit)]
    return structs.replace(plan, partitions=[parts[at] for at in sorted(parts)], grafts=grafts, unfit=unfit)


def mendable(plan: Plan) -> set[str]:
    """The sessions whose logs something is missing of, or altered in."""
    return {one.session for one in plan.findings if one.session is not None and one.code in MENDABLE}


def sized(plan: Plan, store: ProjectionStore, per_s: float | None) -> Plan:
    """The plan with how much it goes through, and how long that takes at so many events a second."""
    parts, sessions = [], 0
    for part in plan.partitions:
        if part.whole:
            sessions += store.client.zcard(store.keys(part.partition).sessions)
            events = store.total(part.partition)
        else:
            sessions += len(part.sessions)
            heads = store.heads(part.sessions)
            events = sum(head.seq for head in heads if head is not None)
        parts.append(structs.replace(part, events=events))
    total = sum(part.events for part in parts)
    seconds = round(total / per_s, 1) if per_s else None
    return structs.replace(plan, partitions=parts, sessions=sessions, events=total, seconds=seconds)


def being_built(store: ProjectionStore, leases: Leases) -> list[int]:
    """Partitions without a cursor that a worker holds: it builds them from their logs, as all workers do at once."""
    now = store.server_ms()
    standing = store.standing(range(store.keyspace.count))
    return [
        partition
        for partition, owner in enumerate(leases.owners())
        if owner is not None and owner[1] > now and standing[partition][0] is None and standing[partition][1]
    ]


def _with_right_checkpoints(findings: Sequence[Finding]) -> list[str]:
    """The sessions of which nothing but the view was found wrong."""
    wrong = {finding.session for finding in findings if finding.code not in _VIEW_ALONE}
    return sorted({finding.session for finding in findings if finding.session is not None} - wrong)


def rebuild_own(
    store: OwnStore, log: EventLog, partitions: Sequence[int], *, who: str, progress: Callable[[str], None]
) -> int:
    """Folds everything of an own projection again from the log, and swaps what differs; returns how many partitions.

    It works partition by partition under the projection's own lease; its views are as they were until then. One that is
    interrupted is completed by the workers, which trust the folds that were not looked at yet.
    """
    leases = Leases(store.client, store.keyspace, who, owned=store.owned)
    projector = OwnProjector(store, log)
    for partition in partitions:
        progress(f"partition {partition}")
        with held_for_recovery(leases, partition) as held:
            projector.begin(partition, held.token)
            while not projector.build_slice(partition, held.token, anew=True):
                held.renew()
    return len(partitions)


class Recovery:
    """Carries plans out. `who` is noted in the audit stream, `progress` is told what happens.

    `pace` counts the events gone through; it may slow the work down, or end it (Stopped).
    """

    def __init__(
        self,
        store: ProjectionStore,
        log: SessionLog,
        *,
        who: str,
        progress: Callable[[str], None],
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace or Pace(lambda _: None, verb="")
        self._store = store
        self._log = log
        self._leases = Leases(store.client, store.keyspace, who)
        self._progress = progress
        self.repaired = Repaired()

    def carry_out(self, plan: Plan, *, quarantine: bool = True) -> None:
        """Carries a plan out. Without `quarantine`, a session whose log is damaged is parked."""
        for number, part in enumerate(plan.partitions, 1):
            self._progress(f"partition {part.partition} ({number} of {len(plan.partitions)})")
            self._partition(part, quarantine=quarantine)

    def apply(self, plan: Plan) -> list[Finding]:
        """Carries a plan out, verifies what it touched, and returns what is still found there."""
        self.carry_out(plan)
        return list(self._verified(plan.partitions))

    def rebuild(self, partitions: Sequence[int]) -> Repaired:
        """Builds whole partitions again from the log, whether something was found in them or not."""
        for partition in partitions:
            self._progress(f"partition {partition}")
            self._partition(PartitionPlan(partition, [], whole=True), quarantine=False)
        return self.repaired

    def forget(self, partition: int, sessions: Sequence[str]) -> None:
        """Takes away what derives from sessions of a partition whose logs were taken from here on purpose."""
        self._under_lease(partition, lambda rebuild: rebuild.forget(sessions), quarantine=False)

    def forget_own(self, partition: int, sessions: Sequence[str]) -> None:
        """As `forget`, of every projection of the users' own."""
        for version in Publications(self._store.client, self._store.keyspace).versions():
            deadline = time.monotonic() + BUSY_WAIT_S
            while True:
                try:
                    forget_own(
                        self._store.client, self._store.keyspace, version, partition, sessions, self._leases.holder
                    )
                    break
                except Conflict as conflict:
                    if conflict.code not in _PASSING or time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)

    def undo(self, session: str) -> None:
        """Puts the view of a session back that recovery replaced. Raises NotFound (NOTHING_REPLACED) and Conflict
        (VIEW_MOVED).
        """
        self._under_lease(
            self._store.keyspace.partition_of(session), lambda rebuild: rebuild.undo(session), quarantine=False
        )

    def retry(self, parked: Mapping[int, Collection[str]]) -> Retried:
        """Builds parked sessions, by partition, again from the log. Those whose log is whole now go on from there.

        The totals of a partition are summed from all its views afterwards. Where another view is damaged, they lack
        what it holds until `recover apply` mends it; verification finds both.
        """
        retried = Retried()
        for partition, sessions in parked.items():
            self._progress(f"partition {partition}")
            self._under_lease(partition, partial(self._retry, set(sessions), retried), quarantine=False, retry=True)
        return retried

    def discard(self, parked: Mapping[int, Collection[str]], *, why: str) -> Discarded:
        """Discards the first bad commit of each of these parked sessions, by partition, and moves the session on.

        One whose log is whole by now, or is damaged, loses nothing: it is built again, and goes on or stays parked.
        """
        done = Discarded()
        for partition, sessions in parked.items():
            self._progress(f"partition {partition}")
            work = partial(self._discard, set(sessions), set(sessions), done, why)
            self._under_lease(partition, work, quarantine=False)
        return done

    def _retry(self, left: set[str], retried: Retried, rebuild: Rebuild) -> None:
        for page in self._still_parked(left, rebuild.partition):
            for swapped in rebuild.sessions(page):
                left.discard(swapped.session)
                retried.tried += 1
                retried.moving += swapped.damage is None
                retried.still_parked += swapped.damage is not None
        rebuild.totals()

    def _discard(self, untouched: set[str], left: set[str], done: Discarded, why: str, rebuild: Rebuild) -> None:
        for page in self._still_parked(left, rebuild.partition):
            for session in page:
                # One commit a command, also where the lease is lost after it and all begins again.
                if session in untouched:
                    done.discarded += rebuild.discard(session, why)
                    untouched.discard(session)
                for swapped in rebuild.sessions([session]):
                    left.discard(session)
                    done.moving += swapped.damage is None
                    done.still_parked += swapped.damage is not None
        rebuild.totals()

    def _still_parked(self, sessions: Collection[str], partition: int) -> Iterator[list[str]]:
        """Those of a partition's sessions that are parked, in pages.

        What was done before the lease was lost is not done twice, and nobody is parked again who went on, or was
        quarantined, since he was asked for.
        """
        names = sorted(sessions)
        for page in [names[at : at + MEMBER_PAGE] for at in range(0, len(names), MEMBER_PAGE)]:
            reasons = self._store.parked(partition, page)
            yield [name for name, reason in zip(page, reasons, strict=True) if reason is not None]

    def _partition(self, part: PartitionPlan, *, quarantine: bool = True) -> None:
        self._under_lease(part.partition, partial(self._swap, part), quarantine=quarantine)

    def _under_lease(
        self, partition: int, work: Callable[[Rebuild], None], *, quarantine: bool, retry: bool = False
    ) -> None:
        """Does the work of a partition while nobody else may; waits for another recovery."""
        deadline = time.monotonic() + BUSY_WAIT_S
        while True:
            try:
                with held_for_recovery(self._leases, partition) as held:
                    rebuild = Rebuild(
                        self._store,
                        self._log,
                        partition,
                        held.token,
                        who=self._leases.holder,
                        quarantine=quarantine,
                        retry=retry,
                        renew=held.renew,
                    )
                    work(rebuild)
                return
            except Conflict as conflict:
                if conflict.code not in _PASSING or time.monotonic() > deadline:
                    raise
                self._progress(f"waiting for partition {partition}: {conflict.cause}")
                time.sleep(0.2)

    def _swap(self, part: PartitionPlan, rebuild: Rebuild) -> None:
        if part.whole:
            # What the registry does not list yet is listed first.
            unlisted = [session for session in part.sessions if not self._store.is_registered(session)]
            outcomes = chain(rebuild.sessions(unlisted), rebuild.everything(part.agents))
        else:
            outcomes = chain(rebuild.sessions(part.sessions, part.shortcuts))
        for swapped in outcomes:
            self.repaired.sessions += 1
            self.repaired.changed += swapped.changed
            self.repaired.quarantined += swapped.quarantined
            self._pace.took(swapped.events, rebuild.renew)
        if not part.whole:
            self.repaired.totals += rebuild.totals(part.agents)

    def _verified(self, parts: Sequence[PartitionPlan]) -> Iterator[Finding]:
        validator = Validator(self._store, self._log)
        for part in parts:
            yield from validator.partition(part.partition)
