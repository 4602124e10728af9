"""Failing over to a standby: it takes appends from now on, and the old side takes none when it comes back.

    1. close the old side, if it answers    and bring the rest: then nothing is lost
    2. raise the standby's epoch            whoever knows more than it holds compares, and names it
    3. say whom it replaces                 producers that know both go there once the old side does not answer
    4. open its sessions

What is known not to have arrived is listed: session by session where the old side answers, else by the totals that it
was last heard of, by what is reported afterwards (`muster epoch show`), and by the old side itself, when it is back:
the same command closes it then. Until that is done it takes appends from whoever goes on writing there; that is why it
is a critical finding, and why such producers should be stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct, structs

from domain.errors import MusterError
from domain.log import SessionLog
from domain.log.contract import Head
from domain.log.epoch import Epochs
from domain.log.exchange import REPLACES
from workers.migration import calls
from workers.migration.calls import Sealed
from workers.migration.ends import End, Ends
from workers.migration.mirror import Mirror
from workers.migration.record import Migration, Migrations, Move
from workers.migration.selecting import PAGE, pages


class Missing(Struct, frozen=True):
    """Events that the old side holds and the standby does not."""

    session: str
    from_seq: int
    to_seq: int


class FailedOver(Struct):
    """What a failover did."""

    epoch: int = 0
    opened: int = 0
    fenced: int = 0
    missing: list[Missing] = []


class FailingOver:
    """A failover to the standby of one migration. `by` is the token of its lease."""

    def __init__(self, target: End, migration: Migration, *, by: str, who: str, say: Callable[[str], None]) -> None:
        self._target = target
        self._migration = migration
        self._migrations = Migrations(target.store)
        self._by = by
        self._who = who
        self._say = say
        self._mirror = Mirror(target, migration.id, say)
        self.done = FailedOver()

    def fence(self, ends: Ends, bring: Callable[[list[str]], None] | None) -> None:
        """Closes every session of the old side; `bring` brings what the standby lacks, while that is closed itself.

        What it lacks then is listed. Raises Unavailable.
        """
        place = str(ends.target.place)
        self._mirror.close(ends.source, is_looked_at=bring is not None)
        for page in pages(ends.source.log.sessions(), PAGE):
            seals = [calls.seal(ends.source, one, self._migration.id, self._by, "to", place) for one in page]
            answers = [calls.answered(*one) for one in zip(page, ends.source.ask(seals), strict=True)]
            sealed = {one: answer for one, answer in zip(page, answers, strict=True) if isinstance(answer, Sealed)}
            for answer in answers:
                if isinstance(answer, MusterError) and not answer.facts.get("to"):
                    self._say(f"not closed: {answer.code}: {answer.cause}")
            self.done.fenced += len(sealed)
            if bring is not None:
                bring(list(sealed))
            heads = ends.target.log.heads(list(sealed))
            for (session, old), head in zip(sealed.items(), heads, strict=True):
                if not holds(ends.target.log, session, head, old):
                    first = first_missing(ends, session, old.seq)
                    self.done.missing.append(Missing(session, first, old.seq))

    def open(self) -> None:
        """The standby takes appends. May be done again."""
        log = self._target.log
        if self._target.ask([["HGET", log.keyspace.store_meta, REPLACES]])[0] != self._migration.source_store.encode():
            self._mirror.restore()
            self.done.epoch, _ = Epochs(log).raised(self._who)
            log.identity = structs.replace(log.identity, epoch=self.done.epoch)
            self._target.ask([["HSET", log.keyspace.store_meta, REPLACES, self._migration.source_store]])
        self.done.epoch = log.identity.epoch
        for page in pages(self._held(), PAGE):
            opens = [
                calls.seal(self._target, one, self._migration.id, self._by, "from", self._migration.source)
                for one in page
            ]
            opens += [calls.unseal(self._target, one, self._migration.id, self._by) for one in page]
            replies = self._target.ask(opens)[len(page) :]
            moves: dict[str, Move] = {}
            for session, reply in zip(page, replies, strict=True):
                answer = calls.answered(session, reply)
                if isinstance(answer, calls.Standing):
                    moves[session] = Move("opened", answer.position.seq, answer.position.digest or "", verified=True)
                    self.done.opened += 1
                else:
                    self._say(f"not opened: {answer}")
            self._migrations.put(self._migration.id, moves)

    def _held(self) -> Iterator[str]:
        for session, move in self._migrations.moves(self._migration.id):
            if move.state == "synced":
                yield session


def holds(log: SessionLog, session: str, head: Head | None, old: Sealed) -> bool:
    """Whether the standby's history goes through where the old side's ends."""
    if head is None or head.seq < old.seq:
        return False
    commits = log.read(session, after=old.seq - 1, to=old.seq)
    return any((one.last_seq, one.digest) == (old.seq, old.digest) for one in commits)


def first_missing(ends: Ends, session: str, end: int) -> int:
    """The first seq of the old side that the standby does not hold."""
    seq = 0
    for one, other in zip(ends.source.log.read(session), ends.target.log.read(session), strict=False):
        if (one.last_seq, one.digest) != (other.last_seq, other.digest):
            return one.first_seq
        seq = one.last_seq
    return min(seq + 1, end)
