"""Waiting for facts: a test polls for what must become true and never sleeps for as long as it should take."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(predicate: Callable[[], object], *, timeout_s: float = 30, message: str = "") -> None:
    """Returns when the predicate holds. Fails the test after `timeout_s`, which only a broken law should ever reach."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {message or predicate}")
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    """Whether a process is gone. A zombie is: whether somebody reaps an orphan is up to the machine."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"
