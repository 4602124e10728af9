"""How much is read at a time after failures and successes."""

from __future__ import annotations

from domain.log.subscribing.stride import Stride


def test_each_failure_halves_what_is_read_down_to_one() -> None:
    stride = Stride()
    assert stride.of(64) == 64
    stride.shorten()
    assert (stride.of(64), stride.of(1)) == (32, 1)
    for _ in range(20):
        stride.shorten()
    assert stride.of(1024) == 1


def test_after_an_outage_it_doubles_up_to_half_of_what_failed_first() -> None:
    """And from there on grows slowly, until everything is read again."""
    stride = Stride()
    for _ in range(20):
        stride.shorten()
    grown = []
    while stride.of(1024) < 1024:
        stride.lengthen()
        grown.append(stride.of(1024))
    assert grown[:9] == [2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert grown[9] == 576
    assert len(grown) == 15
