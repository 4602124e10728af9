"""How hard the chaos tests try: a little in the gate, everything where MUSTER_CHAOS=full is set.

The only place in the tests that reads that variable. What chance decides it decides alike in every run of the gate: a
change is judged by what it changes. Where MUSTER_CHAOS=full is set it decides anew each time.
"""

from __future__ import annotations

import os
import random
from typing import Final
from zlib import crc32

FULL: Final = os.environ.get("MUSTER_CHAOS") == "full"


def seeded() -> random.Random:
    """Chance whose seed stands in the output of a test that fails. MUSTER_CHAOS_SEED gives another one."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
    seed = int(os.environ.get("MUSTER_CHAOS_SEED", random.randrange(1 << 30) if FULL else crc32(test.encode())))
    print(f"MUSTER_CHAOS_SEED={seed}")
    return random.Random(seed)
