"""How hard the chaos tests try: a little in the gate, everything where MUSTER_CHAOS=full is set.

The only place in the tests that reads that variable.
"""

from __future__ import annotations

import os
import random
from typing import Final

FULL: Final = os.environ.get("MUSTER_CHAOS") == "full"


def seeded() -> random.Random:
    """Chance whose seed stands in the output of a test that fails. MUSTER_CHAOS_SEED gives it again."""
    seed = int(os.environ.get("MUSTER_CHAOS_SEED", random.randrange(1 << 30)))
    print(f"MUSTER_CHAOS_SEED={seed}")
    return random.Random(seed)
