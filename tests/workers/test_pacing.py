"""Pace: how far, how fast, and when to stop."""

from __future__ import annotations

import time
from threading import Event

import pytest

from workers.pacing import Pace, Stopped


def test_it_says_how_far_and_how_long_it_will_take() -> None:
    """With what is left, where anybody knows how much there is."""
    said: list[str] = []
    pace = Pace(said.append, verb="verified", total=1000)
    pace.took(250)
    pace.took(750)
    Pace(said.append, verb="read").took(5)

    assert said[0].startswith("verified 250 events of about 1,000, ")
    assert said[0].endswith(" s left")
    assert "of about" not in said[1]
    assert said[2].startswith("read 5 events, ")


def test_it_holds_back_who_would_go_too_fast() -> None:
    """Not before the time has passed in which so many may be gone through; meanwhile he gives signs of life."""
    alive: list[float] = []
    pace = Pace(lambda _: None, verb="", per_s=1000)
    began = time.monotonic()
    pace.took(100, lambda: alive.append(time.monotonic()))
    pace.took(100, lambda: alive.append(time.monotonic()))

    assert time.monotonic() - began >= 0.2
    assert len(alive) >= 2


def test_it_ends_work_that_is_to_stop() -> None:
    """Also while it is held back."""
    stop = Event()
    pace = Pace(lambda _: None, verb="", per_s=0.001, stop=stop)
    with pytest.raises(Stopped):
        pace.took(100, stop.set)
