"""Being told to stop by a signal: it is heard, whatever the thread that handles it is just doing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from queue import Empty
from threading import Thread

import pytest

from workers.stopping import AT_A_TIME_S, Stop

ROOT = Path(__file__).parents[2]

#: Signals come as fast as they can while the thread that handles them begins and ends to wait.
PROGRAM = """
import itertools, signal
from workers.stopping import Stop

for _ in range(300):
    stop = Stop()
    signal.signal(signal.SIGALRM, lambda *_: stop.set())
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    for _ in itertools.count():
        if stop.wait(0):
            break
print("heard")
"""


def test_a_signal_that_interrupts_the_waiting_itself_is_heard() -> None:
    """A lock that the waiting holds and the handler needs would hang the process for good."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stdout == "heard\n", ran.stderr


def test_a_signal_that_comes_as_the_waiting_begins_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing interrupts the wait, its handler runs when the wait ends: so no wait is long, limit or not."""
    stop = Stop()

    class Sleeping:
        def get(self, timeout: float | None) -> None:
            assert timeout is not None
            assert timeout <= AT_A_TIME_S
            stop.set()
            raise Empty

        def put(self, told: None) -> None:
            pass

    for limit in (None, 3600):
        monkeypatch.setattr(stop, "_told", Sleeping())
        monkeypatch.setattr(stop, "_is_set", False)
        assert stop.wait(limit)


def test_a_signal_wakes_who_waits() -> None:
    """The one that handles it, with and without a time limit, and every other thread."""
    stop = Stop()
    before = signal.signal(signal.SIGALRM, lambda *_: stop.set())
    others = [Thread(target=stop.wait) for _ in range(3)]
    try:
        for other in others:
            other.start()
        assert not stop.wait(0)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert stop.wait()
        for other in others:
            other.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert stop.is_set()
    assert stop.wait(0)
    assert stop.wait()
