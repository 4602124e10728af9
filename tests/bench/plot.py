"""The plot of a run, as SVG, drawn from its JSON document: goals, peers, growth.

    python -m tests.bench.plot bench.json > bench.svg

Ratios and rates are on logarithmic axes, since what is compared differs by powers of ten; costs that must not grow are
on a linear one that begins at nothing, so that flat looks flat.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.bench.report import number

WIDTH: Final = 1000
LINE: Final = 20
#: Where labels end and axes begin and end.
LEFT: Final = 500
RIGHT: Final = 860
SMALL: Final = 3  # curves side by side

GOOD, BAD, KNOWN, PLAIN, MUSTER = "#2a7d4f", "#c0392b", "#b9770e", "#8a94a0", "#2457a6"
COLOURS: Final = {"reached": GOOD, "missed": BAD, "out of reach": KNOWN}
CURVES: Final = (MUSTER, "#c0662b", "#2a7d4f", "#7b4a9e")


class Drawing:
    """Elements, from the top down; `y` is where the next one goes."""

    def __init__(self) -> None:
        self.y = 0.0
        self._elements: list[str] = []

    def text(
        self, x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, bold: bool = False
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self._elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight}>{escape(words)}</text>'
        )

    def line(self, points: Sequence[tuple[float, float]], colour: str, *, width: float = 1.5, dash: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._elements.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'
        )

    def dot(self, x: float, y: float, colour: str, *, radius: float = 4) -> None:
        self._elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>')

    def bar(self, x: float, y: float, width: float, colour: str) -> None:
        self._elements.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(1.0, width):.1f}" height="11" fill="{colour}"/>'
        )

    def heading(self, words: str, below: str = "") -> None:
        self.y += 34
        self.text(16, self.y, words, size=15, bold=True)
        if below:
            self.y += 17
            self.text(16, self.y, below)
        self.y += 10

    def svg(self) -> str:
        height = self.y + 24
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}" font-family="system-ui, sans-serif" fill="#1c2329">\n'
            f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>\n' + "\n".join(self._elements) + "\n</svg>\n"
        )


def draw(report: dict[str, Any]) -> str:
    """The plot of a report (`tests.bench.report.document`)."""
    drawing = Drawing()
    rows = report["rows"]
    machine = report["machine"]
    drawing.heading(
        "Muster, measured with its limits and its peers in one run",
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}; "
        f"{report['effort']} run, {report['started_at'][:10]}",
    )
    _goals(drawing, [row for row in rows if row["part"] == "goals"])
    for row in rows:
        if row["part"] == "peers" and row["figures"]:
            _rates(drawing, row)
    _growth(drawing, [row for row in rows if row["axis"] and row["part"] == "growth" and row["figures"]])
    return drawing.svg()


def _goals(drawing: Drawing, rows: Sequence[dict[str, Any]]) -> None:
    judged = [
        (row, ratio)
        for row in rows
        for ratio in row["ratios"]
        if ratio["spread"] and (ratio["at_least"] is not None or ratio["at_most"] is not None)
    ]
    if not judged:
        return
    drawing.heading("Goals", "median of the rounds, with the lowest and the highest; right of the line is reached")
    worth = [[_worth(ratio, ratio["spread"][name]) for name in ("min", "median", "max")] for _, ratio in judged]
    place = _log_axis(min(map(min, worth)), max(map(max, worth)), LEFT, RIGHT)
    top = drawing.y
    for (row, ratio), (low, middle, high) in zip(judged, worth, strict=True):
        drawing.y += LINE
        colour = COLOURS.get(ratio["verdict"], PLAIN)
        words = row["what"] if len(row["ratios"]) == 1 else f"{row['what'].split(',')[0]}: {ratio['label']}"
        drawing.text(LEFT - 12, drawing.y + 4, _short(words, 76), anchor="end", size=11)
        drawing.line([(place(low), drawing.y), (place(high), drawing.y)], colour)
        drawing.dot(place(middle), drawing.y, colour)
        goal = f"≥ {ratio['at_least']:g}" if ratio["at_least"] is not None else f"≤ {ratio['at_most']:g}"
        drawing.text(RIGHT + 10, drawing.y + 4, f"{number(ratio['spread']['median'])}  (goal {goal})", size=11)
    drawing.line([(place(1), top + 6), (place(1), drawing.y + 10)], "#1c2329", width=1, dash="3 3")
    drawing.y += 10


def _rates(drawing: Drawing, row: dict[str, Any]) -> None:
    drawing.heading(row["what"], f"{row['unit']}, on a logarithmic axis")
    medians = {name: spread["median"] for name, spread in row["figures"].items()}
    place = _log_axis(min(medians.values()) / 2, max(medians.values()), LEFT, RIGHT)
    for name, value in sorted(medians.items(), key=lambda item: -item[1]):
        drawing.y += LINE - 3
        colour = MUSTER if row["kinds"].get(name) == "muster" else PLAIN
        drawing.text(LEFT - 12, drawing.y + 10, name, anchor="end", size=11)
        drawing.bar(LEFT, drawing.y + 1, place(value) - LEFT, colour)
        drawing.text(place(value) + 6, drawing.y + 10, number(value), size=11)
    drawing.y += 14


def _growth(drawing: Drawing, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    drawing.heading("What must not grow", "each curve over its first point, whose figure stands below")
    top, height, gap = drawing.y + 26, 130.0, 50.0
    width = (WIDTH - 32 - gap * (SMALL - 1)) / SMALL
    for index, row in enumerate(rows):
        across, down = index % SMALL, index // SMALL
        _curves(drawing, row, 16 + across * (width + gap) + 34, top + down * (height + 90), width - 34, height)
    drawing.y = top + math.ceil(len(rows) / SMALL) * (height + 90) - 30


def _curves(drawing: Drawing, row: dict[str, Any], x: float, y: float, width: float, height: float) -> None:
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, at in row["xs"].items():
        if name in row["figures"]:
            curves.setdefault(name.rpartition(", ")[0], []).append((at, row["figures"][name]["median"]))
    firsts = {name: min(points)[1] for name, points in curves.items()}
    curves = {name: [(at, value / firsts[name]) for at, value in points] for name, points in curves.items()}
    highest = max(value for points in curves.values() for _, value in points)
    ends = [at for points in curves.values() for at, _ in points]
    place = _log_axis(min(ends), max(ends), x, x + width)
    drawing.text(x - 34, y - 12, row["what"], size=11, bold=True)
    drawing.line([(x, y), (x, y + height), (x + width, y + height)], "#1c2329", width=1)
    drawing.text(x - 4, y + 8, number(highest), anchor="end", size=10)
    drawing.text(x - 4, y + height, "0", anchor="end", size=10)
    for at in sorted(set(ends)):
        drawing.text(place(at), y + height + 14, f"{at:,.0f}", anchor="middle", size=9)
    drawing.text(x + width, y + height + 28, row["axis"], anchor="end", size=10)
    for number_of, (name, points) in enumerate(curves.items()):
        colour = CURVES[number_of % len(CURVES)]
        places = [(place(at), y + height * (1 - value / highest)) for at, value in sorted(points)]
        drawing.line(places, colour)
        for at in places:
            drawing.dot(*at, colour, radius=2.5)
        below = y + height + 28 + 14 * number_of
        drawing.dot(x + 4, below - 3, colour, radius=3)
        drawing.text(x + 10, below, f"{_short(name, 20)}: {number(firsts[name])} {row['unit']}", size=10)


def _worth(ratio: dict[str, Any], value: float) -> float:
    """A ratio against its goal: above one is reached, whether the goal is a floor or a ceiling."""
    if ratio["at_least"] is not None:
        return max(value, 1e-6) / float(ratio["at_least"])
    return float(ratio["at_most"]) / max(value, 1e-6)


def _log_axis(low: float, high: float, left: float, right: float) -> Callable[[float], float]:
    low, high = math.log(min(low, 0.9 * high)), math.log(high)
    return lambda value: left + (right - left) * (math.log(value) - low) / (high - low)


def _short(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"


if __name__ == "__main__":
    sys.stdout.write(draw(msgspec.json.decode(Path(sys.argv[1]).read_bytes())))
