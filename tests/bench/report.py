"""What a run found, for people and for programs: lines of a table, a summary, a JSON document, a Markdown table."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.bench.running import RatioResult, RowResult, Spread

SCHEMA: Final = "muster.bench/1"


def row_lines(result: RowResult) -> list[str]:
    """A row as text: the figures, then the ratios."""
    lines = [f"{result.part}/{result.name}: {result.what} ({len(result.rounds)} rounds, {result.seconds:.1f} s)"]
    for name, spread in result.figures.items():
        lines.append(f"    {name:<44} {_spread(spread):>38} {result.unit}")
    lines += [f"    {name:<44} left out: {why}" for name, why in result.missing.items()]
    for ratio in result.ratios:
        found = _spread(ratio.spread) if ratio.spread else "—"
        lines.append(f"  {_mark(ratio)} {ratio.label:<60} {found:>26} {_goal(ratio)}")
    if result.error:
        lines.append(f"  ! {result.error}")
    return lines


def table(results: Sequence[RowResult]) -> list[str]:
    """Every ratio that has a goal, a line each."""
    lines = []
    for result in results:
        for ratio in result.ratios:
            if ratio.spread and ratio.verdict != "told":
                found = _spread(ratio.spread)
                lines.append(f"{_mark(ratio)} {result.name:<16} {ratio.label:<64} {found:>26} {_goal(ratio)}")
    return lines


def summary(results: Sequence[RowResult], where: Path | None) -> tuple[list[str], bool]:
    """At most three lines, and whether every goal was reached or is listed as out of reach."""
    judged = [r for result in results for r in result.ratios if r.verdict not in ("told", "left out")]
    reached = [ratio for ratio in judged if ratio.verdict == "reached"]
    known = [ratio for ratio in judged if ratio.verdict == "out of reach"]
    missed = [ratio for ratio in judged if ratio.verdict in ("missed", "not measured")]
    failed = [result.name for result in results if result.error]
    lines = [f"{len(reached)} of {len(judged)} goals reached" + (f"; written into {where}" if where else "")]
    if known:
        lines.append("out of reach: " + "; ".join(f"{ratio.label}: {ratio.reason}" for ratio in known))
    wrong = [f"{_of(ratio)} {ratio.label}" for ratio in missed] + [f"failed: {name}" for name in failed]
    if wrong:
        lines.append("missed: " + "; ".join(wrong))
    return lines, not wrong


def document(results: Sequence[RowResult], *, effort: str, started_at: str, seconds: float) -> dict[str, Any]:
    """Everything, as JSON; the plot is drawn from it."""
    return {
        "schema": SCHEMA,
        "effort": effort,
        "started_at": started_at,
        "seconds": round(seconds, 1),
        "machine": {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "rows": msgspec.to_builtins(list(results)),
    }


def markdown(results: Sequence[RowResult]) -> str:
    """The ratios that have goals, as the table of the README."""
    lines = ["| what | ratio: median (min … max) | goal |", "| --- | --- | --- |"]
    for result in results:
        for ratio in result.ratios:
            if ratio.verdict != "told" and ratio.spread is not None:
                note = "" if ratio.verdict == "reached" else f" {ratio.verdict}"
                lines.append(f"| {result.what}: {ratio.label} | {_spread(ratio.spread)} | {_goal(ratio)}{note} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """A figure with three digits that matter."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _spread(spread: Spread) -> str:
    return f"{number(spread.median)} ({number(spread.min)} … {number(spread.max)})"


def _goal(ratio: RatioResult) -> str:
    if ratio.at_least is not None:
        return f"≥ {ratio.at_least:g}"
    return f"≤ {ratio.at_most:g}" if ratio.at_most is not None else ""


def _of(ratio: RatioResult) -> str:
    return f"{number(ratio.spread.median)} {_goal(ratio)}" if ratio.spread else "not measured:"


def _mark(ratio: RatioResult) -> str:
    return {"reached": "✓", "missed": "✗", "out of reach": "~", "not measured": "?", "left out": " ", "told": " "}[
        ratio.verdict
    ]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
