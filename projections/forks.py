"""Forks and their parents: whether the one is what it says, where they split, and what each did since."""

from __future__ import annotations

from itertools import zip_longest

from msgspec import Struct

from domain.codec import Commit
from domain.errors import NotFound
from domain.log.contract import CommitReader
from domain.session import Origin
from projections.difference import Change
from projections.queries import Views


class Since(Struct, frozen=True):
    """What became of one side since the split: how many events came, and which fields of its state differ."""

    session: str
    events: int
    changes: list[Change]


class Comparison(Struct, frozen=True):
    """A fork against its parent: they split after `seq`. `is_copy`: all up to there is the parent's, event by event."""

    session: str
    parent: str
    seq: int
    digest: str
    is_copy: bool
    fork: Since
    parents: Since


def compared(views: Views, log: CommitReader, session: str) -> Comparison:
    """A fork against its parent. Raises NotFound (SESSION_UNKNOWN, NOT_A_FORK), and as `Views.session_at`."""
    stands = views.session(session)
    if stands["forked_from"] is None:
        raise NotFound("NOT_A_FORK", f"session {session} is no fork", session=session)
    origin = Origin(**stands["forked_from"])
    parents = views.session(origin.session)
    return Comparison(
        session,
        origin.session,
        origin.seq,
        origin.digest,
        is_copy(log, session, origin),
        # The mark itself is no deed of the fork's.
        Since(session, stands["seq"] - origin.seq - 1, views.difference(session, origin.seq + 1)),
        Since(origin.session, parents["seq"] - origin.seq, views.difference(origin.session, origin.seq)),
    )


def is_copy(log: CommitReader, session: str, origin: Origin) -> bool:
    """Whether the beginning of a fork is what its parent holds, commit by commit, up to the digest it names."""
    digest = ""
    pairs = zip_longest(log.read(session, to=origin.seq), log.read(origin.session, to=origin.seq))
    for copied, parents in pairs:
        if copied is None or parents is None or _content(copied) != _content(parents):
            return False
        digest = parents.digest
    return digest == origin.digest


def _content(commit: Commit) -> tuple[int, int, bytes]:
    return commit.first_seq, commit.last_seq, commit.body
