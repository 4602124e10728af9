"""Impacts are summed without an error, in any order."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.impact import MOST, SCALE, Impacts, as_number, units


@given(st.lists(st.floats(-1e6, 1e6), max_size=20), st.randoms())
def test_a_sum_is_the_same_in_any_order_and_can_be_subtracted(deltas: list[float], chance: object) -> None:
    """Which sums of floats are not."""
    shuffled = list(deltas)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = Impacts(), Impacts()
    for delta in deltas:
        one.add({"perf_delta": delta})
    for delta in shuffled:
        other.add({"perf_delta": delta})

    assert one == other
    rest = one.perf_delta - sum(units(delta) or 0 for delta in deltas)
    assert rest == 0


@given(st.floats(-1e6, 1e6))
def test_a_delta_is_rounded_to_the_nearest_millionth(delta: float) -> None:
    """By at most half of one, whatever the float."""
    rounded = units(delta)
    assert rounded is not None
    assert abs(Fraction(rounded, SCALE) - Fraction(delta)) <= Fraction(1, 2 * SCALE)


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (0.6e-6, 1), (-0.4e-6, 0), (-0.6e-6, -1), (7, 7_000_000), (1e300, MOST * SCALE), (-(10**30), -MOST * SCALE),
        (True, None), (float("nan"), None), (float("inf"), None), ("1", None), (None, None), ([], None),
    ],
)  # fmt: skip
def test_what_is_no_number_counts_as_not_said(delta: object, expected: int | None) -> None:
    """And what is beyond the bound as the bound."""
    assert units(delta) == expected


def test_the_lowest_and_each_severity_are_kept() -> None:
    """Whatever comes first."""
    said: list[dict[str, Any]] = [
        {"severity": "high", "perf_delta": -2},
        {"severity": "low"},
        {"perf_delta": 3.5},
        {"severity": "huge"},
    ]
    for order in permutations(said):
        impacts = Impacts()
        for impact in order:
            impacts.add(impact)
        assert impacts.severities == {"high": 1, "low": 1}
        assert (as_number(impacts.perf_delta), as_number(impacts.lowest)) == (1.5, -2.0)
