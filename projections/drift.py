"""The validator: reads the log again, folds it, and says exactly where stored state differs.

Theory of operation. Appends and projections go on while it reads, so everything that must fit together is read in one
transaction: a partition's cursor with the heads, last entries, views and checkpoints of some of its sessions. The
feed after that cursor tells the seq each view should stand at: right before the session's first commit that is not
applied yet, else at its head. The totals of agents are judged against the cursor that was read together with them.

One cause is one finding. A session whose log is damaged is reported once, as that; what was derived from it is not
reported too.

Every log is read twice: by the fold that builds views, and by one that shares nothing with it
(projections/second_reading.py). Where the two differ, a stored view may well be what the fold says: the fold is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from domain.agent import NOTHING, Totals, contributions
from domain.errors import Damaged
from domain.log.archive.place import is_of_archive
from domain.log.contract import CommitReader, Head, Position
from domain.log.feed import FeedEntry, parse_feed_position
from domain.log.protocol import parse_entry
from domain.log.uncollected import uncollected
from domain.log.witness import Loss
from domain.session import OPEN_GATE, Session
from domain.stretch import Stretch, one_by_one
from projections import agent_view, indexing, session_view
from projections.catchup import advance
from projections.census import Unlisted, census
from projections.findings import KINDS, Finding, difference, finding
from projections.index_drift import IndexCheck, Should
from projections.parking import KILLED
from projections.proof import NO_PROOFS, Proof, fingerprint
from projections.second_reading import SecondReading, contributed_by, indexed_by, summed_by, taken_apart
from projections.session_view import Folding
from projections.shortcut import folding_from, holds
from projections.skipping import AuditedSkips, Forged
from projections.store import (
    Cursor,
    Parked,
    ProjectionStore,
    parse_checkpoints,
    parse_cursor,
    parse_parked,
    readable_head,
)
from projections.subscriptions import durable_places

#: What both readings of a log must see.
_BOTH_SEE: Final = frozenset({"LOG_GAP", "LOG_TRIMMED", "LOG_ALTERED", "EVENT_ILLEGAL"})
#: How many sessions are read in one transaction.
SNAPSHOT_SESSIONS: Final = 128


class Read(Struct):
    """What a verification has read so far. It never says anything about what it has not read."""

    partitions: int = 0
    sessions: int = 0
    events: int = 0


class Snapshot(Struct, frozen=True):
    """A session's stored state, read together with its partition's cursor."""

    session: str
    head: Head | None
    packed_head: bytes | None
    last_seq: int
    last_entry: str
    view: bytes | None
    checkpoints: dict[int, bytes]
    parked: Parked | None
    #: Whether the registry lists it.
    listed: bool = True
    #: What of it is skipped, as it is stored.
    skips: bytes | None = None
    #: Whether this release has projected nothing of its partition yet.
    is_unprojected: bool = False
    #: Up to where it is archived: there it need not have checkpoints.
    horizon: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing of such a session at all."""
        things = (self.listed, self.packed_head, self.last_seq, self.view, self.checkpoints, self.parked)
        return not any(things)

    @property
    def is_orphan(self) -> bool:
        """Whether nothing tells of a session to which these derived keys belong, not even they."""
        if self.listed or self.last_seq or (self.head is not None and (self.head.seq or self.head.quarantined)):
            return False
        derived = (self.view, *self.checkpoints.values())
        views = (session_view.readable(stored, self.session) for stored in derived)
        return not any(view is not None and view.seq for view in views)


class Examination(Struct, frozen=True):
    """What a session's log says: the view and the checkpoints that should be stored, and what breaks a law of the log.

    `contributed` is what the session adds to the totals of its agents; None where nobody can know that any more.
    """

    snapshot: Snapshot
    expected_seq: int
    view: bytes
    checkpoints: dict[int, bytes]
    contributed: dict[str, Totals] | None
    damage: Parked | None
    verified: Head
    #: What it adds to the statistics of its partition; None as `contributed`.
    summed: dict[str, int] | None = None
    #: What should be indexed of it, values and scores, by the second reading; by the fold if there is none.
    indexed: tuple[Collection[str], Mapping[str, int]] = ((), {})
    #: What a witness knows that the log does not hold, though it is whole: somebody who reported it, or a stored value,
    #: which then is no drift of its own.
    loss: Loss | None = None
    loss_is_reported: bool = False
    #: Where the two readings of the log differ: the seq, and the fields by either.
    disagreement: tuple[int, dict[str, Any]] | None = None
    #: Skips that nobody is known to have written: what the log says with them is nothing to repair by.
    forged: Forged | None = None

    @property
    def quarantined(self) -> bool:
        """Whether the session was quarantined when it was read."""
        return self.snapshot.head is not None and self.snapshot.head.quarantined

    @property
    def is_judged_whole(self) -> bool:
        """Whether what is derived from the log is judged too: else one finding stands for all that is wrong."""
        if self.snapshot.is_orphan or self.forged is not None or self.disagreement is not None or self.is_unread:
            return False
        if self.log_is_damaged and not self.quarantined:
            return False
        return self.loss is None or self.loss_is_reported

    @property
    def is_unread(self) -> bool:
        """Whether what is archived of it could not be read: then nothing can be said of it, nor mended."""
        return self.damage is not None and is_of_archive(self.damage.code)

    @property
    def log_is_damaged(self) -> bool:
        """Whether commits are missing or altered; an event that producers should not have sent is no damage of the
        log, nor is what an archive lacks.
        """
        if self.damage is None or self.disagreement is not None or self.is_unread:
            return False
        return KINDS[self.damage.code].severity == "critical"


class Reading:
    """A session's commits, read up to one seq after another, and once more by whoever reads them a second time."""

    def __init__(self, stretches: Iterator[Stretch], second: SecondReading | None) -> None:
        self._stretches = stretches
        self._ahead: Stretch | None = None
        self._handed: Stretch | None = None
        self.second = second

    def to(self, seq: int) -> Iterator[Stretch]:
        """The next commits that begin at or before `seq`."""
        while stretch := self._ahead or next(self._stretches, None):
            count = stretch.up_to(seq)
            self._ahead = stretch[count:] if count < len(stretch) else None
            if not count:
                return
            self._handed = stretch[:count] if count < len(stretch) else stretch
            yield self._handed
            self.folded()  # asked for the next ones: these were folded

    def folded(self, up_to: int | None = None) -> None:
        """What was handed out was folded, `up_to` a seq or all of it: it is read a second time."""
        if self._handed is not None and self.second is not None:
            count = len(self._handed) if up_to is None else self._handed.up_to(up_to)
            with uncollected():
                self.second.read(self._handed[:count] if count < len(self._handed) else self._handed)
        self._handed = None


class Validator:
    """Verifies stored state against the log, partition by partition.

    `went_through` is told of each session how many events were read. A commit that workers died of is not folded,
    unless `daring`. Logs are read a second time, unless `once`: then nothing is known of what sessions contribute to
    the totals of agents.
    """

    def __init__(
        self,
        store: ProjectionStore,
        log: CommitReader,
        *,
        daring: bool = False,
        once: bool = False,
        went_through: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._log = log
        self._daring = daring
        self._once = once
        self._went_through = went_through
        self.read = Read()
        self._audited = [AuditedSkips(store.client, keys) for keys in store.keyspace.partitions]

    def everything(self) -> Iterator[Finding]:
        """The findings of all partitions."""
        unlisted = census(self._store)
        for partition in range(self._store.keyspace.count):
            yield from self.partition(partition, unlisted[partition])
            self.read.partitions += 1

    def session(self, session: str) -> Iterator[Finding]:
        """The findings of one session."""
        partition = self._store.keyspace.partition_of(session)
        index = IndexCheck(self._store, partition)
        for examination in self.examine(partition, [session]):
            yield from self.session_findings(partition, examination)
            yield from self.index_findings(index, examination)
        yield from index.taken()

    def index_findings(self, index: IndexCheck, found: Examination) -> Iterator[Finding]:
        """What is wrong with the indexes of sessions that were taken in so far."""
        snapshot = found.snapshot
        if found.is_judged_whole:
            values, scores = found.indexed
            yield from index.take(Should(snapshot.session, snapshot.view, list(values), scores))
        else:
            index.leave(snapshot.session)

    def partition(self, partition: int, unlisted: Unlisted | None = None) -> Iterator[Finding]:
        """The findings of one partition: its sessions, its cursor and feed, and the totals of its agents.

        `unlisted` is what a census found in it, if one was taken before.
        """
        unlisted = unlisted or census(self._store, partition)[partition]
        unknown = Cursor(None)
        where_it_stands = list(self.feed_findings(partition))
        yield from where_it_stands
        cursor, stored, statistics = self._stored_sums(partition)
        totals: dict[str, Totals] = {}
        sums: dict[str, int] = {}
        index = IndexCheck(self._store, partition)
        # Where cursor and feed cannot say what is applied, views are held against their own seq, and totals against
        # nothing: building the partition again, which is the remedy then, sums them anew.
        judged = judged_at_cursor = not where_it_stands and cursor != unknown
        views_at = unknown if where_it_stands else None
        listed = (name for page in self._store.member_pages(partition) for name in page)
        sessions = chain(sorted(unlisted.sessions), (name for name in listed if name not in unlisted.sessions))
        damaged: set[str] = set()
        for examination in self.examine(partition, sessions, views_at=views_at, totals_at=views_at or cursor):
            for found in self.session_findings(partition, examination):
                damaged |= {str(found.session)} if found.kind in ("log", "archive") else set()
                yield found
            if judged_at_cursor:
                yield from self.index_findings(index, examination)
            if examination.contributed is None or examination.summed is None:
                judged = False
            else:
                _add(totals, examination.contributed)
                _add_sums(sums, examination.summed)
        for loss in self._store.losses(partition):
            if not self._store.is_registered(loss.session) and loss.session not in unlisted.sessions:
                yield _loss_finding(partition, loss, quarantined=False)
        if judged:
            yield from self.agent_findings(partition, stored, totals, unlisted.agents)
            yield from self.statistics_findings(partition, statistics, sums)
        if judged_at_cursor:
            yield from index.taken()
            yield from index.strays()
        yield from self.subscription_findings(partition, damaged)

    def subscription_findings(self, partition: int, damaged: Collection[str]) -> Iterator[Finding]:
        """The durable subscriptions whose place cannot be read, or whose last acknowledged commit the log lacks.

        Not where the log of that session is `damaged` by findings of its own: that is one cause.
        """
        for name, place in durable_places(self._store.client, self._store.keyspace, [partition])[partition]:
            if place is None:
                yield finding("SUBSCRIPTION_DAMAGED", partition, subscription=name)
                continue
            last = place.recent[-1] if place.recent else None
            if last is None or last.session in damaged:
                continue
            commits = self._log.read(last.session, after=last.seq - 1, to=last.seq)
            held = [commit.digest for commit in commits if commit.last_seq == last.seq]
            if held != [last.digest]:
                yield finding(
                    "SUBSCRIPTION_LOST",
                    partition,
                    stored={"session": last.session, "seq": last.seq, "digest": last.digest},
                    rebuilt={"digest": held[0] if held else None},
                    subscription=name,
                )

    # -- reading -----------------------------------------------------------------------------------------------------

    def examine(
        self,
        partition: int,
        sessions: Iterable[str],
        *,
        views_at: Cursor | None = None,
        totals_at: Cursor | None = None,
        shortcuts: Collection[str] = (),
        proofs: Mapping[str, Proof] = NO_PROOFS,
    ) -> Iterator[Examination]:
        """What the log says of sessions of a partition; of those in `shortcuts`, from their checkpoints on, of those in
        `proofs` from what was proved of them.

        Views and contributions are judged at the stored cursor, as it is when they are read, unless another one is
        given.
        """
        remaining = iter(sessions)
        while page := list(islice(remaining, SNAPSHOT_SESSIONS)):
            cursor, snapshots, losses = self._snapshots(partition, page)
            reports: dict[str, list[Loss]] = {}
            for loss in losses:
                reports.setdefault(loss.session, []).append(loss)
            cursor = views_at if views_at is not None else cursor
            since = totals_at if totals_at is not None else cursor
            oldest = min(cursor.position or 0, since.position or 0)
            pending: dict[str, int] = {}
            pending_since: dict[str, int] = {}
            for entry in self._store.feed_after(partition, oldest):
                for span in entry.spans:
                    pending_since.setdefault(span.session, span.from_seq)
                    if entry.position > (cursor.position or 0):
                        pending.setdefault(span.session, span.from_seq)
            whole = [session for session in page if session not in shortcuts and session not in proofs]
            commits_of = dict(zip(whole, self._log.stretches_each(whole), strict=True))
            for snapshot in snapshots:
                commits = commits_of.get(snapshot.session)
                proof = proofs.get(snapshot.session)
                if commits is None and snapshot.parked is not None:
                    commits, proof = self._log.stretches(snapshot.session), None
                if (
                    commits is not None
                    and snapshot.parked is not None
                    and snapshot.parked.code == KILLED
                    and not self._daring
                ):
                    commits = _up_to(commits, snapshot.parked)
                yield self._examine(
                    snapshot, commits, proof, cursor, pending, pending_since, reports.get(snapshot.session, [])
                )

    def _snapshots(self, partition: int, sessions: Sequence[str]) -> tuple[Cursor, list[Snapshot], list[Loss]]:
        keys = self._store.keys(partition)
        pipe = self._store.client.pipeline(transaction=True)
        pipe.hmget(keys.cursor(session_view.NAME, session_view.VERSION), "position", "events")
        pipe.hmget(keys.parked(session_view.NAME), list(sessions))
        pipe.hmget(keys.skips, list(sessions))
        pipe.hvals(keys.lost)
        for session in sessions:
            pipe.get(keys.head(session))
            pipe.xrevrange(keys.log(session), count=1)
            pipe.get(keys.session_view(session))
            pipe.zscore(keys.sessions, session)
            pipe.hgetall(keys.checkpoints(session))
        position, parked, skips, reports, *rest = pipe.execute(raise_on_error=False)
        if isinstance(reports, Exception):
            raise reports
        parked, skips = (one if isinstance(one, list) else [None] * len(sessions) for one in (parked, skips))
        cursor = parse_cursor(position)
        more = {"is_unprojected": cursor.position is None}
        snapshots = [
            structs.replace(_snapshot(session, reason, *rest[at * 5 : at * 5 + 5]), skips=skipped, **more)
            for at, (session, reason, skipped) in enumerate(zip(sessions, parked, skips, strict=True))
        ]
        archived = [snapshot.session for snapshot in snapshots if snapshot.head is None or snapshot.head.is_archived]
        found = zip(archived, self._store.horizons(archived), strict=True)
        horizons = {session: horizon.seq for session, horizon in found if horizon is not None}
        snapshots = [
            structs.replace(snapshot, horizon=horizons[snapshot.session]) if snapshot.session in horizons else snapshot
            for snapshot in snapshots
        ]
        return cursor, snapshots, [msgspec.json.decode(report, type=Loss) for report in reports]

    def _examine(
        self,
        snapshot: Snapshot,
        commits: Iterator[Stretch] | None,
        proof: Proof | None,
        cursor: Cursor,
        pending: dict[str, int],
        pending_since: dict[str, int],
        reports: Sequence[Loss],
    ) -> Examination:
        session = snapshot.session
        if snapshot.is_orphan:
            self.read.sessions += 1
            return Examination(snapshot, 0, b"", {}, {}, None, Head(0, "", OPEN_GATE, 0), {})
        head_seq = max(snapshot.last_seq, snapshot.head.seq if snapshot.head is not None else 0, 1)
        expected = pending.get(session, head_seq + 1) - 1
        contributed_seq = pending_since.get(session, head_seq + 1) - 1
        if cursor.position is None:
            # Nobody knows how far this partition was applied: take the view's own word for where it stands.
            view = session_view.readable(snapshot.view, session)
            expected = contributed_seq = min(view.seq, head_seq) if view is not None else 0
        elif snapshot.parked is not None and (view := session_view.readable(snapshot.view, session)) is not None:
            # The cursor went on without it: it still counts as it stood when it was parked.
            contributed_seq = min(view.seq, contributed_seq)

        # The index moves with the view, which a session that is parked keeps while the cursor goes on.
        view = session_view.readable(snapshot.view, session) if snapshot.parked is not None else None
        indexed_seq = expected if view is None else min(view.seq, expected)

        folding = Folding(session_view.initial(session))
        second = None if self._once else SecondReading(session)
        if commits is None and proof is not None:
            folding, second, commits = self._going_on(snapshot, proof, min(expected, contributed_seq))
        elif commits is None:
            folding = folding_from(snapshot.checkpoints, self._log, session, min(expected, contributed_seq))
            commits = self._log.stretches(session, after=folding.view.seq)
            kept = {seq: view for seq, view in snapshot.checkpoints.items() if seq <= folding.view.seq}
            folding.checkpoints = dict(sorted(kept.items()))
        begun_at = folding.view.seq
        reading = Reading(commits, second)
        damage: Parked | None = None
        contributed: dict[str, Totals] | None = None
        summed: dict[str, int] | None = None
        indexed: tuple[Collection[str], Mapping[str, int]] = ((), {})
        view_bytes, checkpoints = b"", dict[int, bytes]()
        disagreement = None
        for stop in sorted({contributed_seq, indexed_seq, expected, head_seq}):
            if damage is None:
                damage = advance(folding, reading.to(stop), stop)
                if damage is not None:
                    reading.folded(folding.view.seq)
            if second is not None and stop == contributed_seq:
                contributed = {agent: Totals(*part) for agent, part in second.contributed().items()}
                summed = second.summed()
            if stop == indexed_seq:
                indexed = second.indexed() if second is not None else _indexed(folding.view)
            if stop == expected:
                view_bytes, checkpoints = session_view.encode(folding.view), dict(folding.checkpoints)
                disagreement = None if second is None else _disagreement(view_bytes, checkpoints, second)
        self.read.sessions += 1
        self.read.events += folding.view.seq - begun_at
        self._went_through(folding.view.seq - begun_at)
        quarantined = snapshot.head is not None and snapshot.head.quarantined
        forged = self._audited[self._store.keyspace.partition_of(session)].forged(session, snapshot.skips)
        is_unread = damage is not None and is_of_archive(damage.code)
        is_critical = damage is not None and not quarantined and KINDS[damage.code].severity == "critical"
        if forged is not None or is_unread or is_critical:
            # What the missing commits contributed is known by the view alone, if it can be trusted.
            trusted = session_view.readable(snapshot.view, session)
            contributed = contributions(trusted) if trusted is not None else None
            summed = indexing.sums(trusted) if trusted is not None else None
        verified = Head(folding.view.seq, folding.view.digest, folding.view.gate, folding.view.last_at)
        if damage is not None and damage.code in _BOTH_SEE and not self._is_seen_twice(session):
            disagreement = folding.view.seq + 1, {"stored": {"broken": damage.cause}, "rebuilt": {"broken": None}}
        found = Examination(
            snapshot,
            expected,
            view_bytes,
            checkpoints,
            contributed,
            damage,
            verified,
            summed,
            indexed,
            disagreement=disagreement,
            forged=forged,
        )
        if damage is None and forged is None:
            for loss in reports:
                if not holds(self._log, session, loss.last):
                    return structs.replace(found, loss=loss, loss_is_reported=True)
            return structs.replace(found, loss=self._loss_by_stored_values(found))
        return found

    def _going_on(
        self, snapshot: Snapshot, proof: Proof, at_most: int
    ) -> tuple[Folding, SecondReading, Iterator[Stretch]]:
        """Both readings of a session from the checkpoint that was proved right, if it still is what it was and the log
        still holds it; else from the first event.
        """
        session, seq = snapshot.session, proof.checkpoint_seq
        stored = snapshot.checkpoints.get(seq)
        view = session_view.readable(stored, session)
        if stored is not None and view is not None and fingerprint(stored) == proof.checkpoint and seq <= at_most:
            commits = self._log.read(session, after=seq - 1)
            try:
                first = next(commits, None)
            except Damaged:
                first = None
            if first is not None and (first.last_seq, first.digest) == (seq, view.digest):
                folding = Folding(view)
                folding.checkpoints = {at: kept for at, kept in sorted(snapshot.checkpoints.items()) if at <= seq}
                return folding, SecondReading.from_checkpoint(session, seq, folding.checkpoints), one_by_one(commits)
        return Folding(session_view.initial(session)), SecondReading(session), self._log.stretches(session)

    def _is_seen_twice(self, session: str) -> bool:
        """Whether the log is damaged by the second reading too: else it is the fold that is wrong, not the log."""
        second = SecondReading(session)
        try:
            for stretch in one_by_one(self._log.read(session)):  # what follows the damage may be of any kind
                second.read(stretch)
                if second.broken is not None:
                    return True
        except Damaged:
            return True
        return False

    def _loss_by_stored_values(self, found: Examination) -> Loss | None:
        """What a view or checkpoint that adds up, and is not what the log says, knows of another history."""
        snapshot, session = found.snapshot, found.snapshot.session
        stored = [] if snapshot.view in (None, found.view) else [snapshot.view]
        stored += [value for seq, value in snapshot.checkpoints.items() if value != found.checkpoints.get(seq)]
        for value in stored:
            view = session_view.readable(value, session)
            if view is None or not view.seq or not session_view.adds_up(view):
                continue
            if not holds(self._log, session, Position(view.seq, view.digest)):
                ends_at = found.verified.seq
                code = "TAIL_LOST" if view.seq > ends_at else "FORK"
                return Loss(session, code, min(view.seq, ends_at + 1), Position(view.seq, view.digest), ())
        return None

    def totals(
        self, partition: int, unlisted: Unlisted, proved: Callable[[Sequence[str]], Mapping[str, Proof]]
    ) -> Iterator[Finding]:
        """The findings about the totals of a partition's agents, by those views that are as they were proved, and by
        the logs of the other sessions.

        Appends and projections may go on. Nothing is said where nobody can know what a damaged log contributed.
        """
        cursor, stored, statistics = self._stored_sums(partition)
        totals: dict[str, Totals] = {}
        sums: dict[str, int] = {}
        index = IndexCheck(self._store, partition)
        if cursor.position is None:
            return
        pages = self._store.member_pages(partition)
        listed = ([name for name in page if name not in unlisted.sessions] for page in pages)
        for page in chain([sorted(unlisted.sessions)], listed):
            proofs, views = proved(page), self._store.views(page)
            # Asked after the views: whatever moved one of them past the cursor is told of.
            since = self._store.feed_after(partition, cursor.position)
            moved = {span.session for entry in since for span in entry.spans}
            unproved = []
            for session, view in zip(page, views, strict=True):
                proof = proofs.get(session)
                if proof is None or view is None or session in moved or fingerprint(view) != proof.view:
                    unproved.append(session)
                else:
                    told = taken_apart(view)
                    _add(totals, {agent: Totals(*part) for agent, part in contributed_by(told).items()})
                    _add_sums(sums, summed_by(told))
                    index.given(session, *indexed_by(told))
            for found in self.examine(partition, unproved, totals_at=cursor):
                if found.contributed is None or found.summed is None:
                    return
                _add(totals, found.contributed)
                _add_sums(sums, found.summed)
                yield from self.index_findings(index, found)
        yield from self.agent_findings(partition, stored, totals, unlisted.agents)
        yield from self.statistics_findings(partition, statistics, sums)
        yield from index.taken()
        yield from index.strays()

    def statistics_findings(self, partition: int, stored: bytes | None, sums: dict[str, int]) -> Iterator[Finding]:
        """Whether the statistics of a partition are the sums of what its sessions give."""
        if (stored or b"") == (indexing.encode_statistics(sums) if sums else b""):
            return
        kept = indexing.readable_statistics(stored)
        have: Any = {} if stored is None else {"unreadable": True} if kept is None else kept
        names = sorted({name for name in {*sums, *have} if sums.get(name) != have.get(name)})
        yield finding(
            "STATISTICS_DIFFER",
            partition,
            stored={name: have.get(name) for name in names},
            rebuilt={name: sums.get(name) for name in names},
        )

    def _stored_sums(self, partition: int) -> tuple[Cursor, dict[str, bytes | None], bytes | None]:
        """The stored totals of all agents of a partition and its statistics, with the cursor they belong to."""
        keys = self._store.keys(partition)
        while True:
            agents = [agent for page in self._store.member_pages(partition, agents=True) for agent in page]
            pipe = self._store.client.pipeline(transaction=True)
            pipe.hmget(keys.cursor(session_view.NAME, session_view.VERSION), "position", "events")
            pipe.zcard(keys.agents)
            pipe.get(keys.statistics)
            for agent in agents:
                pipe.get(keys.agent_view(agent))
            position, count, *parts = pipe.execute(raise_on_error=False)
            if count == len(agents) or not isinstance(count, int):
                statistics, *parts = [None if isinstance(part, Exception) else part for part in parts]
                return parse_cursor(position), dict(zip(agents, parts, strict=True)), statistics

    # -- judging -----------------------------------------------------------------------------------------------------

    def session_findings(self, partition: int, found: Examination) -> Iterator[Finding]:
        snapshot, damage = found.snapshot, found.damage
        session = snapshot.session
        if snapshot.is_orphan:
            kinds = [
                kind for kind, is_there in (("view", snapshot.view), ("checkpoints", snapshot.checkpoints)) if is_there
            ]
            yield finding("ORPHAN", partition, session=session, stored={"keys": kinds})
            return
        if snapshot.last_seq and not snapshot.listed:
            yield finding(
                "REGISTRY_DIFFERS", partition, session=session, stored={"listed": False}, rebuilt={"listed": True}
            )
        if found.forged is not None:
            skip = found.forged.first
            yield finding(
                "SKIP_FORGED", partition, session=session,
                first_bad_seq=None if skip is None else skip.from_seq,
                stored={"unreadable": True} if skip is None else structs.asdict(skip), quarantined=found.quarantined,
            )  # fmt: skip
            return
        if found.disagreement is not None:
            seq, fields = found.disagreement
            yield finding("FOLD_DIFFERS", partition, session=session, first_bad_seq=seq, **fields)
            return
        if damage is not None:
            yield finding(
                damage.code,
                partition,
                session=session,
                first_bad_seq=damage.first_bad_seq,
                stored=damage.cause,
                rebuilt={"verified_seq": found.verified.seq, "digest": found.verified.digest},
                quarantined=found.quarantined,
            )
            if found.is_unread or (found.log_is_damaged and not found.quarantined):
                return
        elif found.quarantined:
            yield finding("QUARANTINED", partition, session=session, quarantined=True)
        if damage is None:
            yield from self._head_findings(partition, found)
        if found.loss is not None:
            yield _loss_finding(partition, found.loss, quarantined=found.quarantined)
            if not found.loss_is_reported:
                return
        if snapshot.is_unprojected and session_view.is_older(snapshot.view):
            return  # what an older release built is built again
        yield from _view_findings(partition, found)
        yield from _checkpoint_findings(partition, found)

    def _head_findings(self, partition: int, found: Examination) -> Iterator[Finding]:
        head, verified = found.snapshot.head, found.verified
        if head is None:
            yield finding(
                "HEAD_MISSING" if found.snapshot.packed_head is None else "HEAD_DIFFERS",
                partition,
                session=found.snapshot.session,
                first_bad_seq=verified.seq,
                rebuilt={"seq": verified.seq, "digest": verified.digest, "gate": verified.gate},
            )
        elif (head.seq, head.digest, head.gate) != (verified.seq, verified.digest, verified.gate):
            stored = {"seq": head.seq, "digest": head.digest, "gate": head.gate}
            rebuilt = {"seq": verified.seq, "digest": verified.digest, "gate": verified.gate}
            yield finding(
                "HEAD_DIFFERS", partition, session=found.snapshot.session, first_bad_seq=verified.seq,
                **difference(stored, rebuilt),
            )  # fmt: skip

    def feed_findings(self, partition: int) -> Iterator[Finding]:
        keys = self._store.keys(partition)
        pipe = self._store.client.pipeline(transaction=True)
        pipe.hmget(keys.cursor(session_view.NAME, session_view.VERSION), "position", "events")
        pipe.hget(keys.meta, "total")
        pipe.xinfo_stream(keys.feed)
        fields, total, info = pipe.execute(raise_on_error=False)
        cursor, total = parse_cursor(fields), int(total or 0)
        position = parse_feed_position(info)
        if position == total and cursor.position is not None and cursor.position < total:
            position = min(total, self._store.feed_reach(partition, cursor.position))
        if position != total:
            yield finding("FEED_DIFFERS", partition, stored={"position": position}, rebuilt={"position": total})
        elif cursor.position is not None and cursor.position > total:
            yield finding("CURSOR_AHEAD", partition, stored={"position": cursor.position}, rebuilt={"position": total})
        elif cursor.position is None and total > 0 and self._is_forsaken(partition):
            # Nobody can say which views should be there: this finding stands for all that may be missing.
            yield finding("CURSOR_MISSING", partition, rebuilt={"position": total})
        elif (reached := self.views_are_at(partition, cursor)) is not None:
            stored = {"position": cursor.position}
            yield finding("CURSOR_BEHIND", partition, stored=stored, rebuilt={"position": reached})

    def views_are_at(self, partition: int, cursor: Cursor) -> int | None:
        """The position up to which the views of a partition hold the feed, where that is beyond its cursor; else None.

        Views, totals and cursor move in one step. So where the next entry is in the views, and the totals are those of
        the views, it is the cursor that was put back.
        """
        if cursor.position is None or not (following := self._store.oldest_after(partition, cursor.position)):
            return None
        if not self._hold(partition, following):
            return None
        indexed, stored, _ = self._stored_sums(partition)
        summed = {agent: totals for agent, totals in self._store.summed_totals(partition).items() if totals != NOTHING}
        is_theirs = stored == {agent: agent_view.encode(agent, totals) for agent, totals in summed.items()}
        if not is_theirs or not indexed == cursor == self._store.cursor(partition):
            return None
        reached = cursor.position
        for entry in self._store.feed_after(partition, cursor.position):
            if not self._hold(partition, entry):
                break
            reached = entry.position
        return reached

    def _hold(self, partition: int, entry: FeedEntry) -> bool:
        """Whether the views hold what a feed entry tells of; parked sessions hold nothing more."""
        sessions = [span.session for span in entry.spans]
        stored = zip(entry.spans, self._store.views(sessions), self._store.parked(partition, sessions), strict=True)
        return all(
            parked is not None
            or ((view := session_view.readable(kept, span.session)) is not None and view.seq >= span.to_seq)
            for span, kept, parked in stored
        )

    def _is_forsaken(self, partition: int) -> bool:
        """Whether somebody held the partition once and nobody does now.

        Before the first worker there is no cursor yet; and a worker that finds none builds everything again.
        """
        owner = self._store.keys(partition).owner(session_view.NAME)
        counter, deadline = self._store.client.hmget(owner, "counter", "deadline")
        seconds, micros = self._store.client.time()
        return counter is not None and int(deadline or 0) <= seconds * 1000 + micros // 1000

    def agent_findings(
        self, partition: int, stored: dict[str, bytes | None], totals: dict[str, Totals], strays: set[str]
    ) -> Iterator[Finding]:
        rebuilt = {agent: total for agent, total in totals.items() if total != NOTHING}
        unlisted = sorted((rebuilt.keys() | strays) - stored.keys())
        parts = {**stored, **dict(zip(unlisted, self._store.totals(partition, unlisted), strict=True))}
        for agent, part in sorted(parts.items()):
            should = rebuilt.get(agent)
            if (agent in stored) != (should is not None) and (part is None) == (should is None):
                yield finding(
                    "INDEX_DIFFERS", partition, agent=agent,
                    stored={"listed": agent in stored}, rebuilt={"listed": should is not None},
                )  # fmt: skip
            elif should is None:
                if part is not None or agent in stored:
                    yield finding("AGENT_UNEXPECTED", partition, agent=agent)
            elif part is None:
                yield finding("AGENT_MISSING", partition, agent=agent, rebuilt=msgspec.to_builtins(_fields(should)))
            elif part != agent_view.encode(agent, should):
                try:
                    have: Any = _fields(agent_view.decode(agent, part))
                except Damaged as damaged:
                    have = {"unreadable": damaged.cause}
                yield finding("AGENT_DIFFERS", partition, agent=agent, **difference(have, _fields(should)))


def _up_to(stretches: Iterator[Stretch], parked: Parked) -> Iterator[Stretch]:
    """The commits before the one that a session is parked at; that one raises why, unless it was discarded since."""
    for commit in chain.from_iterable(stretches):
        if commit.first_seq <= parked.first_bad_seq <= commit.last_seq and not commit.skipped:
            raise Damaged(parked.code, parked.cause, attempts=parked.attempts)
        yield Stretch.of(commit.session, [commit])


def _disagreement(
    view: bytes, checkpoints: dict[int, bytes], second: SecondReading
) -> tuple[int, dict[str, Any]] | None:
    """The first place where what the fold gives is not what the second reading says, and the fields that differ."""
    told = second.told()
    if second.broken is not None:
        return told["seq"], {"stored": {"broken": None}, "rebuilt": {"broken": second.broken}}
    for seq in sorted(checkpoints.keys() | second.checkpoints.keys()):
        should, have = second.checkpoints.get(seq), checkpoints.get(seq)
        if should is None or have is None:
            return seq, {"stored": {"checkpoint": have is not None}, "rebuilt": {"checkpoint": should is not None}}
        if (apart := taken_apart(have)) != should:
            return seq, difference(apart, should)
    apart = taken_apart(view)
    return None if apart == told else (told["seq"], difference(apart, told))


def _add(into: dict[str, Totals], more: dict[str, Totals]) -> None:
    """Sums totals in plain sight: not by the sum that workers move them with."""
    for agent, part in more.items():
        so_far = into.get(agent, NOTHING)
        into[agent] = Totals(
            so_far.events + part.events,
            so_far.sessions + part.sessions,
            so_far.present + part.present,
            so_far.low + part.low,
            so_far.medium + part.medium,
            so_far.high + part.high,
            so_far.critical + part.critical,
            so_far.perf_delta + part.perf_delta,
        )


def _add_sums(into: dict[str, int], more: dict[str, int]) -> None:
    for name, value in more.items():
        into[name] = into.get(name, 0) + value
        if not into[name]:
            del into[name]


def _indexed(view: Session) -> tuple[Collection[str], Mapping[str, int]]:
    found = indexing.entries(view)
    return found.values, found.scores


def _loss_finding(partition: int, loss: Loss, *, quarantined: bool) -> Finding:
    lost = [{"first_seq": one.first_seq, "last_seq": one.last_seq, "digest": one.digest} for one in loss.receipts]
    return finding(
        loss.code,
        partition,
        session=loss.session,
        first_bad_seq=loss.first_bad_seq,
        rebuilt={"seq": loss.last.seq, "digest": loss.last.digest, "lost": lost},
        quarantined=quarantined,
    )


def _view_findings(partition: int, found: Examination) -> Iterator[Finding]:
    snapshot = found.snapshot
    session, seq = snapshot.session, found.expected_seq
    if snapshot.view == found.view:
        if snapshot.parked is not None and found.damage is None:
            yield finding(
                "SESSION_PARKED", partition, session=session, first_bad_seq=snapshot.parked.first_bad_seq or None
            )
        return
    rebuilt = session_view.document(session_view.decode(found.view))
    if snapshot.view is None:
        if snapshot.parked is None and seq == 0:
            return
        code, stored = "VIEW_MISSING", None
        rebuilt = {"seq": rebuilt["seq"], "digest": rebuilt["digest"]}
    else:
        try:
            view = session_view.decode(snapshot.view)
        except Damaged as damaged:
            code, stored = "VIEW_UNREADABLE", {"unreadable": damaged.cause}
            rebuilt = {"seq": rebuilt["seq"], "digest": rebuilt["digest"]}
        else:
            stored = session_view.document(view)
            code = "VIEW_DIFFERS"
            if view.session == session and view.seq != rebuilt["seq"]:
                code = "VIEW_BEHIND" if view.seq < rebuilt["seq"] else "VIEW_AHEAD"
                if snapshot.parked is not None:
                    code = "SESSION_PARKED"
    yield finding(code, partition, session=session, first_bad_seq=seq, **difference(stored, rebuilt))


def _checkpoint_findings(partition: int, found: Examination) -> Iterator[Finding]:
    session, stored = found.snapshot.session, found.snapshot.checkpoints
    for seq in sorted(stored.keys() | found.checkpoints.keys()):
        should = found.checkpoints.get(seq)
        if should is None:
            yield finding("CHECKPOINT_UNEXPECTED", partition, session=session, first_bad_seq=seq)
        elif seq not in stored:
            if seq <= found.snapshot.horizon:
                continue
            digest = session_view.decode(should).digest
            yield finding(
                "CHECKPOINT_MISSING",
                partition,
                session=session,
                first_bad_seq=seq,
                rebuilt={"seq": seq, "digest": digest},
            )
        elif stored[seq] != should:
            kept = session_view.readable(stored[seq], session)
            have = {"unreadable": "the checksum does not fit"} if kept is None else session_view.document(kept)
            yield finding(
                "CHECKPOINT_DIFFERS",
                partition,
                session=session,
                first_bad_seq=seq,
                **difference(have, session_view.document(session_view.decode(should))),
            )


def _fields(totals: Totals) -> dict[str, int]:
    return structs.asdict(totals)


def _snapshot(
    session: str, reason: bytes | None, head: Any, last: Any, view: Any, score: Any, checkpoints: Any
) -> Snapshot:
    """A session's stored state from the replies of a transaction. A key of the wrong type counts as missing."""
    packed = head if isinstance(head, bytes) else None
    entry = last[0] if isinstance(last, list) and last else None
    return Snapshot(
        session,
        readable_head(packed),
        packed,
        parse_entry(session, entry).last_seq if entry is not None else 0,
        entry[0].decode() if entry is not None else "",
        view if isinstance(view, bytes) else None,
        parse_checkpoints(checkpoints) if isinstance(checkpoints, dict) else {},
        None if reason is None else parse_parked(session, reason),
        score is not None,
    )
