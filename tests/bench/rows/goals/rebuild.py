"""Everything derived is built from the log by one process, from nothing: read, checked, folded, compared, written.

Against a plain reader of the same logs that decodes every event and does nothing with it.
"""

from __future__ import annotations

from tests.bench.arena import Arena
from tests.bench.history import History
from tests.bench.row import Contestant, Kind, Measure, Ratio, Row

LENGTH = 1_000


def history(arena: Arena, commit: int) -> History:
    """Sessions of a thousand events, in commits of so many: enough of them that what each of the 32 partitions costs,
    however empty, does not count.
    """
    sessions = arena.many(128, least=64, smoke=2)
    return History.of(arena, f"commits-{commit}", sessions=sessions, length=LENGTH, commit=commit)


def rebuilding(commit: int) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        made = history(arena, commit)

        def measure() -> float:
            made.forget()
            return made.rebuild()

        return measure

    return Contestant(f"rebuild, commits of {commit}", prepare)


def reading(commit: int) -> Contestant:
    return Contestant(f"xrange, no fold, {commit}", lambda arena: history(arena, commit).read, Kind.LIMIT)


ROW = Row(
    "rebuild from zero, one process",
    "events/s",
    [contestant for commit in (1, 10, 100) for contestant in (rebuilding(commit), reading(commit))],
    [
        Ratio(f"rebuild, commits of {commit}", f"xrange, no fold, {commit}", at_least=goal)
        for commit, goal in ((1, 0.9), (10, 0.6), (100, 0.5))
    ],
)
