"""A stretch of a log: commits of one session that were read together, kept as columns.

A fold looks at a thousand commits at a stroke this way; what only one of them is asked for is made a `Commit` then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import overload

from domain.codec import Commit


class Stretch(Sequence[Commit]):
    """Commits in the order of the log. Digests are as they are stored, and may be of no use.

    `skips`: whether an operator discarded some of them.
    """

    __slots__ = ("_commits", "_traces", "bodies", "counts", "digests", "lasts", "session", "skips", "times")

    def __init__(
        self,
        session: str,
        lasts: Sequence[int],
        counts: Sequence[int],
        times: Sequence[int],
        digests: Sequence[bytes],
        bodies: Sequence[bytes],
        traces: Sequence[bytes] | None = None,
    ) -> None:
        self.session = session
        self.lasts = lasts
        self.counts = counts
        self.times = times
        self.digests = digests
        self.bodies = bodies
        self.skips = False
        self._traces = traces
        self._commits: Sequence[Commit] | None = None

    @classmethod
    def of(cls, session: str, commits: Sequence[Commit]) -> Stretch:
        """These commits as a stretch."""
        stretch = cls(
            session,
            [commit.last_seq for commit in commits],
            [commit.last_seq - commit.first_seq + 1 for commit in commits],
            [commit.at_ms for commit in commits],
            [commit.digest.encode("utf-8", "replace") for commit in commits],
            [commit.body for commit in commits],
        )
        stretch._commits = commits
        stretch.skips = any(commit.skipped for commit in commits)
        return stretch

    @property
    def skipped(self) -> Sequence[bool]:
        """Of each commit, whether an operator discarded it."""
        return [commit.skipped for commit in self.commits] if self.skips else [False] * len(self.lasts)

    @property
    def commits(self) -> Sequence[Commit]:
        """The commits, each as one object."""
        if self._commits is None:
            session, traces = self.session, repeat(None) if self._traces is None else self._traces
            columns = zip(self.lasts, self.counts, self.times, self.digests, self.bodies, traces)  # noqa: B905 - endless
            self._commits = [
                Commit(
                    session,
                    last - count + 1,
                    last,
                    at_ms,
                    digest.decode("ascii", "replace"),
                    body,
                    None if trace is None else trace.decode("utf-8", "replace"),
                )
                for last, count, at_ms, digest, body, trace in columns
            ]
        return self._commits

    @property
    def traces(self) -> Sequence[str | bytes | None]:
        """Of each commit, the trace context it came with; empty where none came with any."""
        if self._commits is not None:
            return [commit.traceparent for commit in self._commits]
        return self._traces or ()

    def up_to(self, seq: int) -> int:
        """How many of the commits come before the first one that begins after `seq`."""
        if self.lasts and self.lasts[-1] <= seq and min(self.counts) > 0:
            return len(self.lasts)
        begin_after = (at for at, last in enumerate(self.lasts) if last - self.counts[at] >= seq)
        return next(begin_after, len(self.lasts))

    def followed_by(self, other: Stretch) -> Stretch:
        """This stretch and the one that comes after it, as one."""
        if self._traces is not other._traces or self._commits is not None or other._commits is not None:
            return Stretch.of(self.session, [*self, *other])
        return Stretch(
            self.session,
            [*self.lasts, *other.lasts],
            [*self.counts, *other.counts],
            [*self.times, *other.times],
            [*self.digests, *other.digests],
            [*self.bodies, *other.bodies],
        )

    def __len__(self) -> int:
        return len(self.lasts)

    def __iter__(self) -> Iterator[Commit]:
        return iter(self.commits)

    @overload
    def __getitem__(self, at: int) -> Commit: ...
    @overload
    def __getitem__(self, at: slice) -> Stretch: ...
    def __getitem__(self, at: int | slice) -> Commit | Stretch:
        if not isinstance(at, slice):
            return self.commits[at]
        part = Stretch(
            self.session,
            self.lasts[at],
            self.counts[at],
            self.times[at],
            self.digests[at],
            self.bodies[at],
            None if self._traces is None else self._traces[at],
        )
        part.skips = self.skips
        part._commits = None if self._commits is None else self._commits[at]
        return part


def one_by_one(commits: Iterable[Commit]) -> Iterator[Stretch]:
    """Each commit as a stretch of its own, for who must not be handed the next one before this one is folded."""
    for commit in commits:
        yield Stretch.of(commit.session, [commit])
