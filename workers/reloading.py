"""Settings that change while a process runs: the file changed, or SIGHUP came; checked, compared, swapped, audited.

    read anew → invalid: nothing changes → a setting that is fixed at the start differs: named, nothing changes
              → swapped at once, for this process and the workers it keeps → audited with what it was and is

All or nothing: of a file that holds something bad, or something that needs a new start, nothing is taken. What may
change is the table `RELOADABLE` beside the settings.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from types import FrameType
from typing import Any, Final, TypeAlias

import redis

from domain.errors import Misconfigured, MusterError
from domain.log import SessionLog
from workers.readiness import quick
from workers.settings import RELOADABLE, Reading, Settings, load, masked, values

#: How often the files are looked at, in seconds. One that changed is read when it stayed as it is for as long, since
#: whoever writes it may not be done.
LOOK_EVERY_S: Final = 0.5
#: The argument with which a worker process is told its settings by whoever keeps it, on its standard input.
FOLLOWS: Final = "--settings-on-stdin"
_STDERR: Final = 2

#: What differs: of each setting what it was and what it is, as it may be shown.
Changes: TypeAlias = dict[str, tuple[Any, Any]]


class InForce:
    """The settings in force in this process. Who needs to be told of a change is told in the order of `tell`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._told: list[Callable[[Settings], None]] = []
        self._checks: list[Callable[[Settings], None]] = []
        self._lock = Lock()

    @property
    def settings(self) -> Settings:
        return self._settings

    def tell(self, take: Callable[[Settings], None], *, check: Callable[[Settings], None] | None = None) -> None:
        """Has `take` be told of every change from now on; `check` may refuse one before, with Misconfigured."""
        self._told.append(take)
        if check is not None:
            self._checks.append(check)

    def swap(self, settings: Settings) -> Changes:
        """Puts other settings in force; returns what differs. Raises Misconfigured and changes nothing if a setting
        differs that is fixed at the start (SETTING_FIXED), or that somebody here cannot take (SETTING_INVALID).
        """
        with self._lock:
            changes = difference(self._settings, settings)
            if fixed := [name for name in changes if name not in RELOADABLE]:
                told = "; ".join(f"{name} ({changes[name][0]} → {changes[name][1]})" for name in fixed)
                raise Misconfigured("SETTING_FIXED", f"fixed at the start: {told}; nothing was changed", keys=fixed)
            for check in self._checks:
                check(settings)
            self._settings = settings
            if changes:
                for take in self._told:
                    take(settings)
            return changes


def difference(before: Settings, after: Settings) -> Changes:
    """The settings that differ, by name; secrets as they may be shown."""
    was, now = values(before), values(after)
    return {name: (masked(name, was[name]), masked(name, now[name])) for name in now if was[name] != now[name]}


class Reloading:
    """Reads the sources of settings again when a file of theirs changed or SIGHUP came.

    `own` makes of settings as they are read those of this process. `hung_up` is called instead where SIGHUP came
    because the terminal of this process is gone.
    """

    def __init__(
        self,
        reading: Reading,
        in_force: InForce,
        *,
        who: str,
        say: Callable[[str], None],
        own: Callable[[Settings], Settings] = lambda settings: settings,
        hung_up: Callable[[], None] | None = None,
    ) -> None:
        self._reading = reading
        self._in_force = in_force
        self._who = who
        self._say = say
        self._own = own
        self._hung_up = hung_up
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._seen = self._signature()
        self._thread = Thread(target=self._run, name="reloading", daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watches the files, and takes SIGHUP, for the time of the block. To be entered by the main thread."""

        has_terminal = os.isatty(_STDERR)

        def hang_up(number: int, frame: FrameType | None) -> None:
            if self._hung_up is not None and has_terminal and not os.isatty(_STDERR):
                self._hung_up()
            else:
                self._asked.put(True)

        before = signal.signal(signal.SIGHUP, hang_up)
        found = self._reading.loaded().settings
        if found is None or self._own(found) != self._in_force.settings:
            self._asked.put(True)  # written since they were read, while this process started
        self._thread.start()
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, before)
            self._asked.put(False)
            self._thread.join()

    def reload(self) -> Changes:
        """Reads, checks and swaps; says what came of it, and writes it into the audit stream. Raises nothing."""
        loaded = self._reading.loaded()
        if loaded.settings is None:
            for problem in loaded.problems:
                self._say(f"settings not reloaded, nothing was changed: {problem}")
            return {}
        try:
            changes = self._in_force.swap(self._own(loaded.settings))
        except MusterError as error:
            self._say(f"settings not reloaded: {error}")
            return {}
        except Exception as error:  # a bug in who takes them must not end the watching
            self._say(f"settings reloaded, and not taken by all: {type(error).__name__}: {error}")
            return {}
        if not changes:
            self._say("settings reloaded: nothing differs")
            return {}
        told = "; ".join(f"{name}: {was} → {now}" for name, (was, now) in changes.items())
        self._say(f"settings reloaded: {told}")
        self._audit(changes)
        return changes

    def _run(self) -> None:
        changed = False
        while True:
            try:
                if not self._asked.get(timeout=LOOK_EVERY_S):
                    return
                self._seen, changed = self._signature(), False
                self.reload()
            except Empty:
                before, self._seen = self._seen, self._signature()
                if self._seen != before:
                    changed = True
                elif changed:
                    changed = False
                    self.reload()

    def _signature(self) -> list[tuple[int, int, int] | None]:
        """What tells that a file is another than before."""
        found: list[tuple[int, int, int] | None] = []
        for path in self._reading.files():
            try:
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except (OSError, ValueError):
                found.append(None)
        return found

    def _audit(self, changes: Changes) -> None:
        settings = self._in_force.settings
        try:
            with SessionLog.open(
                quick(settings), environment=settings.environment, namespace=settings.namespace
            ) as log:
                told = json.dumps({name: {"was": was, "is": now} for name, (was, now) in changes.items()}, default=str)
                client: Any = log.client
                client.xadd(log.keyspace.audit, {"who": self._who, "what": "settings reloaded", "changes": told})
        except (MusterError, redis.RedisError, OSError) as error:
            self._say(f"that settings were reloaded could not be noted in the audit stream: {error}")


def follow_stdin(in_force: InForce, say: Callable[[str], None]) -> None:
    """Has this process take the settings that whoever keeps it sends, a line each, for as long as it does."""

    def run() -> None:
        for line in sys.stdin:
            try:
                in_force.swap(load(json.loads(line)))
            except Exception as error:  # whatever is sent must not end the listening
                say(f"settings not taken over: {type(error).__name__}: {error}")

    Thread(target=run, name="settings", daemon=True).start()


def line_for_worker(settings: Settings) -> bytes:
    """Settings as `follow_stdin` reads them."""
    return json.dumps(settings.environ()).encode() + b"\n"


def name_of_process(what: str) -> str:
    """Who reloads, for the audit stream."""
    return f"{what}@{os.uname().nodename}:{os.getpid()}"
