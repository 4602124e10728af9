"""Careful mode: finding the commit that workers die of.

Theory of operation. A commit may kill the process that folds it: it needs more memory than there is, or meets a bug in
a library. Its batch is read again by the next worker, which dies too, and a whole partition stands still. So after two
deaths in a row the next batch notes each commit on the server before it is folded. The note outlives the worker, and
tells the next one which commit it was. One that three workers in a row noted and did not live to clear is not folded a
fourth time: its session is parked, and all others go on. A batch that ends, or a lease that is given back, clears all
notes.

It costs a round trip a commit, which is why it is no everyday mode. What it cannot tell apart is a worker that was
killed for another reason, three times over the same commit: that session is parked too, and `muster parked retry` moves
it on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from domain.codec import Commit
from domain.errors import Damaged
from domain.log.contract import CommitReader
from domain.stretch import Stretch, one_by_one
from projections.store import ProjectionStore

#: How many workers may die of a commit.
ATTEMPTS: Final = 3


class CarefulReader:
    """Reads a log and notes every commit before it hands it out. Raises Damaged (WORKER_KILLED) instead of handing out
    one that killed too many.
    """

    def __init__(self, store: ProjectionStore, log: CommitReader, partition: int, token: str) -> None:
        self._store = store
        self._log = log
        self._partition = partition
        self._token = token
        self._noted = ""

    def read(self, session: str, *, after: int = 0, to: int | None = None) -> Iterator[Commit]:
        return self.noted(self._log.read(session, after=after, to=to))

    def read_each(self, sessions: Sequence[str]) -> Iterator[Iterator[Commit]]:
        return map(self.noted, self._log.read_each(sessions))

    def stretches(self, session: str, *, after: int = 0) -> Iterator[Stretch]:
        return one_by_one(self.read(session, after=after))

    def stretches_each(self, sessions: Sequence[str]) -> Iterator[Iterator[Stretch]]:
        return map(one_by_one, self.read_each(sessions))

    def noted(self, commits: Iterable[Commit]) -> Iterator[Commit]:
        """The commits of a session, each noted until the next one is asked for."""
        for commit in commits:
            if not commit.skipped:
                self._note(commit)
            yield commit
        self._begin("")

    def _note(self, commit: Commit) -> None:
        session, seq = commit.session, commit.first_seq
        if self._begin(f"{seq} {session}") > ATTEMPTS:
            raise Damaged(
                "WORKER_KILLED",
                f"{ATTEMPTS} workers died one after another while they folded the commit at seq {seq} of {session}",
                seq=seq,
                attempts=ATTEMPTS,
            )

    def _begin(self, commit: str) -> int:
        """Notes what is next and that what was noted before is done; returns how many have begun it."""
        if commit == self._noted == "":
            return 1
        done = self._noted if self._noted != commit else ""
        times = self._store.begin(self._partition, self._token, commit, done=done)
        self._noted = commit
        return times
