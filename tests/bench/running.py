"""Runs rows: all contestants prepared, then measured in turn, round after round, as long as there is time."""

from __future__ import annotations

import importlib
import pkgutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Final, Literal

from msgspec import Struct

from tests.bench import rows
from tests.bench.arena import Arena, Effort
from tests.bench.row import Contestant, Kind, Measure, Missing, Ratio, Row

#: The folders of tests/bench/rows, in the order of the table.
PARTS: Final = ("goals", "peers", "muster", "growth")

#: `not measured`: Muster or a limit did not run, and the run fails; `left out`: a peer did not.
Verdict = Literal["reached", "missed", "out of reach", "not measured", "left out", "told"]


class Found(Struct, frozen=True):
    """A row that was found: the folder it is in, and the name of its file."""

    part: str
    name: str
    row: Row


class Spread(Struct, frozen=True):
    """What the rounds gave."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), median(values), max(values))


class RatioResult(Struct, frozen=True):
    """What became of a ratio: the median of the rounds is judged."""

    label: str
    at_least: float | None
    at_most: float | None
    spread: Spread | None
    verdict: Verdict
    reason: str | None = None


class RowResult(Struct, frozen=True):
    """What was measured in a row. `missing` says who did not run, and why; `error` that nothing came of the row."""

    part: str
    name: str
    what: str
    unit: str
    axis: str | None
    kinds: dict[str, str]
    xs: dict[str, float]
    rounds: list[dict[str, float]]
    figures: dict[str, Spread]
    ratios: list[RatioResult]
    missing: dict[str, str]
    seconds: float
    error: str | None = None


def find_rows() -> list[Found]:
    """Every row in tests/bench/rows, by part and name."""
    found = []
    for part in PARTS:
        package = importlib.import_module(f"{rows.__name__}.{part}")
        for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
            module: ModuleType = importlib.import_module(f"{package.__name__}.{name}")
            found.append(Found(part, name, module.ROW))
    return found


def run_rows(
    chosen: Sequence[Found], effort: Effort, *, within_s: float, peers: bool, say: Callable[[str], None]
) -> Iterable[RowResult]:
    """Runs rows one after another. Each may take its share of the time that is left, so that what one leaves the
    others have; one that needs more is given one round all the same.
    """
    until = time.monotonic() + within_s
    for number, found in enumerate(chosen):
        now = time.monotonic()
        share = max(0.0, until - now) / (len(chosen) - number)
        yield run_row(found, effort, until=now + share, peers=peers, say=say)


def run_row(found: Found, effort: Effort, *, until: float, peers: bool, say: Callable[[str], None]) -> RowResult:
    """Runs one row; no round begins after `until` but the first."""
    row, began = found.row, time.monotonic()
    missing: dict[str, str] = {}
    rounds: list[dict[str, float]] = []
    xs: dict[str, float] = {}
    error: str | None = None
    contestants = [each for each in row.contestants if peers or each.kind is not Kind.PEER]
    try:
        with tempfile.TemporaryDirectory(prefix="muster-bench-") as folder, ExitStack() as ending:
            arena = Arena(effort, Path(folder), ending, say)
            ready = _prepared(contestants, arena, missing)
            while len(rounds) < min(row.rounds, effort.rounds) and not (rounds and time.monotonic() > until):
                rounds.append(_round(ready, len(rounds), missing, xs))
    except Exception as failure:
        say(traceback.format_exc())
        error = f"{type(failure).__name__}: {failure}"
    return RowResult(
        found.part,
        found.name,
        row.what,
        row.unit,
        row.axis,
        {each.name: each.kind.value for each in contestants},
        xs,
        rounds,
        _spreads(rounds),
        [_judged(ratio, rounds, peers=_peers(row)) for ratio in row.ratios],
        missing,
        time.monotonic() - began,
        error,
    )


def _prepared(
    contestants: Sequence[Contestant], arena: Arena, missing: dict[str, str]
) -> dict[str, tuple[Contestant, Measure]]:
    ready = {}
    for contestant in contestants:
        try:
            ready[contestant.name] = (contestant, contestant.prepare(arena))
        except (Missing, ImportError) as absent:
            missing[contestant.name] = str(absent)
        except Exception as failure:
            if contestant.kind is not Kind.PEER:
                raise
            missing[contestant.name] = f"{type(failure).__name__}: {failure}"
    return ready


def _round(
    ready: dict[str, tuple[Contestant, Measure]], number: int, missing: dict[str, str], xs: dict[str, float]
) -> dict[str, float]:
    """Every contestant once; another one begins each round. A peer that fails takes no further part."""
    figures: dict[str, float] = {}
    names = list(ready)
    begin = number % len(names) if names else 0
    for name in names[begin:] + names[:begin]:
        contestant, measure = ready[name]
        try:
            measured = measure()
        except Exception as failure:
            if contestant.kind is not Kind.PEER:
                raise
            missing[name] = f"{type(failure).__name__}: {failure}"
            del ready[name]
            continue
        measured = measured if isinstance(measured, Mapping) else {name: measured}
        figures |= measured
        if contestant.x is not None:
            xs |= dict.fromkeys(measured, contestant.x)
    return figures


def _spreads(rounds: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: Spread.of([figures[name] for figures in rounds if name in figures]) for name in names}


def _peers(row: Row) -> set[str]:
    return {contestant.name for contestant in row.contestants if contestant.kind is Kind.PEER}


def _judged(ratio: Ratio, rounds: Sequence[Mapping[str, float]], peers: set[str]) -> RatioResult:
    values = [value for value in (ratio.in_round(figures) for figures in rounds) if value is not None]
    has_goal = ratio.at_least is not None or ratio.at_most is not None
    spread = Spread.of(values) if values else None
    verdict: Verdict
    if spread is None:
        over = {ratio.over} if isinstance(ratio.over, str) else set(ratio.over)
        has_run = any(ratio.of in figures for figures in rounds)
        verdict = "left out" if has_run and over <= peers else "not measured"
    elif not has_goal:
        verdict = "told"
    elif ratio.is_reached(spread.median):
        verdict = "reached"
    else:
        verdict = "out of reach" if ratio.out_of_reach else "missed"
    reason = ratio.out_of_reach if verdict == "out of reach" else None
    return RatioResult(ratio.label, ratio.at_least, ratio.at_most, spread, verdict, reason)
