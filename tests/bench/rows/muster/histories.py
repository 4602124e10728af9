"""One long session against many short ones: rebuilt, verified, and read without a fold."""

from __future__ import annotations

from tests.bench.arena import Arena
from tests.bench.history import History
from tests.bench.row import Contestant, Kind, Measure, Ratio, Row

SHAPES = {"one session": (1, 50_000), "sessions of 10": (5_000, 10)}


def history(arena: Arena, shape: str) -> History:
    sessions, length = SHAPES[shape]
    if sessions == 1:
        length = arena.many(length, step=10)
    else:
        sessions = arena.many(sessions)
    return History.of(arena, shape.replace(" ", "-"), sessions=sessions, length=length, commit=min(10, length))


def rebuilding(shape: str) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        made = history(arena, shape)

        def measure() -> float:
            made.forget()
            return made.rebuild()

        return measure

    return Contestant(f"rebuild, {shape}", prepare)


def verifying(shape: str) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        made = history(arena, shape)

        def measure() -> float:
            made.rebuild()
            return made.verify()

        return measure

    return Contestant(f"verify, {shape}", prepare)


def reading(shape: str) -> Contestant:
    return Contestant(f"xrange, {shape}", lambda arena: history(arena, shape).read, Kind.LIMIT)


ROW = Row(
    "one long session, and many short ones, commits of 10",
    "events/s",
    [of(shape) for shape in SHAPES for of in (rebuilding, verifying, reading)],
    [Ratio(f"{what}, {shape}", f"xrange, {shape}") for shape in SHAPES for what in ("rebuild", "verify")],
    rounds=3,
    is_quick=False,
)
