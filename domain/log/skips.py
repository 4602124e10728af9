"""Skips: commits that an operator discarded. They stay in the log; every fold passes them over.

A skip names a whole commit by its last seq and its digest, so that it fits this commit alone and never one that takes
its place. Whoever reads commits reads the skips of their sessions with them and marks what is skipped, and the fold
looks at the mark: so nobody who folds what he read can forget them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct, structs

from domain.codec import Commit
from domain.stretch import Stretch

#: The skipped commits of a session, by last seq and digest.
Skips: TypeAlias = frozenset[tuple[int, str]]
NO_SKIPS: Final[Skips] = frozenset()


class Skip(Struct, frozen=True):
    """One discarded commit: where it stands, and who discarded it, why and when (server ms)."""

    from_seq: int
    to_seq: int
    digest: str
    who: str
    why: str
    at: int


_SKIPS = msgspec.json.Decoder(list[Skip])


def decode_skips(stored: bytes | None) -> list[Skip]:
    """The skips of a session as they are stored. Raises msgspec.MsgspecError for what cannot be read."""
    return [] if stored is None else _SKIPS.decode(stored)


def parse_skips(stored: bytes | None) -> Skips:
    """What of a session is skipped. Of what cannot be read nothing is: then its commits break their laws again."""
    if stored is None:
        return NO_SKIPS
    try:
        return frozenset((skip.to_seq, skip.digest) for skip in decode_skips(stored))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return NO_SKIPS


def marked(commits: list[Commit], skips: Skips) -> list[Commit]:
    """The commits of a session, with those marked that are skipped."""
    if not skips:
        return commits
    return [
        structs.replace(commit, skipped=True) if (commit.last_seq, commit.digest) in skips else commit
        for commit in commits
    ]


def with_marks(stretch: Stretch, skips: Skips) -> Stretch:
    """As `marked`, of a stretch."""
    return Stretch.of(stretch.session, marked(list(stretch), skips)) if skips else stretch


def with_skip(stored: bytes | None, skip: Skip) -> bytes | None:
    """What is to be stored after one more commit was discarded; None if it was discarded before.

    What cannot be read is replaced: nobody honours it, and the audit stream tells of it.
    """
    try:
        skips: Sequence[Skip] = decode_skips(stored)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        skips = ()
    if any((known.to_seq, known.digest) == (skip.to_seq, skip.digest) for known in skips):
        return None
    return msgspec.json.encode([*skips, skip])
