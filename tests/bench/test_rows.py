"""That the bench runs: every row that Muster needs nobody else for, at the smallest size. No figure is judged here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import pytest

from tests.bench.arena import Arena, Effort
from tests.bench.events import EVENT_BYTES, body
from tests.bench.plot import draw
from tests.bench.report import document, markdown, row_lines, summary
from tests.bench.row import Contestant, Kind, Measure, Missing, Ratio, Row
from tests.bench.running import Found, RowResult, find_rows, run_row

#: Their fleets and five hundred threads take longer than a gate has, or their parts run in another row; all run in
#: `./scripts/bench`.
SLOW: Final = frozenset(
    {"draining", "takeover", "visible", "start_up", "worker_memory", "producers", "verification", "append_threads"}
)
ROWS: Final = find_rows()


def run(row: Row, *, peers: bool = False, seconds: float = 60) -> RowResult:
    until = time.monotonic() + seconds
    return run_row(Found("goals", "made-up", row), Effort.FULL, until=until, peers=peers, say=print)


def steady(name: str, value: float, kind: Kind = Kind.MUSTER) -> Contestant:
    return Contestant(name, lambda _: lambda: value, kind)


def failing(error: Exception) -> Callable[[Arena], Measure]:
    def prepare(arena: Arena) -> Measure:
        raise error

    return prepare


@pytest.mark.parametrize(
    "found", [each for each in ROWS if each.name not in SLOW and each.part != "peers"], ids=lambda each: each.name
)
def test_a_row_runs_at_the_smallest_size(found: Found) -> None:
    """Whatever it measures is a number, and nobody but peers and programs this machine lacks is left out."""
    result = run_row(found, Effort.SMOKE, until=time.monotonic(), peers=False, say=print)

    assert result.error is None
    assert len(result.rounds) == 1
    assert result.figures
    assert all("redis-benchmark" in why for why in result.missing.values())


def test_an_event_has_the_size_it_is_said_to_have() -> None:
    """A body is the event and one byte around it."""
    assert len(body()) == EVENT_BYTES + 1


def test_each_goal_and_each_peer_has_its_row() -> None:
    """Rows are found by their files, under names that tell them apart."""
    names = [each.name for each in ROWS]

    assert len(set(names)) == len(names)
    assert {"append_one", "draining", "rebuild_peers", "read_back", "sessions"} <= set(names)


def test_the_median_of_the_rounds_ratios_is_judged() -> None:
    """A contestant is measured once a round, and a goal is a floor or a ceiling of the ratio."""
    values = iter([1.0, 5.0, 2.0])
    unsteady = Contestant("Muster", lambda _: lambda: next(values))
    row = Row("", "", [unsteady, steady("limit", 2.0, Kind.LIMIT)], [Ratio("Muster", "limit", at_least=1.5)], rounds=3)

    (ratio,) = run(row).ratios

    assert ratio.spread is not None
    assert (ratio.spread.min, ratio.spread.median, ratio.spread.max) == (0.5, 1.0, 2.5)
    assert ratio.verdict == "missed"
    ceiling = Row("", "", row.contestants[1:], [Ratio("limit", "limit", at_most=1.0)])
    assert run(ceiling).ratios[0].verdict == "reached"


def test_a_goal_that_is_known_to_be_missed_does_not_fail_the_run() -> None:
    """It is listed with its reason."""
    ratio = Ratio("Muster", "limit", at_least=2, out_of_reach="the disk")
    result = run(Row("", "", [steady("Muster", 1), steady("limit", 1, Kind.LIMIT)], [ratio]))

    lines, is_good = summary([result], None)

    assert is_good
    assert "out of reach: Muster / limit: the disk" in lines


def test_a_peer_that_cannot_run_is_left_out_and_said() -> None:
    """The others go on; nothing is judged against whoever was not there."""
    absent = Contestant("peer", failing(ImportError("no module named peer")), Kind.PEER)
    broken = Contestant("broken", failing(ValueError("no")), Kind.PEER)
    ratios = [Ratio("Muster", "peer", at_least=1), Ratio("Muster", ("peer", "other"), at_least=1)]
    row = Row("", "", [steady("Muster", 3), absent, broken, steady("other", 1, Kind.PEER)], ratios)

    result = run(row, peers=True)

    assert result.missing == {"peer": "no module named peer", "broken": "ValueError: no"}
    assert [ratio.verdict for ratio in result.ratios] == ["left out", "reached"]
    assert summary([result], None) == (["1 of 1 goals reached"], True)
    assert any("left out: no module named peer" in line for line in row_lines(result))


def test_a_limit_that_cannot_run_fails_the_run() -> None:
    """What was not measured was not reached."""
    absent = Contestant("limit", failing(Missing("there is no redis-benchmark")), Kind.LIMIT)

    result = run(Row("", "", [steady("Muster", 1), absent], [Ratio("Muster", "limit", at_least=0.1)]))

    assert result.ratios[0].verdict == "not measured"
    assert not summary([result], None)[1]


def test_a_row_that_fails_is_said_and_fails_the_run() -> None:
    """Without an end of all other rows."""
    result = run(Row("", "", [Contestant("Muster", failing(ValueError("broken")))]))

    assert result.error == "ValueError: broken"
    assert summary([result], None) == (["0 of 0 goals reached", "missed: failed: made-up"], False)


def test_a_row_ends_when_its_time_is_over_but_has_one_round() -> None:
    """So that a run keeps its bound on a slow machine too."""
    assert len(run(Row("", "", [steady("Muster", 1)], rounds=5), seconds=0).rounds) == 1


def test_a_run_becomes_a_document_a_plot_and_a_table() -> None:
    """Of goals, peers and curves."""
    goal = run(Row("goal", "s", [steady("a", 1), steady("b", 2)], [Ratio("a", "b", at_least=0.1)]))
    curve = Row("curve", "s", [Contestant(f"c, {x}", lambda _: lambda: 1.0, x=x) for x in (1, 10)], axis="x")
    growth = run_row(Found("growth", "curve", curve), Effort.SMOKE, until=0, peers=False, say=print)
    peers = run_row(
        Found("peers", "peer", Row("peer", "s", [steady("a", 1), steady("p", 9, Kind.PEER)])),
        Effort.SMOKE,
        until=0,
        peers=True,
        say=print,
    )

    report = document([goal, growth, peers], effort="smoke", started_at="2026-01-01T00:00:00+00:00", seconds=1)

    assert [row["name"] for row in report["rows"]] == ["made-up", "curve", "peer"]
    assert growth.xs == {"c, 1": 1, "c, 10": 10}
    assert draw(report).endswith("</svg>\n")
    assert "| goal: a / b | 0.50 (0.50 … 0.50) | ≥ 0.1 |" in markdown([goal])
