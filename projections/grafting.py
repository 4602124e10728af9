"""Grafting: a damaged log is completed from an archive or a backup, where digests fit.

Theory of operation. Digests are chained, so a commit that follows on what verifies is the one that was appended there,
wherever it was kept. Of a session's log the longest verified prefix is taken; what follows on it, commit by commit, may
come from the log itself, beyond its damage, or from the source. What the session's head says was acknowledged must be
in the result. If there is no such way, or more than one, nothing is written, and where it ends is named.

What the log is to be is built beside it by `muster_graft_1`, in steps, each digest computed again by the server; the
last step puts it in the log's place, unless head or log moved. Who dies in between leaves the session as it was, and
the same command goes on with what is built, or begins anew when that lapsed, after a day.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

from msgspec import Struct

from domain.codec import Commit, genesis
from domain.errors import Damaged, NotFound
from domain.invariants import gate_of, is_chained, is_dense
from domain.log import SessionLog
from domain.log.contract import Head, Position
from domain.log.protocol import chunks, parse_entry
from domain.session import OPEN_GATE
from projections import session_view
from projections.store import ProjectionStore, readable_head

#: How often a session is read anew that changed meanwhile.
ATTEMPTS: Final = 20
#: How many sessions of a source are held against the store in one round trip; a backup keeps the commits of so many.
PAGE: Final = 32
#: Findings about a log that a graft may mend.
MENDABLE: Final = frozenset({"LOG_GAP", "LOG_TRIMMED", "LOG_ALTERED", "TAIL_LOST", "QUARANTINED"})


class Held(Struct, frozen=True):
    """What a source holds of a session: up to which seq, and its commits that end after a seq, in any order.

    There may be others among them, of logs that were given up.
    """

    session: str
    seq: int
    commits: Callable[[int], Iterable[Commit]]


class Source(Protocol):
    """Where commits are kept outside the server. Errors are those of what it is."""

    def held(self) -> Iterator[Held]:
        """Every session it holds something of."""

    def described(self) -> str:
        """What it is, without any secret."""


class Graft(Struct, frozen=True):
    """What completing a log comes to: after the verified `prefix`, `commits` with so many `events` come from the
    source; in the end it stands at `seq`, with `digest`. Entries of the log that are no part of it are `put_aside`.
    """

    session: str
    prefix: int
    commits: int
    events: int
    put_aside: int
    seq: int
    digest: str


class Unfit(Struct, frozen=True):
    """Why a log cannot be completed: at `first_bad_seq` nothing fits."""

    session: str
    first_bad_seq: int
    cause: str


class _Stored(Struct, frozen=True):
    """A session as it stands, read in one transaction. Its log begins after `base`; `built` is how far a graft is that
    was begun.
    """

    head: Head | None
    packed_head: bytes
    last_entry: str
    base: Position
    is_unfinished_fork: bool
    view: Position | None
    built: Position | None


class _Link(NamedTuple):
    commit: Commit
    is_of_log: bool


class _Merged(NamedTuple):
    """What a log is to be: its own commits up to `prefix`, then `path`."""

    stored: _Stored
    prefix: Position
    path: list[_Link]
    put_aside: int
    gate: str
    #: The digest at the end of each commit, by seq.
    digests: dict[int, str]

    @property
    def end(self) -> Position:
        if not self.path:
            return self.prefix
        last = self.path[-1].commit
        return Position(last.last_seq, last.digest)

    @property
    def known_seq(self) -> int:
        """Up to where the views know the session, if they know this one."""
        view = self.stored.view
        return view.seq if view is not None and self.digests.get(view.seq) == view.digest else 0


class Grafting:
    """Completes logs from a source. `who` is noted in the audit stream; `took` is told how many events were written."""

    def __init__(
        self,
        store: ProjectionStore,
        log: SessionLog,
        source: Source,
        *,
        who: str,
        took: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._log = log
        self._source = source
        self._who = who
        self._took = took

    def plan(self, damaged: Collection[str]) -> Iterator[Graft | Unfit]:
        """What grafting would do to these sessions, and to those that the source holds more of than their heads say."""
        for held in self._candidates(damaged):
            merged = self._merged(held)
            if merged is not None:
                yield merged if isinstance(merged, Unfit) else _told(held.session, merged)

    def apply(self, sessions: Collection[str]) -> Iterator[Graft | Unfit]:
        """Grafts these sessions; one that is whole by now is left out."""
        left = set(sessions)
        for held in self._source.held():
            if held.session in left:
                left.discard(held.session)
                yield from self._grafted(held)
        for session in sorted(left):
            yield from self._grafted(_nothing_of(session))

    def _candidates(self, damaged: Collection[str]) -> Iterator[Held]:
        left, sources = set(damaged), self._source.held()
        while page := list(islice(sources, PAGE)):
            heads = self._store.heads([held.session for held in page])
            for held, head in zip(page, heads, strict=True):
                if held.session in left or head is None or head.seq < held.seq:
                    left.discard(held.session)
                    yield held
        yield from map(_nothing_of, sorted(left))

    def _grafted(self, held: Held) -> Iterator[Graft | Unfit]:
        for _ in range(ATTEMPTS):
            merged = self._merged(held)
            if merged is None:
                return
            if isinstance(merged, Unfit):
                yield merged
                return
            if self._written(held.session, merged):
                yield _told(held.session, merged)
                return
        yield Unfit(held.session, 1, "the session changed all the while: run the command again")

    # -- what fits ---------------------------------------------------------------------------------------------------

    def _merged(self, held: Held) -> _Merged | Unfit | None:
        """What a session's log is to be; None if that is what it is."""
        try:
            return self._fitted(held)
        except (Damaged, NotFound) as trouble:  # one session's: of another type, or what is archived of it
            return Unfit(held.session, trouble.facts.get("seq", 1), f"{trouble.code}: {trouble.cause}")

    def _fitted(self, held: Held) -> _Merged | Unfit | None:
        session, stored = held.session, self._stored(held.session)
        if stored.is_unfinished_fork:
            return None
        at, gate = stored.base, self._gate_at(session, stored.base)
        digests, rest = {at.seq: at.digest or ""}, list[Commit]()
        for commit in self._log.read(session, after=at.seq):
            if rest or not is_dense(at.seq, commit) or not is_chained(at.digest or "", commit):
                rest.append(commit)
                continue
            at, gate = Position(commit.last_seq, commit.digest), gate_of(gate, commit)
            digests[at.seq] = commit.digest
        links = [_Link(commit, True) for commit in rest]
        links += [_Link(commit, False) for commit in held.commits(at.seq) if commit.first_seq > at.seq]
        path = _way(session, at, links, _must_hold(stored, rest), digests)
        if isinstance(path, Unfit):
            return path
        is_whole = not path and not rest
        if is_whole and (at.seq == stored.base.seq or not _is_quarantined(stored.head)):
            return self._parted(held) if held.seq > at.seq else None
        for commit, _ in path:
            gate = gate_of(gate, commit)
            digests[commit.last_seq] = commit.digest
        kept = sum(link.is_of_log for link in path)
        return _Merged(stored, at, path, len(rest) - kept, gate, digests)

    def _parted(self, held: Held) -> Unfit | None:
        """Where a log that is whole and what the source holds beyond it part; None if they do not."""
        ours = {commit.last_seq: commit.digest for commit in self._log.read(held.session)}
        theirs = sorted(held.commits(0), key=lambda commit: commit.first_seq)
        for commit in theirs:
            if ours.get(commit.last_seq) != commit.digest:
                cause = f"the log is whole, and went on otherwise than {self._source.described()} holds"
                return Unfit(held.session, commit.first_seq, cause)
        return None

    def _stored(self, session: str) -> _Stored:
        keys = self._store.keyspace.of(session)
        pipe = self._store.client.pipeline(transaction=True)
        pipe.get(keys.head(session))
        pipe.xrevrange(keys.log(session), count=1)
        pipe.hmget(keys.hold(session), "code", "horizon", "horizon_digest")
        pipe.get(keys.session_view(session))
        pipe.xrevrange(keys.graft(session), count=1)
        packed, last, hold, view, built = pipe.execute(raise_on_error=False)
        for reply in (packed, last, hold):
            if isinstance(reply, Exception):
                raise Damaged("KEY_DAMAGED", f"a key of session {session} is of another type", session=session)
        head = readable_head(packed)
        code, horizon, digest = hold
        base = Position(0, genesis(session))
        if horizon and digest:
            base = Position(int(horizon), digest.decode())
        known = session_view.readable(view if isinstance(view, bytes) else None, session)
        return _Stored(
            head,
            packed or b"",
            last[0][0].decode() if last else "",
            base,
            code == b"FORK_UNFINISHED",
            Position(known.seq, known.digest) if known is not None else None,
            _position(session, built[0]) if isinstance(built, list) and built else None,
        )

    def _gate_at(self, session: str, base: Position) -> str:
        gate = OPEN_GATE
        if base.seq:
            for commit in self._log.read(session, to=base.seq):
                gate = gate_of(gate, commit)
        return gate

    # -- writing it --------------------------------------------------------------------------------------------------

    def _written(self, session: str, merged: _Merged) -> bool:
        """Builds what the log is to be, and puts it in its place; False if something moved meanwhile."""
        base, built = merged.stored.base, merged.stored.built
        if built is not None and built.seq > base.seq and merged.digests.get(built.seq) == built.digest:
            return self._built(session, merged, built) or self._built(session, merged, base)
        return self._built(session, merged, base)

    def _built(self, session: str, merged: _Merged, at: Position) -> bool:
        """The same, beginning where a graft stands."""
        steps = chunks(self._commits(session, merged, at.seq))
        step: list[Commit] | None = next(steps, [])
        while step is not None:
            following = next(steps, None)
            word, *stands = self._call(session, merged, at, step, is_last=following is None)
            self._took(sum(commit.last_seq - commit.first_seq + 1 for commit in step))
            if word != b"BUILT":
                return bool(word == b"GRAFTED")
            at, step = Position(int(stands[0]), stands[1].decode()), following
        return False

    def _commits(self, session: str, merged: _Merged, after: int) -> Iterator[Commit]:
        if after < merged.prefix.seq:
            yield from self._log.read(session, after=after, to=merged.prefix.seq)
        yield from (commit for commit, _ in merged.path if commit.first_seq > after)

    def _call(
        self, session: str, merged: _Merged, at: Position, step: Sequence[Commit], *, is_last: bool
    ) -> Sequence[Any]:
        store, stored, keys = self._store, merged.stored, self._store.keyspace.of(session)
        names = (
            *(keys.meta, keys.sessions, keys.feed, keys.log(session), keys.head(session), keys.hold(session)),
            *(keys.lost, keys.audit, keys.damaged(store.server_ms(), session), keys.graft(session)),
            keys.session_index,
        )
        how = "" if not is_last else "aside" if merged.put_aside else "over"
        spans = self._untold(session, merged) if is_last else []
        identity = self._log.identity
        arguments: list[Any] = [
            *(identity.store, identity.epoch, session, stored.base.seq, stored.base.digest, at.seq, at.digest, how),
            *(stored.packed_head, stored.last_entry, merged.gate, merged.known_seq),
            *(self._who, self._source.described(), len(spans)),
        ]
        for span in spans:
            arguments += [span[-1].last_seq, sum(len(commit.body) for commit in span)]
        for commit in step:
            count = commit.last_seq - commit.first_seq + 1
            arguments += [count, commit.at_ms, commit.digest, commit.body, commit.traceparent or ""]
        reply: Sequence[Any] = store.client.fcall("muster_graft_1", len(names), *names, *arguments)
        return reply

    def _untold(self, session: str, merged: _Merged) -> list[list[Commit]]:
        """What of the log nobody was told of yet, in portions as an append has them."""
        head = merged.stored.head
        told = max(merged.known_seq, head.seq if head is not None else 0, merged.stored.base.seq)
        return list(chunks(self._commits(session, merged, told)))


def _told(session: str, merged: _Merged) -> Graft:
    added = [commit for commit, is_of_log in merged.path if not is_of_log]
    events = sum(commit.last_seq - commit.first_seq + 1 for commit in added)
    end = merged.end
    return Graft(session, merged.prefix.seq, len(added), events, merged.put_aside, end.seq, end.digest or "")


def _way(
    session: str, start: Position, links: Sequence[_Link], must: Position, digests: Mapping[int, str]
) -> list[_Link] | Unfit:
    """The way from `start` over links that chain, which holds what must be in the log; or where it ends.

    Where there are several, what they share. `must` without a digest is a seq that has to be reached, whatever is
    there; `digests` are those of what comes before `start`.
    """
    came: dict[tuple[int, str], tuple[tuple[int, str], _Link]] = {}
    origin = (start.seq, start.digest or "")
    at_seq: dict[int, list[str]] = {start.seq: [origin[1]]}
    for link in sorted(links, key=lambda link: link.commit.first_seq):
        commit = link.commit
        for digest in at_seq.get(commit.first_seq - 1, []):
            here = (commit.last_seq, commit.digest)
            if here not in came and is_dense(commit.first_seq - 1, commit) and is_chained(digest, commit):
                came[here] = (commit.first_seq - 1, digest), link
                at_seq.setdefault(commit.last_seq, []).append(commit.digest)
    ways = [_back(end, origin, came) for end in ({origin, *came} - {before for before, _ in came.values()})]
    if must.digest is None:
        ways = [way for way in ways if (_at(way[-1])[0] if way else start.seq) >= must.seq]
    elif must.seq > start.seq:
        ways = [way for way in ways if any(_at(link) == (must.seq, must.digest) for link in way)]
    elif digests.get(must.seq) != must.digest:
        return Unfit(session, must.seq, "what verifies of the log is not what the head says")
    if not ways:
        reached = max((seq for seq, _ in came), default=start.seq)
        return Unfit(session, reached + 1, f"nothing fits there, and the session was at seq {must.seq}")
    first, *others = ways
    for place, link in enumerate(first):
        if any(place >= len(way) or _at(way[place]) != _at(link) for way in others):
            if link.commit.first_seq > must.seq:
                return first[:place]
            return Unfit(session, link.commit.first_seq, "there is more than one way on from there")
    return first


def _back(
    end: tuple[int, str], origin: tuple[int, str], came: Mapping[tuple[int, str], tuple[tuple[int, str], _Link]]
) -> list[_Link]:
    way = []
    while end != origin:
        end, link = came[end]
        way.append(link)
    return way[::-1]


def _at(link: _Link) -> tuple[int, str]:
    return link.commit.last_seq, link.commit.digest


def _must_hold(stored: _Stored, rest: Sequence[Commit]) -> Position:
    """What has to be in the log: what the head says was acknowledged. Where there is none, as much as log or view tell
    of.
    """
    if stored.head is not None and stored.head.seq:
        return stored.head.position
    seqs = [commit.last_seq for commit in rest]
    if stored.view is not None:
        seqs.append(stored.view.seq)
    return Position(max(seqs, default=0))


def _is_quarantined(head: Head | None) -> bool:
    return head is not None and head.quarantined


def _nothing_of(session: str) -> Held:
    return Held(session, 0, lambda _: ())


def _position(session: str, entry: tuple[bytes, Any]) -> Position:
    commit = parse_entry(session, entry)
    return Position(commit.last_seq, commit.digest)
