"""The soak of tests/chaos/soak.py, short enough for the gate."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.effort import FULL, seeded
from tests.chaos.soak import soak

SECONDS = 120 if FULL else 12
ALWAYS = ("worker killed", "server killed")


def test_a_fleet_to_which_everything_happens_keeps_every_law(tmp_path: Path) -> None:
    """Workers, server, network and derived keys are broken at random; in the end nothing is lost, wrong, or left."""
    outcome = soak(tmp_path, seconds=SECONDS, seed=seeded().randrange(1 << 30), say=print, at_least=ALWAYS)

    assert outcome.broken == []
    assert all(outcome.counts[words] for words in ALWAYS)
    assert outcome.acknowledged > 20
