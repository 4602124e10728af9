"""Catching up: a batch of the feed becomes views, checkpoints and totals, in one step with the cursor.

Theory of operation. The feed says which commits came after the cursor. A view that stands right before them is
moved on by folding just them. A view that is missing, damaged or stands elsewhere is not trusted: it is built again
from the log. The totals of agents, the statistics of the partition and the indexes of its sessions move by what the
session gives after the batch less what it gave at the cursor, and the cursor says exactly which seq that was: the one
before the batch's first; only a view that stands after it was counted as it is, when it was written. So whatever
happens to a view, sums add up and no index keeps what is no more. A long session is built again from a checkpoint
(projections/shortcut.py).

A commit that breaks a law parks its session: the view stays at the last good commit, the reason is kept, and all other
sessions go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from domain.agent import NOTHING, Totals, contributions, difference, merge
from domain.codec import Commit
from domain.errors import Damaged, MusterError
from domain.log.archive.place import is_of_archive
from domain.log.contract import CommitReader, Position
from domain.log.feed import Span
from domain.stretch import Stretch
from projections import agent_view, indexing, session_view
from projections.careful import CarefulReader
from projections.indexing import Entries, Given, IndexMoves, given
from projections.parking import KILLED, fingerprint
from projections.session_view import Folding
from projections.shortcut import folding_from
from projections.store import (
    Operation,
    Parked,
    ProjectionStore,
    park,
    write_checkpoints,
    write_statistics,
    write_totals,
    write_view,
)

logger = logging.getLogger(__name__)


class Batch(Struct, frozen=True):
    """A stretch of a partition's feed, to be applied under a lease: spans of sessions between two cursor positions.

    Without `cursor_to` the feed cannot say what is new, and the partition is brought up to date from its registry
    and log.
    """

    partition: int
    token: str
    cursor_from: int | None
    cursor_to: int | None
    spans: list[Span]
    #: Workers died over it: each commit is noted before it is folded (projections/careful.py).
    careful: bool = False
    #: Parked sessions to be tried again, and nothing else.
    retry: list[str] = []


class Outcome(Struct, frozen=True):
    """A session after a batch."""

    session: str
    view: bytes
    checkpoints: dict[int, bytes]
    moved: dict[str, Totals]
    parked: Parked | None
    position: Position
    #: What was indexed of it, and what is to be.
    entries: tuple[Entries, Entries]
    #: By how much the statistics of its partition move.
    sums: dict[str, int]


class Phases(Struct, frozen=True):
    """When a batch was begun (ns since 1970), and how long its phases took, in seconds."""

    began_ns: int
    load: float
    fold: float
    write: float


class Projected(Struct, frozen=True):
    """What a batch did."""

    events: int
    sessions: int
    parked: int
    #: Where the views of its sessions stand now.
    positions: dict[str, Position]
    #: The commits that were loaded, of each session, and what came of them.
    loaded: Sequence[Sequence[Commit]]
    outcomes: Sequence[Outcome]
    phases: Phases


def apply(
    store: ProjectionStore, log: CommitReader, batch: Batch, *, goes_on: Callable[[], None] = lambda: None
) -> Projected:
    """Applies a batch: load, fold, step. Raises Conflict if the lease or the cursor moved; nothing was written then.

    `goes_on` is called with every session that is folded.
    """
    began_ns, began = time.time_ns(), time.perf_counter()
    views, loaded, parked = store.spans(batch.partition, batch.spans)
    loaded_at = time.perf_counter()
    commits: Sequence[Iterable[Commit]] = loaded
    if batch.careful:
        log = careful = CarefulReader(store, log, batch.partition, batch.token)
        commits = [careful.noted(new) for new in loaded]
    outcomes = []
    for span, stored, new in zip(batch.spans, views, commits, strict=True):
        if span.session in parked:
            continue
        outcome = fold_span(log, span, stored, new, store.checkpoints)
        goes_on()
        if outcome is not None and not (outcome.parked is not None and was_taken_back(store, span.session)):
            outcomes.append(outcome)
    events = (batch.cursor_to or 0) - (batch.cursor_from or 0)
    folded_at = time.perf_counter()
    store.step(
        batch.partition,
        token=batch.token,
        cursor_from=batch.cursor_from,
        cursor_to=batch.cursor_to,
        events=events,
        operations=writes(store, batch.partition, outcomes),
    )
    return Projected(
        events,
        len(outcomes),
        sum(outcome.parked is not None for outcome in outcomes),
        {outcome.session: outcome.position for outcome in outcomes},
        loaded,
        outcomes,
        Phases(began_ns, loaded_at - began, folded_at - loaded_at, time.perf_counter() - folded_at),
    )


def was_taken_back(store: ProjectionStore, session: str) -> bool:
    """Whether a session was here for a while, and is where it came from again: the feed still tells of it."""
    (head,) = store.heads([session])
    return head is not None and head.seq == 0 and head.is_elsewhere


def fold_span(
    log: CommitReader,
    span: Span,
    stored: bytes | None,
    new: Iterable[Commit],
    checkpoints: Callable[[str], Mapping[int, bytes]] = lambda _: {},
) -> Outcome | None:
    """A session after the commits of its span; None if its view holds them already.

    `checkpoints` gives those of a session by seq, where it has to be built again.
    """
    view = session_view.readable(stored, span.session)
    if stored is None and span.from_seq == 1:
        view = session_view.initial(span.session)
    if view is not None and view.seq >= span.to_seq:
        return None
    if view is not None and view.seq >= span.from_seq - 1:
        before, gave = contributions(view), given(view)
        folding = Folding(view)
        parked = advance(folding, _after(new, view.seq), span.to_seq)
        # What does not follow on the view is either a log that breaks a law, or a view of another log: the log decides.
        if parked is None or parked.code == KILLED or from_log(log, span.session, span.to_seq)[0].view == folding.view:
            return _outcome(folding, before, gave, parked)
    about = {"action": "projection.view_rebuilt", "session": span.session}
    logger.warning(
        "building the view of session %s again: it was missing, damaged or elsewhere", span.session, extra=about
    )
    folding = folding_from(checkpoints(span.session), log, span.session, span.from_seq - 1)
    parked = advance(folding, log.read(span.session, after=folding.view.seq, to=span.from_seq - 1), span.from_seq - 1)
    before, gave = contributions(folding.view), given(folding.view)
    if parked is None:
        parked = advance(folding, log.read(span.session, after=span.from_seq - 1, to=span.to_seq), span.to_seq)
    return _outcome(folding, before, gave, parked)


def _after(new: Iterable[Commit], seq: int) -> Iterable[Commit | Stretch]:
    """What of the commits begins after a seq: nearly always all of them, and at a stroke."""
    if isinstance(new, Stretch) and new and new.lasts[0] - new.counts[0] >= seq and min(new.counts) > 0:
        return [new]
    return (commit for commit in new if commit.first_seq > seq)


def _outcome(folding: Folding, before: dict[str, Totals], gave: Given, parked: Parked | None) -> Outcome:
    view = folding.view
    moved = difference(before, contributions(view))
    gives = given(view)
    return Outcome(
        view.session,
        session_view.encode(view),
        folding.checkpoints,
        moved,
        parked,
        Position(view.seq, view.digest),
        (gave.entries, gives.entries),
        indexing.plus(gives.sums, gave.sums, -1),
    )


def from_log(log: CommitReader, session: str, to_seq: int | None) -> tuple[Folding, Parked | None]:
    """The fold of a session's log from its beginning to the end of the commit that holds `to_seq` (all without it)."""
    folding = Folding(session_view.initial(session))
    return folding, advance(folding, log.read(session, to=to_seq), to_seq or 0)


def advance(folding: Folding, commits: Iterable[Commit | Stretch], to_seq: int) -> Parked | None:
    """Moves a fold on to `to_seq`, or to the last commit before one that breaks a law; then returns what it breaks."""
    try:
        folding.advance(commits)
        if folding.view.seq < to_seq:
            at = folding.view.seq
            raise Damaged("TAIL_LOST", f"the log of session {folding.view.session} ends at seq {at}, not at {to_seq}")
    except MusterError as broken:
        if not isinstance(broken, Damaged) and not is_of_archive(broken.code):
            raise
        same = fingerprint(broken.code, broken.cause, folding.view.session)
        attempts = broken.facts.get("attempts", 1)
        return Parked(broken.code, broken.cause, folding.view.seq + 1, same, attempts)
    return None


def writes(store: ProjectionStore, partition: int, outcomes: Sequence[Outcome]) -> Iterator[Operation]:
    """The writes of a step that brings the outcomes in."""
    keys = store.keys(partition)
    with_checkpoints = [outcome for outcome in outcomes if outcome.checkpoints]
    seqs = store.checkpoint_seqs(partition, [outcome.session for outcome in with_checkpoints])
    for outcome in outcomes:
        yield write_view(keys, outcome.session, outcome.view)
        if outcome.parked is not None:
            yield park(keys, outcome.session, outcome.parked)
    for outcome, stored in zip(with_checkpoints, seqs, strict=True):
        yield from write_checkpoints(keys, outcome.session, outcome.checkpoints, stored)

    moved: dict[str, Totals] = {}
    sums: dict[str, int] = {}
    index = IndexMoves(keys)
    for outcome in outcomes:
        merge(moved, outcome.moved)
        index.move(outcome.session, *outcome.entries)
        indexing.add(sums, outcome.sums)
    for command, key, arguments in index.writes():
        yield Operation(command, key, arguments)
    agents = [agent for agent, totals in sorted(moved.items()) if totals != NOTHING]
    statistics, parts = store.partition_sums(partition, agents)
    kept = {} if statistics is None else indexing.readable_statistics(statistics)
    if kept is None:
        about = {"action": "projection.statistics_damaged", "partition": partition}
        logger.warning("the statistics of partition %d are damaged", partition, extra=about)
    elif sums:
        yield write_statistics(keys, indexing.plus(kept, sums))
    for agent, part in zip(agents, parts, strict=True):
        try:
            totals = NOTHING if part is None else agent_view.decode(agent, part)
        except Damaged:
            # A difference cannot be added to what is unreadable. It stays damaged, for the validator to find and
            # recovery to compute again from the session views.
            damaged = {"action": "projection.totals_damaged", "agent": agent, "partition": partition}
            logger.warning("the totals of agent %s in partition %d are damaged", agent, partition, extra=damaged)
            continue
        yield from write_totals(keys, agent, totals + moved[agent])
