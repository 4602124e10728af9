"""Worker processes as a fleet on this host: how one is started, kept alive, and stopped by signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import FrameType

from msgspec import structs

from workers.child_process import ChildProcess, start_child
from workers.halting import HALTED_EXIT
from workers.reloading import FOLLOWS, line_for_worker
from workers.settings import PREFIX, Settings
from workers.stopping import Stop
from workers.supervisor import Supervisor


class WorkerSupervisor(Supervisor):
    """Keeps worker processes alive, unless the fleet is stopped, and has them take settings that change."""

    def __init__(self, settings: Settings, *, count: int, log: Callable[[str], None]) -> None:
        self._count = count
        self._settings = self._of_each(settings)
        self._pipes: list[tuple[ChildProcess, int]] = []
        self._telling = Lock()
        names = [f"worker {number}" for number in range(1, count + 1)]
        why = "the fleet is stopped; it is started again when the stop is taken back (muster stop --cancel)"
        super().__init__(dict.fromkeys(names, self._start_worker), log=log, stay_down={HALTED_EXIT: why})

    def take(self, settings: Settings) -> None:
        """Has those that run, and those that are started from now on, take these settings."""
        with self._telling:
            self._settings = self._of_each(settings)
            self._close_pipes_of_the_dead()
            for child, pipe in self._pipes:
                try:
                    os.write(pipe, line_for_worker(self._settings))
                except OSError as error:
                    self._say(f"worker (pid {child.pid}) could not be told the settings: {error}")

    def stop(self, timeout_s: float = 30.0) -> bool:
        clean = super().stop(timeout_s)
        with self._telling:
            self._close_pipes_of_the_dead()
        return clean

    def _of_each(self, settings: Settings) -> Settings:
        """What each worker is told: there are as many as are kept, whatever number the settings name."""
        return structs.replace(settings, worker=structs.replace(settings.worker, processes=self._count))

    def _start_worker(self) -> ChildProcess:
        with self._telling:  # a change comes before, in the environment, or after, by the pipe
            self._close_pipes_of_the_dead()
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            try:
                # Their output goes where their supervisor's errors go: stdout belongs to data.
                command = [sys.executable, "-m", "workers.process", FOLLOWS]
                child = start_child(command, env=_environ(self._settings), stdin=reading, stdout=2, stderr=2)
            except BaseException:
                os.close(writing)
                raise
            finally:
                os.close(reading)
            self._pipes.append((child, writing))
            return child

    def _close_pipes_of_the_dead(self) -> None:
        living = []
        for child, pipe in self._pipes:
            # Its return code and not `poll`: who polls takes leave of it, which is the watcher's to do.
            if child.returncode is None:
                living.append((child, pipe))
            else:
                os.close(pipe)
        self._pipes = living


def worker_supervisor(settings: Settings, *, count: int | None, log: Callable[[str], None]) -> WorkerSupervisor:
    """Keeps `count` worker processes alive (None: as many as the settings say), unless the fleet is stopped."""
    return WorkerSupervisor(settings, count=count or settings.worker.processes, log=log)


def _environ(settings: Settings) -> dict[str, str]:
    """The environment of a worker process."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environ |= settings.environ()
    # Found by this checkout's path too, so that a worker is the same code as its supervisor.
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_root()), environ.get("PYTHONPATH")]))
    return environ


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
