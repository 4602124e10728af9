"""Whether the indexes of a partition's sessions say what the sessions' views should say.

Two questions. What is lacking is asked of sessions together with their views, in one transaction, because a view and
its entries move in one step. What should not be there is asked of the whole: every entry that no session gives is
looked at once more, together with the view of its session. An index that is missing as a whole is one finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from projections import indexing
from projections.findings import Finding, finding
from projections.second_reading import indexed_by, taken_apart
from projections.store import ProjectionStore, readable_head, unless_of_another_type

#: How many sessions are looked up in one transaction.
PAGE: Final = 128
#: How often a session is looked up again that moved meanwhile.
ATTEMPTS: Final = 5
#: A finding names so many entries at most.
NAMED: Final = 20


class Should(Struct, frozen=True):
    """A session as it is stored, and what should be indexed of it then: values, and scores by name."""

    session: str
    view: bytes | None
    values: Sequence[str]
    scores: Mapping[str, int]


class _There(Struct, frozen=True):
    """A session as it was looked up: its view, its values that are not indexed, whether it is listed as quarantined and
    should be, its scores.
    """

    view: bytes | None
    lacking: list[str]
    listed: bool
    quarantined: bool
    scores: dict[str, int | None]


class IndexCheck:
    """The check of one partition's indexes."""

    def __init__(self, store: ProjectionStore, partition: int) -> None:
        self._store = store
        self._client = store.client
        self._keys = store.keys(partition)
        self._partition = partition
        self._waiting: list[Should] = []
        self._given: set[int] = set()
        self._unjudged: set[str] = set()
        keys = store.index_keys(partition)
        self._absent = {key for key, kind in zip(keys, store.types(keys), strict=True) if kind != b"zset"}
        self._told: set[str] = set()

    def take(self, should: Should) -> Iterable[Finding]:
        """Takes in what should be indexed of a session; gives findings as it goes."""
        self.given(should.session, should.values, should.scores)
        self._waiting.append(should)
        return self.taken() if len(self._waiting) >= PAGE else ()

    def given(self, session: str, values: Iterable[str], scores: Iterable[str]) -> None:
        """Notes what a session gives, so that it is no stray."""
        self._given.update(indexing.fingerprints(session, values, scores))

    def leave(self, session: str) -> None:
        """Has nothing said of a session: one finding stands for all that is wrong with it, or nobody can know."""
        self._unjudged.add(session)

    def taken(self) -> Iterator[Finding]:
        """The findings of the sessions that were taken in since."""
        waiting, self._waiting = self._waiting, []
        for _ in range(ATTEMPTS):
            if not waiting:
                return
            moved = []
            for should, there in zip(waiting, self._looked_up(waiting), strict=True):
                if there.view == should.view:
                    yield from self._differing(should, there)
                elif (told := _told(there.view)) is not None:
                    moved.append(_should(should.session, there.view, told))
            waiting = moved

    def strays(self) -> Iterator[Finding]:
        """The findings about entries that no session gives; asked once all sessions were taken in or noted."""
        suspects: dict[str, list[tuple[str, str]]] = {}
        for name, key in _indexes(self._store, self._partition):
            for page in self._store.index_pages(key):
                for entry, _ in page:
                    session = entry if name else indexing.parted(entry)[1]
                    if indexing.fingerprint(entry, name) not in self._given and session not in self._unjudged:
                        suspects.setdefault(session, []).append((key, entry))
        sessions = sorted(suspects)
        for at in range(0, len(sessions), PAGE):
            yield from self._still_there({session: suspects[session] for session in sessions[at : at + PAGE]})

    # -- looking -----------------------------------------------------------------------------------------------------

    def _looked_up(self, waiting: Sequence[Should]) -> Iterator[_There]:
        keys, sessions = self._keys, [should.session for should in waiting]
        entries = [f"{value}\0{should.session}" for should in waiting for value in should.values]
        entries += [indexing.quarantined(session) for session in sessions]
        pipe = self._client.pipeline(transaction=True)
        pipe.mget([keys.session_view(session) for session in sessions])
        pipe.mget([keys.head(session) for session in sessions])
        pipe.zmscore(keys.session_index, entries)
        for name in indexing.SCORES:
            pipe.zmscore(indexing.score_index(keys, name), sessions)
        views, heads, *found = [unless_of_another_type(reply) for reply in pipe.execute(raise_on_error=False)]
        listed, *scores = [reply if reply is not None else [None] * len(entries) for reply in found]
        closed = listed[len(entries) - len(sessions) :]
        begin = 0
        for at, should in enumerate(waiting):
            end = begin + len(should.values)
            lacking = [value for value, score in zip(should.values, listed[begin:end], strict=True) if score is None]
            have = {name: _whole(by[at]) for name, by in zip(indexing.SCORES, scores, strict=True)}
            head = readable_head(heads[at])
            yield _There(views[at], lacking, closed[at] is not None, head is not None and head.quarantined, have)
            begin = end

    def _differing(self, should: Should, there: _There) -> Iterator[Finding]:
        """What is not in the indexes as it should be."""
        stored: dict[str, Any] = {}
        rebuilt: dict[str, Any] = {}
        if self._keys.session_index not in self._absent:
            for value in there.lacking[:NAMED]:
                stored[_shown(value)], rebuilt[_shown(value)] = False, True
            if there.listed != there.quarantined:
                stored["quarantined"], rebuilt["quarantined"] = there.listed, there.quarantined
        elif should.values or there.quarantined:
            yield from self._absence(self._keys.session_index, "sessions")
        for name, have in there.scores.items():
            score = should.scores.get(name)
            if have == score:
                continue
            if (key := indexing.score_index(self._keys, name)) in self._absent:
                yield from self._absence(key, name)
            else:
                stored[name], rebuilt[name] = have, score
        if rebuilt:
            self.leave(should.session)  # one finding a session
            yield self._finding(should.session, stored, rebuilt)

    def _still_there(self, suspects: Mapping[str, Sequence[tuple[str, str]]]) -> Iterator[Finding]:
        keys = self._keys
        pipe = self._client.pipeline(transaction=True)
        for session, entries in suspects.items():
            pipe.get(keys.session_view(session))
            pipe.get(keys.head(session))
            for key, entry in entries:
                pipe.zscore(key, entry)
        replies = iter([unless_of_another_type(reply) for reply in pipe.execute(raise_on_error=False)])
        for session, entries in suspects.items():
            told, head = _told(next(replies)), readable_head(next(replies))
            values, scores = indexed_by(told) if told is not None else (set(), {})
            right = {(keys.session_index, indexing.member(value, session)) for value in values}
            right |= {(indexing.score_index(keys, name), session) for name in scores}
            if head is not None and head.quarantined:
                right.add((keys.session_index, indexing.quarantined(session)))
            there = [at for at in entries if next(replies) is not None and at not in right]
            if there:
                labels = [_label(key, entry, keys.session_index) for key, entry in there[:NAMED]]
                yield self._finding(session, dict.fromkeys(labels, True), dict.fromkeys(labels, False))

    def _absence(self, key: str, name: str) -> Iterator[Finding]:
        if key not in self._told:
            self._told.add(key)
            yield self._finding(None, {name: None}, {name: "an index"})

    def _finding(self, session: str | None, stored: dict[str, Any], rebuilt: dict[str, Any]) -> Finding:
        return finding("INDEX_DIFFERS", self._partition, session=session, stored=stored, rebuilt=rebuilt)


def _indexes(store: ProjectionStore, partition: int) -> Iterator[tuple[str, str]]:
    """The indexes of a partition by the names of their scores; the one without scores is named ""."""
    return zip(("", *indexing.SCORES), store.index_keys(partition), strict=True)


def _told(view: bytes | None) -> dict[str, Any] | None:
    """A stored view as its bytes tell it; None where nobody can read it."""
    told = None if view is None else taken_apart(view)
    return None if told is None or "unreadable" in told else told


def _should(session: str, view: bytes | None, told: dict[str, Any]) -> Should:
    values, scores = indexed_by(told)
    return Should(session, view, list(values), scores)


def _whole(score: float | None) -> int | None:
    return None if score is None else int(score)


def _label(key: str, entry: str, session_index: str) -> str:
    return _shown(indexing.parted(entry)[0]) if key == session_index else key.rpartition(":")[2]


def _shown(value: str) -> str:
    field, _, rest = value.partition(indexing.SEPARATOR)
    return f"{field}={rest}" if rest else field
