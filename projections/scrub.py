"""Scrubbing: verification that goes on for ever, in rounds, and within a budget.

A round reads sessions of a partition in this order: those in which something was found and not mended yet; what changed
since, from what was proved of it on; some drawn at random; and those that were read whole longest ago. When all have
been read whole, a sweep is done: then the totals of agents are judged, and names are looked for that stand in no list.
Unchanged history is read by the draw and the sweep alone.

What changed is told by the feed, after the position up to which it was told before. Where the feed does not reach back
so far, or the store may have lost a tail since, the head of every session is compared with what was proved of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec import Struct

from domain.log.contract import CommitReader
from projections.census import census
from projections.drift import Examination, Read, Validator
from projections.findings import Finding
from projections.index_drift import IndexCheck
from projections.proof import NO_PROOFS, Proof, packed, proof_of, read_proofs
from projections.store import Cursor, ProjectionStore, parse_position, unless_of_another_type

#: How many sessions are verified between two looks at the budget.
GROUP: Final = 32
#: How many sessions of a partition a round draws at random.
DRAWN: Final = 4
#: What part of a round's budget changes may take; the rest is kept for the draw and the sweep, which else would starve.
FOR_CHANGES: Final = 0.75


class Round(Struct):
    """How many sessions a round of a partition read, by the reason why.

    `sweeps` is 1 if with it every session of the partition was read whole since the sweep began.
    """

    again: int = 0
    changed: int = 0
    drawn: int = 0
    swept: int = 0
    sweeps: int = 0


class Scrub:
    """The scrubbing of one partition."""

    def __init__(
        self, store: ProjectionStore, log: CommitReader, partition: int, *, chance: random.Random | None = None
    ) -> None:
        self._store = store
        self._client = store.client
        self._keys = store.keys(partition)
        self._validator = Validator(store, log)
        self._index = IndexCheck(store, partition)
        self._partition = partition
        self._chance = chance or random.Random()
        self.done = Round()
        self._told: set[str] = set()
        self._found: set[str] = set()
        self._views_at: Cursor | None = None
        self._read_at = 0

    def round(self, budget: int) -> Iterator[Finding]:
        """Verifies what is due, for about so many events and sessions; yields what it finds."""
        self._clear_what_cannot_be_read()
        began = self._read_at = self._store.server_ms()
        cursor = self._store.cursor(self._partition)
        stands_wrong = list(self._validator.feed_findings(self._partition))
        yield from stands_wrong
        if stands_wrong:
            self._views_at = Cursor(None)  # as a verification does: views are held against their own seq

        for_changes = int(budget * FOR_CHANGES)
        yield from self._again(for_changes)
        if cursor.position is not None and not stands_wrong:
            yield from self._changed(cursor.position, for_changes, began)
        yield from self._draw(budget)
        yield from self._sweep(budget, began)

    @property
    def read(self) -> Read:
        """How many sessions and events were read so far."""
        return self._validator.read

    @property
    def _cost(self) -> int:
        """What was taken of the budget: an event each, and one for each session."""
        return self.read.sessions + self.read.events

    # -- what is read ------------------------------------------------------------------------------------------------

    def _again(self, limit: int) -> Iterator[Finding]:
        """What was found and is not mended, and what is reported lost, if the budget reaches so far."""
        reported = [loss.session for loss in self._store.losses(self._partition)]
        named = [name.decode("utf-8", "replace") for name in self._client.hkeys(self._keys.drifted)]
        for group in _groups(dict.fromkeys([*reported, *named])):
            self.done.again += len(group)
            yield from self._verify(group)
            if self._cost >= limit:
                return

    def _changed(self, position: int, limit: int, began: int) -> Iterator[Finding]:
        """What was appended up to a position of the feed since it was looked at last."""
        kept = self._kept()
        since = parse_position(kept.get(b"position"))
        epoch = self._client.hget(self._keys.meta, "epoch") or b""
        is_told = since is not None and kept.get(b"epoch") == epoch
        if since is not None and is_told and self._store.feed_covers(self._partition, Cursor(since), position):
            changed = self._by_feed(since, position)
        else:
            changed = ((sessions, None) for sessions in self._moved_heads())
        for sessions, mark in changed:
            fresh = [session for session in sessions if session not in self._told]
            self.done.changed += len(fresh)
            yield from self._verify(fresh, read_proofs(self._client, self._keys.proofs, fresh))
            if mark is not None:
                self._note(position=mark, epoch=epoch, at=began)
            if self._cost >= limit and mark != position:
                return
        self._note(position=position, epoch=epoch, at=began)

    def _by_feed(self, since: int, position: int) -> Iterator[tuple[list[str], int | None]]:
        """Groups of sessions that the feed names, each with the position up to which it is told of with them."""
        named: dict[str, None] = {}
        for entry in self._store.feed_after(self._partition, since):
            if entry.position > position:
                break
            named |= dict.fromkeys(span.session for span in entry.spans)
            if len(named) >= GROUP:
                yield list(named), entry.position
                named = {}
        yield list(named), position

    def _moved_heads(self) -> Iterator[list[str]]:
        """The sessions that stand elsewhere than where they were proved, by their heads."""
        for page in self._store.member_pages(self._partition):
            proofs, heads = read_proofs(self._client, self._keys.proofs, page), self._store.heads(page)
            moved = [
                session
                for session, head in zip(page, heads, strict=True)
                if head is None or (proof := proofs.get(session)) is None or not proof.is_at(head.seq, head.digest)
            ]
            yield from _groups(moved)

    def _draw(self, limit: int) -> Iterator[Finding]:
        """Some sessions, drawn at random."""
        count = self._client.zcard(self._keys.sessions)
        if not count or self._cost >= limit:
            return
        pipe = self._client.pipeline(transaction=False)
        for rank in sorted(self._chance.sample(range(count), min(DRAWN, count))):
            pipe.zrange(self._keys.sessions, rank, rank)
        drawn = [name.decode("utf-8", "replace") for (name,) in filter(None, pipe.execute())]
        drawn = [session for session in drawn if session not in self._told]
        for session in drawn:
            self.done.drawn += 1
            yield from self._verify([session])
            if self._cost >= limit:
                return

    def _sweep(self, limit: int, began: int) -> Iterator[Finding]:
        """Those that were read whole longest ago, one after another; at least one, else a sweep might never end."""
        kept = self._kept()
        sweep_began = parse_position(kept.get(b"sweep_began"))
        if sweep_began is None:
            sweep_began = self._begin_sweep(began)
        self._read_at = max(began, sweep_began)  # a clock that was set back must not have them read again and again
        while due := self._client.zrangebyscore(self._keys.swept, "-inf", f"({sweep_began}", start=0, num=GROUP):
            for examination in self._examined([name.decode("utf-8", "replace") for name in due]):
                self.done.swept += 1
                yield from self._judged(examination, is_whole=True)
                if self._cost >= limit:
                    return
        yield from self._end_of_sweep()
        self.done.sweeps += 1
        self._begin_sweep(self._store.server_ms())

    def _begin_sweep(self, now: int) -> int:
        """Puts every session that was never read at the front of the next sweep."""
        for page in self._store.member_pages(self._partition):
            self._client.zadd(self._keys.swept, dict.fromkeys(page, 0), nx=True)
        self._note(sweep_began=now)
        return now

    def _end_of_sweep(self) -> Iterator[Finding]:
        """What can only be judged of a partition as a whole."""
        unlisted = census(self._store, self._partition)[self._partition]
        yield from self._verify(sorted(unlisted.sessions - self._told))
        agents = 0
        for found in self._validator.totals(
            self._partition, unlisted, lambda page: read_proofs(self._client, self._keys.proofs, page)
        ):
            agents += 1
            yield found
        self._note(agents=agents)
        damaged = [name.decode("utf-8", "replace") for name in self._client.hkeys(self._keys.drifted)]
        yield from self._validator.subscription_findings(self._partition, damaged)

    # -- what comes of it --------------------------------------------------------------------------------------------

    def _verify(self, sessions: Sequence[str], proofs: Mapping[str, Proof] = NO_PROOFS) -> Iterator[Finding]:
        for examination in self._examined(sessions, proofs):
            yield from self._judged(examination, is_whole=examination.snapshot.session not in proofs)

    def _examined(self, sessions: Sequence[str], proofs: Mapping[str, Proof] = NO_PROOFS) -> Iterator[Examination]:
        for examination in self._validator.examine(
            self._partition, sessions, views_at=self._views_at, totals_at=self._views_at, proofs=proofs
        ):
            self._told.add(examination.snapshot.session)
            yield examination

    def _judged(self, examination: Examination, *, is_whole: bool) -> Iterator[Finding]:
        """The findings of a session, after what was found is kept."""
        snapshot, keys = examination.snapshot, self._keys
        session = snapshot.session
        findings = [] if snapshot.is_empty else list(self._validator.session_findings(self._partition, examination))
        if self._views_at is None:
            findings += [*self._validator.index_findings(self._index, examination), *self._index.taken()]
        pipe = self._client.pipeline(transaction=True)
        if findings:
            pipe.hset(keys.drifted, session, ",".join(sorted({found.code for found in findings})))
        else:
            proof = proof_of(examination.verified.seq, examination.verified.digest, snapshot.view, snapshot.checkpoints)
            pipe.hdel(keys.drifted, session)
            pipe.hset(keys.proofs, session, packed(proof))
        if not snapshot.listed:
            pipe.zrem(keys.swept, session)
            pipe.hdel(keys.proofs, session)
        elif is_whole:
            pipe.zadd(keys.swept, {session: self._read_at})
        pipe.execute()
        if session not in self._found:
            yield from findings
        self._found |= {session} if findings else set()

    def _kept(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = self._client.hgetall(self._keys.scrub)
        return found

    def _note(self, **fields: Any) -> None:
        self._client.hset(self._keys.scrub, mapping=fields)

    def _clear_what_cannot_be_read(self) -> None:
        """Deletes what is kept under these names and is of another type: all of it is derived."""
        keys = self._keys
        needs = {keys.proofs: b"hash", keys.swept: b"zset", keys.drifted: b"hash", keys.scrub: b"hash"}
        for key, kind in zip(needs, self._store.types(list(needs)), strict=True):
            if kind not in (b"none", needs[key]):
                self._client.delete(key)


def _groups(sessions: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(sessions)
    while group := list(islice(remaining, GROUP)):
        yield group


# -- how far it is -----------------------------------------------------------------------------------------------------


class Verified(Struct, frozen=True):
    """How far a partition is verified. What is not told of here was not read.

    `position`: the feed is verified up to there (None: never); `events` after it are not. `up_to`: everything appended
    until then (server ms) is; `seconds` is the age of the oldest event that is not. `unread` sessions were never read
    whole; `oldest_read` is when one was longest ago (server ms, None while there are unread ones). `drifted` sessions
    have findings, and so have `agents` totals.
    """

    partition: int
    position: int | None
    events: int
    seconds: float
    up_to: int | None
    unread: int
    oldest_read: int | None
    drifted: int
    agents: int


def verified(store: ProjectionStore) -> list[Verified]:
    """How far each partition is verified."""
    pipe = store.client.pipeline(transaction=False)
    for keys in store.keyspace.partitions:
        # Positions are asked for first: a total that is read later is never behind them.
        pipe.hgetall(keys.scrub)
        pipe.hget(keys.meta, "total")
        pipe.zcard(keys.sessions)
        pipe.zcount(keys.swept, 1, "+inf")
        pipe.zrange(keys.swept, 0, 0, withscores=True)
        pipe.hlen(keys.drifted)
    now = store.server_ms()
    replies = [unless_of_another_type(reply) for reply in pipe.execute(raise_on_error=False)]
    found = []
    for partition in range(store.keyspace.count):
        kept, total, listed, read, oldest, drifted = replies[6 * partition : 6 * partition + 6]
        kept, total, unread = kept or {}, int(total or 0), max(0, (listed or 0) - (read or 0))
        position = parse_position(kept.get(b"position"))
        behind = total if position is None else max(0, total - position)
        first = store.oldest_after(partition, position or 0) if behind else None
        found.append(
            Verified(
                partition,
                position,
                behind,
                max(0, now - first.at_ms) / 1000 if first is not None else 0.0,
                None if position is None else first.at_ms if first is not None else parse_position(kept.get(b"at")),
                unread,
                None if unread or not oldest else int(oldest[0][1]),
                drifted or 0,
                parse_position(kept.get(b"agents")) or 0,
            )
        )
    return found


def summed(parts: Sequence[Verified]) -> dict[str, Any]:
    """All partitions in one: sums, and the worst of each time."""
    ups, reads = [part.up_to for part in parts], [part.oldest_read for part in parts]
    return {
        "events": sum(part.events for part in parts),
        "seconds": max(part.seconds for part in parts),
        "up_to": None if None in ups else min(filter(None, ups)),
        "unread": sum(part.unread for part in parts),
        "oldest_read": None if any(part.unread for part in parts) else min(filter(None, reads), default=None),
        "drifted": sum(part.drifted for part in parts),
        "agents": sum(part.agents for part in parts),
        "partitions": msgspec.to_builtins(parts),
    }
