"""Catching up with the feed, and bringing the history in, for a projection of the user's own.

Theory of operation. Added to a store that is running, a projection first gets its cursor in a partition, at the total
of that moment: what comes afterwards is in the feed, which is not trimmed past it. Then the registry is gone through,
page by page, and each session folded as far as its log goes; how far that is, is kept with the folds, so that whoever
takes the partition over goes on there. Then the feed is followed. Where a fold holds commits of the feed already, they
are left out: it stands at a seq of its own, and moves only from one commit's end to the next.

The same is done again whenever cursor or feed cannot say what is new; sessions whose fold stands at their head are then
only looked at.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from msgspec import Struct

from domain.codec import Commit
from domain.errors import Conflict
from domain.log.contract import CommitReader
from domain.log.feed import Span
from projections.careful import CarefulReader
from projections.catchup import Batch, Phases, Projected, was_taken_back
from projections.own.folding import Folding, failure
from projections.own.merging import Doubt, Views, merged
from projections.own.store import DONE, VIEWS, OwnStore, Stored, after, resumes_after
from projections.parking import ANOTHER_MAY_KNOW, KILLED, fingerprint
from projections.projection import Fold
from projections.store import Operation, Parked

logger = logging.getLogger(__name__)

#: How long one slice of history may take before it is written, in seconds: so long a worker that stops is waited for.
SLICE_S: Final = 1.0
#: How many sessions a slice has at most, and how many bytes of folds or views a step writes.
SLICE_SESSIONS: Final = 256
STEP_BYTES: Final = 1024 * 1024
#: Trouble that comes of the user's code, and not of the log.
ITS_OWN: Final = frozenset({"PROJECTION_FAILED", KILLED, *ANOTHER_MAY_KNOW})


class Outcome(Struct, frozen=True):
    """A session after its new commits: what it gave before, its fold now, and why it went no further."""

    session: str
    before: Fold
    fold: Fold
    encoded: bytes
    parked: Parked | None


class OwnProjector:
    """Applies batches of one version of an own projection, under the leases of its partitions."""

    def __init__(
        self,
        store: OwnStore,
        log: CommitReader,
        *,
        carefully: bool = False,
        goes_on: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._carefully = carefully
        self._goes_on = goes_on
        self._definition = store.definition
        self._log = log

    def project(self, batch: Batch) -> Projected | None:
        """Applies a batch; one without an end brings a slice of the history in, and one that names sessions has those
        tried again: that is None.

        Raises Conflict if the lease or the cursor moved, or the history has to be brought in first; nothing was
        written then.
        """
        if batch.careful and not self._carefully:
            reader = CarefulReader(self._store, self._log, batch.partition, batch.token)
            return OwnProjector(self._store, reader, carefully=True, goes_on=self._goes_on).project(batch)
        elif batch.retry:
            self.retry(batch.partition, batch.token, batch.retry)
        elif batch.cursor_to is None:
            self.build_slice(batch.partition, batch.token)
        else:
            return self._follow(batch, batch.cursor_to)
        return None

    # -- following the feed ------------------------------------------------------------------------------------------

    def _follow(self, batch: Batch, cursor_to: int) -> Projected:
        began_ns, began = time.time_ns(), time.perf_counter()
        partition = batch.partition
        build, folds, logs, parked = self._store.batch(partition, batch.spans)
        if build != DONE:
            raise Conflict("CURSOR_MOVED", f"the history of {self._store.label} is not in yet", partition=partition)
        loaded_at = time.perf_counter()
        outcomes, in_doubt = [], False
        for span, stored, commits in zip(batch.spans, folds, logs, strict=True):
            if span.session not in parked:
                outcome, is_sure = self._fold_span(span, stored, commits)
                if outcome is not None and outcome.parked is not None and was_taken_back(self._store, span.session):
                    continue
                in_doubt = in_doubt or not is_sure
                if outcome is not None:
                    outcomes.append(outcome)
                self._goes_on(partition)
        operations: list[Operation] = []
        if self._definition.is_keyed:
            views = Views(self._store, partition)
            try:
                if in_doubt:
                    raise Doubt("a fold was missing, damaged or elsewhere")
                outcomes = list(self._moved(views, outcomes))
                operations += views.operations()
            except Doubt as doubt:
                about = {"action": "projection.views_doubted", "projection": self._store.label, "partition": partition}
                told = (self._store.label, partition, doubt)
                logger.warning("merging the views of %s in partition %d again: %s", *told, extra=about)
                operations.append(self._store.write_build(partition, VIEWS))
        for outcome in outcomes:
            operations += self._writes(partition, outcome)
        events = cursor_to - (batch.cursor_from or 0)
        folded_at = time.perf_counter()
        self._store.step(
            partition,
            token=batch.token,
            cursor_from=batch.cursor_from,
            cursor_to=cursor_to,
            events=events,
            operations=operations,
        )
        parked_now = sum(outcome.parked is not None for outcome in outcomes)
        phases = Phases(began_ns, loaded_at - began, folded_at - loaded_at, time.perf_counter() - folded_at)
        return Projected(events, len(outcomes), parked_now, {}, logs, (), phases)

    def _fold_span(self, span: Span, stored: bytes | None, commits: Sequence[Commit]) -> tuple[Outcome | None, bool]:
        """A session after the commits of its span (None if it holds them already), and whether its fold was sure."""
        fold = self._definition.decode(stored, span.session)
        if stored is None and span.from_seq == 1:
            fold = self._definition.start(span.session)
        if fold is not None and fold.seq >= span.to_seq:
            return None, True
        if fold is not None and fold.seq >= span.from_seq - 1:
            new: Iterable[Commit] = (commit for commit in commits if commit.first_seq > fold.seq)
            if isinstance(self._log, CarefulReader):
                new = self._log.noted(new)
            outcome = self._advance(fold, new, span.to_seq)
            # What does not follow on the fold is either a log that breaks a law, or a fold of another log.
            if outcome.parked is None or outcome.parked.code in ITS_OWN:
                return outcome, True
            again = self._from_log(span.session, span.to_seq)
            if again.encoded == outcome.encoded:
                return outcome, True
            return again, False
        return self._from_log(span.session, span.to_seq), False

    def _moved(self, views: Views, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
        """Moves the views by each outcome; one whose states the user's code cannot merge is parked where it stood."""
        views.load(key for outcome in outcomes for key in outcome.fold.states)
        for outcome in outcomes:
            try:
                views.move(outcome.session, outcome.before.states, outcome.fold.states)
            except Doubt:
                raise
            except Exception as error:
                failed = failure(self._definition, error)
                before = outcome.before
                same = fingerprint(failed.code, failed.cause, outcome.session)
                reason = Parked(failed.code, failed.cause, before.seq + 1, same)
                yield Outcome(outcome.session, before, before, self._definition.encode(before), reason)
            else:
                yield outcome

    # -- bringing the history in -------------------------------------------------------------------------------------

    def build_slice(self, partition: int, token: str, *, anew: bool = False) -> bool:
        """Brings in a part of the partition's history; returns whether all of it is in.

        With `anew`, no stored fold is trusted: every session is folded from its first event.
        """
        (build,) = self._store.builds([partition])
        store, resumed = self._store, resumes_after(build)
        cursor, total = store.mended(partition)
        if build == VIEWS:
            self._merge_views(partition, token)
            return True
        if resumed is None and (build != DONE or not store.feed_covers(partition, cursor, total)):
            # The cursor comes first: from here on the feed is kept.
            self._step(partition, token, [store.write_build(partition, after(""))], cursor.position, total)
            return False
        if resumed is None:
            return True
        page = next(store.member_pages(partition, after=resumed or None), [])
        if page:
            self._build_page(partition, token, page, cursor.position, anew=anew)
            return False
        following = VIEWS if self._definition.is_keyed else DONE
        self._step(partition, token, [store.write_build(partition, following)], cursor.position)
        return following == DONE

    def retry(self, partition: int, token: str, sessions: Sequence[str]) -> None:
        """Folds parked sessions on, as far as they go now."""
        operations = [
            operation
            for stored in self._store.stored(partition, sessions)
            for operation in self._bring_in(partition, stored)
        ]
        if self._definition.is_keyed:
            operations.append(self._store.write_build(partition, VIEWS))
        self._step(partition, token, operations, self._store.cursor(partition).position)

    def begin(self, partition: int, token: str) -> None:
        """Has the history of a partition brought in again, from the first session on."""
        cursor, total = self._store.cursor(partition), self._store.total(partition)
        self._step(partition, token, [self._store.write_build(partition, after(""))], cursor.position, total)

    def _build_page(self, partition: int, token: str, page: Sequence[str], position: int | None, *, anew: bool) -> None:
        until = time.monotonic() + SLICE_S
        operations: list[Operation] = []
        last = page[0]
        for stored in self._store.stored(partition, page):
            last = stored.session
            if stored.parked is not None and stored.parked.code == KILLED and not anew:
                continue  # workers die of it: only who asks for it by name tries again
            operations += self._bring_in(partition, stored, anew=anew)
            if sum(map(_size, operations)) > STEP_BYTES or time.monotonic() > until:
                break
        operations.append(self._store.write_build(partition, after(last)))
        self._step(partition, token, operations, position)

    def _bring_in(self, partition: int, stored: Stored, *, anew: bool = False) -> Iterator[Operation]:
        outcome = self.brought_in(stored, anew=anew)
        self._goes_on(partition)
        if outcome is not None and outcome.encoded != stored.fold:
            yield self._store.write_fold(partition, outcome.session, outcome.encoded)
        if outcome is not None and outcome.parked is not None:
            yield self._store.park(partition, outcome.session, outcome.parked)
        elif stored.parked is not None:
            yield self._store.unpark(partition, stored.session)

    def brought_in(self, stored: Stored, *, anew: bool = False) -> Outcome | None:
        """A session folded as far as its log goes; None if its fold stands there already."""
        fold = None if anew else self._definition.decode(stored.fold, stored.session)
        head = stored.head
        if fold is not None and head is not None:
            if (fold.seq, fold.digest) == (head.seq, head.digest):
                return None
            if fold.seq < head.seq:
                outcome = self._advance(fold, self._log.read(stored.session, after=fold.seq), head.seq)
                if outcome.parked is None or outcome.parked.code in ITS_OWN:
                    return outcome
        return self._from_log(stored.session, head.seq if head is not None else 0)

    def _merge_views(self, partition: int, token: str) -> None:
        """Merges the views of a partition again from all folds, and writes those that differ."""
        store, definition = self._store, self._definition
        position = store.cursor(partition).position
        views, contributors = merged(
            definition,
            (
                fold
                for page in store.fold_pages(partition)
                for session, stored in page.items()
                if (fold := definition.decode(stored, session)) is not None
            ),
        )
        operations: list[Operation] = []
        size = 0
        listed = [key for page in store.view_key_pages(partition) for key in page]
        keys = sorted(views.keys() | set(listed))
        known = set(listed)
        for start in range(0, len(keys), SLICE_SESSIONS):
            page = keys[start : start + SLICE_SESSIONS]
            for key, stored in zip(page, store.views_of(partition, page), strict=True):
                view = definition.encode_state(key, views[key]) if key in views else None
                if view != stored or key not in known:
                    operations += store.write_view(partition, key, view)
                    size += len(view or b"")
                if view is not None and not definition.subtracts:
                    operations.append(store.write_contributors(partition, key, contributors[key]))
                    size += sum(map(len, contributors[key]))
                if size > STEP_BYTES:
                    self._step(partition, token, operations, position)
                    operations, size = [], 0
        operations.append(store.write_build(partition, DONE))
        self._step(partition, token, operations, position)

    # -- both --------------------------------------------------------------------------------------------------------

    def _from_log(self, session: str, to_seq: int) -> Outcome:
        fold = self._definition.start(session)
        return self._advance(fold, self._log.read(session, to=to_seq or None), to_seq)

    def _advance(self, fold: Fold, commits: Iterable[Commit], to_seq: int) -> Outcome:
        folding = Folding(self._definition, fold, carefully=self._carefully)
        parked = folding.advance(commits, to_seq)
        return Outcome(fold.session, fold, folding.fold, folding.encoded, parked)

    def _writes(self, partition: int, outcome: Outcome) -> Iterator[Operation]:
        yield self._store.write_fold(partition, outcome.session, outcome.encoded)
        if outcome.parked is not None:
            yield self._store.park(partition, outcome.session, outcome.parked)

    def _step(
        self,
        partition: int,
        token: str,
        operations: Sequence[Operation],
        position: int | None,
        to: int | None = None,
    ) -> None:
        events = 0 if to is None else to - (position or 0)
        self._store.step(
            partition, token=token, cursor_from=position, cursor_to=to, events=events, operations=operations
        )


def _size(operation: Operation) -> int:
    return sum(len(argument) for argument in operation.arguments if isinstance(argument, bytes))
