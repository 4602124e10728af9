"""The shortcut: a long session is folded from its newest checkpoint that verifies, and not from its first event.

A checkpoint verifies if its checksum fits its bytes, it is of this session, it counts as many events as its seq says,
and the log holds its digest at its seq: digests are chained, so then it is a state of this history and of no other.
What that cannot tell is a wrong state sealed by whoever can write to the server; so recovery takes the shortcut only
where verification, which always begins at zero, found the checkpoints right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from domain.errors import MusterError
from domain.log.archive.place import is_of_archive
from domain.log.contract import CommitReader, Position
from projections import session_view
from projections.session_view import Folding

#: Shorter sessions are folded whole: that costs little, and makes all their checkpoints anew.
LONG: Final = 1000


def folding_from(checkpoints: Mapping[int, bytes], log: CommitReader, session: str, at_most: int) -> Folding:
    """A fold that stands at the newest checkpoint up to `at_most` that verifies; before the first event without one."""
    for seq in sorted(checkpoints, reverse=True):
        if LONG <= seq <= at_most:
            view = session_view.readable(checkpoints[seq], session)
            is_state = view is not None and view.seq == seq and session_view.adds_up(view)
            if view is not None and is_state and _is_held(log, session, Position(seq, view.digest)):
                return Folding(view)
    return Folding(session_view.initial(session))


def _is_held(log: CommitReader, session: str, position: Position) -> bool:
    """As `holds`; what lies in an archive that cannot be read is not."""
    try:
        return holds(log, session, position)
    except MusterError as error:
        if is_of_archive(error.code):
            return False
        raise


def holds(log: CommitReader, session: str, position: Position) -> bool:
    """Whether the log holds a position: digests are chained, so then it holds everything before it too."""
    commits = log.read(session, after=position.seq - 1, to=position.seq)
    return any((commit.last_seq, commit.digest) == (position.seq, position.digest) for commit in commits)
