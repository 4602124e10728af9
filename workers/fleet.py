"""Worker processes as a fleet on this host: how one is started, kept alive, and stopped by signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from workers.child_process import ChildProcess, start_child
from workers.halting import HALTED_EXIT
from workers.settings import PREFIX, Settings
from workers.stopping import Stop
from workers.supervisor import Supervisor


def worker_supervisor(settings: Settings, *, count: int | None, log: Callable[[str], None]) -> Supervisor:
    """Keeps `count` worker processes alive (None: as many as the settings say), unless the fleet is stopped."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environ |= settings.environ()
    # Found by this checkout's path too, so that a worker is the same code as its supervisor.
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_root()), environ.get("PYTHONPATH")]))

    def start() -> ChildProcess:
        # Their output goes where their supervisor's errors go: stdout belongs to data.
        return start_child([sys.executable, "-m", "workers.process"], env=environ, stdout=2, stderr=2)

    names = [f"worker {number}" for number in range(1, (count or settings.worker.processes) + 1)]
    why = "the fleet is stopped; it is started again when the stop is taken back (muster stop --cancel)"
    return Supervisor(dict.fromkeys(names, start), log=log, stay_down={HALTED_EXIT: why})


@contextmanager
def until_stopped(stop: Stop) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Sets `stop` at the first SIGTERM or SIGINT; a further one calls what was registered with the yielded function."""
    impatient: list[Callable[[], None]] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not stop.is_set():
            stop.set()
            return
        for action in impatient:
            action()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield impatient.append
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _root() -> Path:
    return Path(__file__).resolve().parent.parent
