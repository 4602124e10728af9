"""Keeps child processes alive: one that ends is started again, until all are stopped together.

Any program does: workers, the embedded server (`EmbeddedServer.launch`), each in a slot with a name. Slots are stopped
all at once, so what must outlive the others (the server its workers) gets a supervisor of its own, stopped later.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from signal import Signals
from types import MappingProxyType, TracebackType
from typing import Final, Protocol, Self

#: How often children are looked at, in seconds.
_LOOK_EVERY_S: Final = 0.05
#: The wait before a first restart, in seconds; it doubles with every quick death in a row …
_SHORTEST_WAIT_S: Final = 0.1
#: … up to this.
_LONGEST_WAIT_S: Final = 5.0


class Child(Protocol):
    """What a supervisor needs of a process; a `subprocess.Popen` has it. `wait` raises `subprocess.TimeoutExpired`."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def wait_before_restart(quick_deaths: int) -> float:
    """Seconds to wait after so many deaths in a row that each came soon after a start."""
    doublings = min(quick_deaths, 10)  # far beyond the longest wait, and no overflow after a night of crashes
    return min(_SHORTEST_WAIT_S * 2.0**doublings, _LONGEST_WAIT_S)


class _Slot:
    """A place for one child after another. Written by one thread at a time: who starts, the watcher, who stops."""

    def __init__(self, name: str, start: Callable[[], Child]) -> None:
        self.name = name
        self.start = start
        self.child: Child | None = None
        self.started_at = 0.0
        self.restart_at = 0.0
        self.quick_deaths = 0
        self.stays_down = False
        self.exit_code: int | None = None


class Supervisor:
    """Starts what the slots' functions start and keeps it running.

    `slots` maps a name to a function that starts the slot's program and returns at once, without waiting until it is
    ready: one watcher looks after all slots. `log` gets one line for every death and every restart, from its thread.
    A child that lived `settled_after_s` has settled: its death is taken for an accident, not for the next of a row.

    One that ends with a code of `stay_down`, which says why, is not started again before `release`; `went_down` is
    called then, from the watcher's thread.
    """

    def __init__(
        self,
        slots: Mapping[str, Callable[[], Child]],
        *,
        log: Callable[[str], None],
        settled_after_s: float = 5.0,
        stay_down: Mapping[int, str] = MappingProxyType({}),
        went_down: Callable[[], None] = lambda: None,
    ) -> None:
        self._slots = [_Slot(name, start) for name, start in slots.items()]
        self._log = log
        self._settled_after_s = settled_after_s
        self._stay_down = stay_down
        self._went_down = went_down
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self._clean = True

    def start(self) -> None:
        """Starts every slot once, then watches. If one cannot even start, the rest is stopped and its error raised."""
        if self._watcher is not None or self._stopping.is_set():
            raise RuntimeError("a supervisor is started once")
        try:
            for slot in self._slots:
                slot.child = slot.start()
                slot.started_at = time.monotonic()
        except BaseException:
            self.stop()
            raise
        self._watcher = threading.Thread(target=self._watch, name="muster-supervisor", daemon=True)
        self._watcher.start()

    def stop(self, timeout_s: float = 30.0) -> bool:
        """Asks all children to end (SIGTERM), waits for all of them together, then kills who is left (SIGKILL).

        True when all that ran ended with 0, or by the SIGTERM itself: who does not handle it yet has nothing to finish.
        All are gone and reaped afterwards, also when the wait is interrupted. A second call does nothing and answers
        the same.
        """
        self._stopping.set()
        try:
            if self._watcher is not None:
                self._watcher.join()  # first: from here on nobody starts a child again
            for child in self._children():
                child.terminate()
            deadline = time.monotonic() + timeout_s
            for child in self._children():
                with suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for slot in self._slots:
                if slot.child is not None:
                    if slot.child.poll() is None:
                        self._say(f"{slot.name} (pid {slot.child.pid}) did not end in time; killing it")
                        slot.child.kill()
                    slot.exit_code = slot.child.wait()
                    slot.child = None
                    self._clean = self._clean and slot.exit_code in (0, -Signals.SIGTERM, *self._stay_down)
        return self._clean

    def kill(self) -> None:
        """Kills all children at once. A `stop` under way then returns soon; without one they are started again.

        May be called from a signal handler, such as one for the second SIGTERM: it takes no lock.
        """
        for child in self._children():
            child.kill()

    def release(self) -> None:
        """Starts the children again that ended so that they stay down."""
        for slot in self._slots:
            slot.stays_down = False

    @property
    def pids(self) -> dict[str, int]:
        """The pids of the children that run, by slot; one that waits for its restart is not in it."""
        running = ((slot.name, slot.child) for slot in self._slots)
        return {name: child.pid for name, child in running if child is not None and child.poll() is None}

    @property
    def exit_codes(self) -> dict[str, int]:
        """How each slot's last child ended: its exit code, or minus the signal that killed it."""
        return {slot.name: slot.exit_code for slot in self._slots if slot.exit_code is not None}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _children(self) -> list[Child]:
        children = (slot.child for slot in self._slots)  # each read once: the watcher may take one away meanwhile
        return [child for child in children if child is not None]

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY_S):
            for slot in self._slots:
                if slot.child is not None:
                    self._notice_death(slot, slot.child)
                elif not slot.stays_down and time.monotonic() >= slot.restart_at:
                    self._start_again(slot)

    def _notice_death(self, slot: _Slot, child: Child) -> None:
        code = child.poll()
        if code is None:
            return
        lived_s = time.monotonic() - slot.started_at
        slot.exit_code = code
        if code in self._stay_down:
            slot.stays_down, slot.restart_at, slot.quick_deaths = True, 0.0, 0
            slot.child = None
            self._say(f"{slot.name} (pid {child.pid}) {_ending(code)}, and stays down: {self._stay_down[code]}")
            self._went_down()
            return
        slot.child = None
        wait_s = self._schedule(slot, quick=lived_s < self._settled_after_s)
        self._say(
            f"{slot.name} (pid {child.pid}) {_ending(code)} after {lived_s:.1f} s; starting it again in {wait_s:.1f} s"
        )

    def _start_again(self, slot: _Slot) -> None:
        try:
            slot.child = slot.start()
            slot.started_at = time.monotonic()
        except Exception as error:  # one slot's trouble stays its own
            wait_s = self._schedule(slot, quick=True)
            self._say(f"{slot.name} could not be started: {error}; trying again in {wait_s:.1f} s")
        else:
            self._say(f"{slot.name} runs again (pid {slot.child.pid})")

    def _schedule(self, slot: _Slot, *, quick: bool) -> float:
        slot.quick_deaths = slot.quick_deaths + 1 if quick else 0
        wait_s = wait_before_restart(slot.quick_deaths)
        slot.restart_at = time.monotonic() + wait_s
        return wait_s

    def _say(self, line: str) -> None:
        with suppress(Exception):  # a terminal that went away must not end the supervision
            self._log(line)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was killed by {Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-code}"
