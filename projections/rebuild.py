"""Rebuilding under a lease: what the log says is built beside what is stored, compared, and swapped where it differs.

Appends go on all the while. The partition's cursor stands still, because only the holder of the lease moves it; what is
appended meanwhile lies after the cursor and is caught up with afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from hashlib import sha1
from itertools import chain, islice
from typing import Final

import msgspec
import redis
from msgspec import Struct, structs

from domain.agent import NOTHING, Totals, contributions, merge
from domain.errors import Conflict, NotFound
from domain.invariants import is_chained, is_dense
from domain.log.contract import CommitReader
from domain.log.skips import Skip, with_skip
from projections import agent_view, indexing, session_view
from projections.drift import Examination, Validator
from projections.indexing import Entries, IndexMoves
from projections.parking import DISCARDABLE
from projections.skipping import AUDIT_PAGE, DISCARDED
from projections.store import (
    NO_SPANS,
    Cursor,
    Operation,
    Parked,
    ProjectionStore,
    park,
    unpark,
    write_statistics,
    write_totals,
    write_view,
)

#: How many sessions are swapped in one step.
STEP_SESSIONS: Final = 64
#: How often a head is mended anew that an append moved meanwhile.
MEND_ATTEMPTS: Final = 10
#: A replaced view is kept for a week.
REPLACED_TTL_MS: Final = 7 * 24 * 3600 * 1000


class Swapped(Struct, frozen=True):
    """What became of a session: whether something was replaced, what is still wrong with it, how long its log is."""

    session: str
    changed: bool
    damage: Parked | None
    quarantined: bool
    events: int


class Rebuild:
    """The rebuild of one partition by the holder of its lease.

    `renew` is called before every step and raises if the lease is lost. With `quarantine`, a session whose log is
    damaged is quarantined; without, it is parked. With `retry`, a session that stays parked was tried once more; else
    the count of attempts is left as it is, and a reason that did not change is not written again. `who` is noted in the
    audit stream.
    """

    def __init__(
        self,
        store: ProjectionStore,
        log: CommitReader,
        partition: int,
        token: str,
        *,
        who: str,
        quarantine: bool,
        retry: bool = False,
        renew: Callable[[], None],
    ) -> None:
        self._store = store
        self._log = log
        self._validator = Validator(store, log, daring=retry, once=True)
        self.partition = partition
        self._keys = store.keys(partition)
        self._token = token
        self._who = who
        self._quarantine = quarantine
        self._retry = retry
        self.renew = renew
        self._indexes_are_new = False
        self._cursor, total = store.mended(partition)
        # Where the cursor and the feed cannot say what is new, all that was appended so far is brought in, and the
        # cursor is set at the end.
        is_right = store.feed_covers(partition, self._cursor, total)
        if is_right and self._validator.views_are_at(partition, self._cursor) is not None:
            is_right = False  # it was put back: no view goes back with it
        self._target = self._cursor if is_right else Cursor(total)

    def everything(self, agents: Iterable[str] = ()) -> Iterator[Swapped]:
        """Rebuilds all sessions, then the sums, of these agents too, and the indexes, then sets the cursor."""
        # Into indexes that are not there yet everything is written with the views: nothing is to be looked for.
        keys = self._store.index_keys(self.partition)
        self._indexes_are_new = all(kind == b"none" for kind in self._store.types(keys))
        yield from self.sessions(name for page in self._store.member_pages(self.partition) for name in page)
        self.totals(agents)
        self.finish()

    def sessions(self, sessions: Iterable[str], shortcuts: Collection[str] = ()) -> Iterator[Swapped]:
        """Rebuilds views and checkpoints of sessions, and swaps what differs.

        The checkpoints of those in `shortcuts` were found right: a long one is built again from the newest.
        """
        remaining = iter(sessions)
        while page := list(islice(remaining, STEP_SESSIONS)):
            found = self._examine(page, shortcuts)
            self.renew()
            found = [self._without_forged_skips(examination) for examination in found]
            for examination in found:
                self._mend_truth(examination)
            changes = [list(self._changes(examination)) for examination in found]
            indexes = IndexMoves(self._keys)
            for examination in found:
                self._move_indexes(indexes, examination)
            moved = [Operation(*write) for write in indexes.writes()]
            self._step([operation for change in [*changes, moved] for operation in change])
            for examination, change in zip(found, changes, strict=True):
                yield Swapped(
                    examination.snapshot.session,
                    bool(change),
                    examination.damage,
                    examination.quarantined or (self._quarantine and examination.log_is_damaged),
                    examination.verified.seq,
                )

    def discard(self, session: str, why: str) -> bool:
        """Writes a skip for the commit at which the session's log breaks a law; returns whether there was one to
        discard.

        False: its log breaks no law any more, or is damaged, or quarantined. The session itself stays where it is, for
        `sessions` to move on: where that is not reached, the next discard or retry does it.
        """
        (found,) = self._examine([session])
        damage, verified = found.damage, found.verified
        if damage is None or damage.code not in DISCARDABLE or found.quarantined:
            return False
        commit = next(self._log.read(session, after=verified.seq), None)
        if commit is None or not is_dense(verified.seq, commit) or not is_chained(verified.digest, commit):
            return False
        self.renew()
        skip = Skip(commit.first_seq, commit.last_seq, commit.digest, self._who, why, self._store.server_ms())
        stored = self._store.skips(self.partition, session)
        skips = with_skip(stored, skip)
        if skips is None:
            return False
        noted: tuple[object, ...] = (
            *("*", "who", self._who, "what", DISCARDED, "session", session),
            *("seq", skip.from_seq, "to_seq", skip.to_seq, "digest", skip.digest, "code", damage.code, "why", why),
        )
        # The skip first: where the user may not write it, nothing is written.
        self._step(
            [Operation("HSET", self._keys.skips, (session, skips)), Operation("XADD", self._keys.audit, noted)],
        )
        return True

    def undo(self, session: str) -> None:
        """Puts the view back that recovery replaced last; the totals of its agents follow it.

        Raises NotFound (NOTHING_REPLACED), Conflict (VIEW_MOVED) if the view is not what recovery wrote any more.
        """
        replaced, current = self._keys.replaced(session), self._store.views([session])[0]
        kept = self._store.client.get(replaced)
        if kept is None:
            raise NotFound("NOTHING_REPLACED", f"no view of session {session} is kept that was replaced")
        if self._written_by_recovery(session) != _digest(current):
            raise Conflict("VIEW_MOVED", f"the view of session {session} is not the one that recovery wrote")
        noted: tuple[object, ...] = (
            *("*", "who", self._who, "what", "view put back", "session", session),
            *("before", _digest(current), "after", _digest(kept)),
        )
        self._step(
            [
                write_view(self._keys, session, kept),
                Operation("DEL", replaced),
                Operation("XADD", self._keys.audit, noted),
            ]
        )
        self.totals()

    def _written_by_recovery(self, session: str) -> str | None:
        """The digest of the view that recovery wrote last, by the audit stream."""
        last = "+"
        while page := self._store.client.xrevrange(self._keys.audit, last, "-", count=AUDIT_PAGE):
            for _, entry in page:
                if (entry.get(b"what"), entry.get(b"session")) == (b"view replaced", session.encode()):
                    return str(entry.get(b"after", b"").decode())
            last = "(" + page[-1][0].decode()
        return None

    def forget(self, sessions: Sequence[str]) -> None:
        """Takes away what derives from sessions whose logs were taken from here on purpose; the sums follow."""
        for at in range(0, len(sessions), STEP_SESSIONS):
            page = sessions[at : at + STEP_SESSIONS]
            self.renew()
            indexes = IndexMoves(self._keys)
            operations = []
            for session, stored in zip(page, self._store.views(page), strict=True):
                view = session_view.readable(stored, session)
                if view is not None:
                    indexes.move(session, indexing.entries(view), indexing.NO_ENTRIES)
                operations += [
                    Operation("DEL", self._keys.session_view(session)),
                    Operation("DEL", self._keys.checkpoints(session)),
                    unpark(self._keys, session),
                    Operation("HDEL", self._keys.proofs, (session,)),
                    Operation("ZREM", self._keys.swept, (session,)),
                    Operation("HDEL", self._keys.drifted, (session,)),
                ]
            self._step([*operations, *(Operation(*write) for write in indexes.writes())])
        self.totals()

    def totals(self, also: Iterable[str] = ()) -> int:
        """Sums the totals of agents and the statistics from the session views, and swaps those that differ; then mends
        the indexes by the same views. Returns how many agents' totals differed.

        Of agents that a view or the index names, and of those in `also`. Only right once every view in the partition is
        right.
        """
        self.renew()
        should: dict[str, Totals] = {}
        sums: dict[str, int] = {}
        given: set[int] = set()
        for view in self._store.readable_views(self.partition):
            merge(should, contributions(view))
            indexing.add(sums, indexing.sums(view))
            if not self._indexes_are_new:
                entries = indexing.entries(view)
                given.update(indexing.fingerprints(view.session, entries.values, entries.scores.items()))
        indexed = {agent for page in self._store.member_pages(self.partition, agents=True) for agent in page}
        agents = sorted(should.keys() | indexed | set(also))
        changed = 0
        operations: list[Operation] = []
        stored, parts = self._store.partition_sums(self.partition, agents)
        sums = indexing.plus({}, sums)
        if (stored or b"") != (indexing.encode_statistics(sums) if sums else b""):
            operations.append(write_statistics(self._keys, sums))
        for agent, part in zip(agents, parts, strict=True):
            totals = should.get(agent, NOTHING)
            is_stored = part == (agent_view.encode(agent, totals) if totals != NOTHING else None)
            is_stored = is_stored and (agent in indexed) == (totals != NOTHING)
            if not is_stored:
                changed += 1
                operations += write_totals(self._keys, agent, totals)
        self._step(operations)
        if not self._indexes_are_new:
            self._mend_indexes(given)
        return changed

    def _mend_indexes(self, given: set[int]) -> None:
        """Takes from the indexes what no view gives, and adds what is lacking. An entry with another score is none."""
        moves = IndexMoves(self._keys)
        there: set[int] = set()
        closed: set[str] = set()
        for name, key in zip(("", *indexing.SCORES), self._store.index_keys(self.partition), strict=True):
            for page in self._store.index_pages(key):
                for entry, score in page:
                    found = hash(((name, score), entry)) if name else indexing.fingerprint(entry, "")
                    if found in given:
                        there.add(found)
                    elif not name and entry.startswith(indexing.quarantined("")):
                        closed.add(indexing.parted(entry)[1])
                    else:
                        moves.remove(key, entry)
        if len(there) < len(given):
            for view in self._store.readable_views(self.partition):
                entries = indexing.entries(view)
                lacks = indexing.fingerprints(view.session, entries.values, entries.scores.items())
                if not there.issuperset(lacks):
                    moves.move(view.session, indexing.NO_ENTRIES, entries)
        quarantined = {
            session
            for page in chain([sorted(closed)], self._store.member_pages(self.partition))
            for session, head in zip(page, self._store.heads(page), strict=True)
            if head is not None and head.quarantined
        }
        for session in quarantined - closed:
            moves.add(self._keys.session_index, indexing.quarantined(session), 0)
        for session in closed - quarantined:
            moves.remove(self._keys.session_index, indexing.quarantined(session))
        for write in moves.writes():
            self.renew()
            self._step([Operation(*write)])

    def finish(self) -> None:
        """Sets the cursor to where the rebuilt views stand, if it was missing or impossible or the feed has gaps."""
        feed_end = self._feed_end()
        if self._target is self._cursor and not feed_end:
            return
        self._store.step(
            self.partition,
            token=self._token,
            cursor_from=self._cursor.position,
            cursor_to=self._target.position,
            events=(self._target.position or 0) - (self._cursor.position or 0),
            operations=[*feed_end, *self._older_cursors()],
        )
        self._cursor = self._target

    def _older_cursors(self) -> list[Operation]:
        """The cursors of older releases tell of views that are no more."""
        older = range(1, session_view.VERSION)
        return [Operation("DEL", self._keys.cursor(session_view.NAME, version)) for version in older]

    def _feed_end(self) -> list[Operation]:
        """An entry without spans where the feed lost its end, so that it ends at the running total again."""
        target = self._target.position or 0
        if self._store.feed_position(self.partition) >= target:
            return []
        return [Operation("XADD", self._keys.feed, (f"{target}-0", "t", 0, "c", NO_SPANS))]

    def _step(self, operations: Sequence[Operation]) -> None:
        if operations:
            self._store.step(
                self.partition,
                token=self._token,
                cursor_from=self._cursor.position,
                cursor_to=None,
                operations=operations,
            )

    def _examine(self, sessions: Sequence[str], shortcuts: Collection[str] = ()) -> list[Examination]:
        found = self._validator.examine(
            self.partition, sessions, views_at=self._target, totals_at=self._target, shortcuts=shortcuts
        )
        return list(found)

    def _without_forged_skips(self, found: Examination) -> Examination:
        """Takes skips away that nobody is known to have written, where that is allowed; what the log says then.

        Workers leave them to a recovery, as they do a damaged log.
        """
        if found.forged is None or not self._quarantine:
            return found
        session, kept, first = found.snapshot.session, found.forged.kept, found.forged.first
        noted: tuple[object, ...] = (
            *("*", "who", self._who, "what", "forged skip removed", "session", session),
            *("seq", 0 if first is None else first.from_seq, "skip", found.snapshot.skips),
        )
        try:
            # The skip first: where the user may not write it, nothing is written.
            self._step(
                [
                    Operation("HSET", self._keys.skips, (session, msgspec.json.encode(kept))),
                    Operation("XADD", self._keys.audit, noted),
                ]
            )
        except redis.ResponseError as denied:
            if not str(denied).startswith("ACCESS_DENIED"):
                raise
            return found
        (found,) = self._examine([session])
        return found

    def _mend_truth(self, found: Examination) -> None:
        """Quarantines a session with a damaged log; puts a head right whose log is whole."""
        for _ in range(MEND_ATTEMPTS):
            if self._is_mended(found):
                break
            (found,) = self._examine([found.snapshot.session])

    def _is_mended(self, found: Examination) -> bool:
        """False if an append moved the session meanwhile."""
        session, snapshot = found.snapshot.session, found.snapshot
        if found.log_is_damaged and self._quarantine and not found.quarantined:
            assert found.damage is not None
            self._store.quarantine(session, found.damage.code, found.damage.first_bad_seq)
        elif found.damage is None and not snapshot.is_orphan and (snapshot.head is None or not _fits(found)):
            flags = snapshot.head.flags if snapshot.head is not None else self._store.flags(session)
            head = structs.replace(found.verified, flags=flags)
            return self._store.mend_head(session, snapshot.packed_head, snapshot.last_entry, head)
        return True

    def _changes(self, found: Examination) -> Iterator[Operation]:
        """The writes that make a session's stored state what its log says."""
        snapshot, session = found.snapshot, found.snapshot.session
        if found.forged is not None and self._quarantine:
            return
        if snapshot.is_orphan:
            yield Operation("DEL", self._keys.session_view(session))
            yield Operation("DEL", self._keys.checkpoints(session))
            yield self._audit(found, "orphan deleted")
            return
        if snapshot.last_seq and not snapshot.listed:
            yield Operation("ZADD", self._keys.sessions, (0, session))
            yield self._audit(found, "session listed again")
        if found.loss is not None and not found.loss_is_reported:
            # A view or checkpoint that is replaced now knew of it: it stays named until an operator accepts it.
            report = msgspec.json.encode(found.loss)
            yield Operation("HSET", self._keys.lost, (f"{session} {session_view.NAME}", report))
        if found.is_unread:
            view = session_view.readable(snapshot.view, session)
            stands = view is not None and view.seq >= found.expected_seq
            if found.damage is not None and snapshot.parked is None and not stands:
                yield park(self._keys, session, found.damage)
            return
        nothing_yet = found.expected_seq == 0 and snapshot.view is None
        if snapshot.view != found.view and not nothing_yet:
            is_older = session_view.is_older(snapshot.view)
            if snapshot.view is not None and not is_older:
                replaced = self._keys.replaced(session)
                yield Operation("SET", replaced, (snapshot.view,))
                yield Operation("PEXPIRE", replaced, (REPLACED_TTL_MS,))
            yield write_view(self._keys, session, found.view)
            if not is_older and (snapshot.view is not None or self._cursor.position is not None):
                # What is built for the first time replaces nothing, nor does what an older release built.
                yield self._audit(found, "view replaced", before=_digest(snapshot.view), after=_digest(found.view))
        if self._retry:
            yield self._audit(found, "parked session tried again")
        stored, should = snapshot.checkpoints, found.checkpoints
        wanted = [seq for seq in should if seq in stored or seq > snapshot.horizon]
        added = [part for seq in wanted if stored.get(seq) != should[seq] for part in (seq, should[seq])]
        dropped = [seq for seq in stored if seq not in should]
        if added:
            yield Operation("HSET", self._keys.checkpoints(session), tuple(added))
        if dropped:
            yield Operation("HDEL", self._keys.checkpoints(session), tuple(dropped))
        if found.damage is not None and not (self._quarantine and found.log_is_damaged):
            was = snapshot.parked
            if was is None:
                yield park(self._keys, session, found.damage)
            elif self._retry or not was.is_as(found.damage):
                attempts = was.attempts + self._retry
                yield park(self._keys, session, structs.replace(found.damage, attempts=attempts))
        elif snapshot.parked is not None:
            yield unpark(self._keys, session)

    def _move_indexes(self, indexes: IndexMoves, found: Examination) -> None:
        """Has the indexes follow where a view is replaced; what the old one does not tell of is mended later."""
        snapshot = found.snapshot
        if snapshot.is_orphan or found.is_unread or (found.forged is not None and self._quarantine):
            return
        session = snapshot.session
        if self._indexes_are_new:
            indexes.move(session, indexing.NO_ENTRIES, _entries(found))
            if found.quarantined:
                indexes.add(self._keys.session_index, indexing.quarantined(session), 0)
        elif snapshot.view != found.view:
            old = session_view.readable(snapshot.view, session)
            indexes.move(session, indexing.entries(old) if old is not None else indexing.NO_ENTRIES, _entries(found))

    def _audit(self, found: Examination, what: str, **more: str) -> Operation:
        return Operation(
            "XADD",
            self._keys.audit,
            (
                *("*", "who", self._who, "what", what, "session", found.snapshot.session),
                *("seq", min(found.expected_seq, found.verified.seq), "digest", found.verified.digest),
                *("why", found.damage.code if found.damage is not None else "rebuild"),
                *chain.from_iterable(more.items()),
            ),
        )


def _entries(found: Examination) -> Entries:
    values, scores = found.indexed
    return Entries(frozenset(values), dict(scores))


def _digest(view: bytes | None) -> str:
    """What tells the stored bytes of one view from those of another; "" for none."""
    return "" if view is None else sha1(view).hexdigest()[:20]


def _fits(found: Examination) -> bool:
    head, verified = found.snapshot.head, found.verified
    return head is not None and (head.seq, head.digest, head.gate) == (verified.seq, verified.digest, verified.gate)
