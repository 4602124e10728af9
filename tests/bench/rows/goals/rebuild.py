"""Everything derived is built from the log by one process, from nothing: read, checked, folded, compared, written.

Against a plain reader of the same logs that decodes every event and does nothing with it. To decode is to have an event
in Python's own values, its data too: a fold reads the data, and so would whoever wrote this with redis-py. A second
reader that leaves the data packed does less than a fold can do with; it is shown, and not judged.
"""

from __future__ import annotations

from functools import partial

from tests.bench.arena import Arena
from tests.bench.history import History
from tests.bench.limits import decoded_packed
from tests.bench.row import Contestant, Kind, Measure, Ratio, Row

LENGTH = 1_000
OUT_OF_REACH = (
    "an event is read and decoded in C, and folded in Python: 0.7 µs for the digest of a commit, "
    "0.2 to 0.9 for the laws and the state of an event, then views, checkpoints, totals and indexes "
    "are compared and written (cProfile, CPU)"
)


def history(arena: Arena, commit: int) -> History:
    """Sessions of a thousand events, in commits of so many: enough of them that what each of the 32 partitions costs,
    however empty, hardly counts: some 3 ms, by now half of what 128 of them take.
    """
    sessions = arena.many(512, least=128, smoke=2)
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


def reading_packed(commit: int) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        return partial(history(arena, commit).read, decoded_packed)

    return Contestant(f"xrange, data left packed, {commit}", prepare, Kind.LIMIT)


ROW = Row(
    "rebuild from zero, one process",
    "events/s",
    [made(commit) for commit in (1, 10, 100) for made in (rebuilding, reading, reading_packed)],
    [
        *[
            Ratio(
                f"rebuild, commits of {commit}", f"xrange, no fold, {commit}", at_least=goal, out_of_reach=OUT_OF_REACH
            )
            for commit, goal in ((1, 0.9), (10, 0.6), (100, 0.5))
        ],
        *[Ratio(f"rebuild, commits of {commit}", f"xrange, data left packed, {commit}") for commit in (1, 10, 100)],
    ],
)
