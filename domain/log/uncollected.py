"""Reading a page without the garbage collector.

Each reply is thousands of small lists that live for as long as it takes to parse them. Counting them, the collector
begins to look for cycles in all that the process holds, and finds none: that took a third of a rebuild.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Keeps the collector from running meanwhile: not for long, since it is off for all threads. Of those that do so at
    once, the first one to begin ends it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
