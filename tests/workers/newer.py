"""A worker of a newer release, which has a built-in type more: `paused`.

python -m tests.workers.newer
"""

from __future__ import annotations

import sys
from typing import Any

from domain import events, session
from workers.process import main

if __name__ == "__main__":
    built_in: Any = events.BUILT_IN
    built_in["paused"] = events.Details
    kinds: Any = session.KIND
    kinds["paused"] = "b"
    sys.exit(main())
