"""Faults on purpose. MUSTER_CHAOS=full lengthens what the gate runs in its quick form."""

from __future__ import annotations

import os
from typing import Final, TypeVar

T = TypeVar("T")

FULL: Final = os.environ.get("MUSTER_CHAOS") == "full"


def at_length(quick: T, full: T) -> T:
    """The quick value in the gate, the full one in `./scripts/chaos`."""
    return full if FULL else quick
