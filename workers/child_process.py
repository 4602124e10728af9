"""Child processes that end with their parent, and only then: every process Muster starts is started here.

Three promises, for a server or a worker alike:

- A terminal's Ctrl-C does not reach it. It has a session and a group of its own; its parent decides when it ends.
- It does not outlive its parent, however that ended. The kernel sends it SIGTERM (PR_SET_PDEATHSIG, Linux only).
- Its group ends with it. What it forked is killed when it is gone, so that no worker goes on without its master.

Theory of operation. The kernel's "parent" of PR_SET_PDEATHSIG is the *thread* that forked, not the process: a child
forked by a thread that ends gets its SIGTERM then, while the process lives on. So one thread forks for all and lives as
long as the process. It is a daemon: nothing may wait for it when the interpreter ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Final

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>


class ChildProcess(subprocess.Popen[bytes]):
    """A child that leads a group of its own. `terminate` asks the child; `kill` takes the whole group.

    However the child ended, what is left of its group is killed when its end is noticed (`poll`, `wait`).
    """

    _group_ended = False

    def poll(self) -> int | None:
        code = super().poll()
        self._end_group_of_the_dead()
        return code

    def wait(self, timeout: float | None = None) -> int:
        code = super().wait(timeout)
        self._end_group_of_the_dead()
        return code

    def kill(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _end_group_of_the_dead(self) -> None:
        # Once, and right after the child was reaped. While a member lives, the kernel gives the group's number to no
        # other; later it may.
        if self.returncode is not None and not self._group_ended:
            self._group_ended = True
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def start_child(
    args: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
) -> ChildProcess:
    """Starts a program under the promises of this module. May be called from any thread, also one that ends soon.

    Raises OSError when the program cannot be run.
    """
    # Taken here, not in the forking thread, so that a child never sees a parent other than the caller's process.
    in_child = _bind_to_parent(os.getpid()) if sys.platform == "linux" else None

    def fork() -> ChildProcess:
        return ChildProcess(
            args,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            start_new_session=True,
            # Python warns of `preexec_fn` beside threads: only the forking thread lives on in the child, and a lock
            # that another held stays locked. What runs here imports nothing, logs nothing, makes three system calls.
            preexec_fn=in_child,
        )

    return _the_forker().run(fork)


def _bind_to_parent(parent: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # bound before the fork: looking it up takes the loader's lock
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong]

    def in_child() -> None:
        # Whoever blocks signals while it starts children (Dramatiq's master does) must not leave them deaf to SIGTERM.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above: nobody will send the signal any more
            os._exit(128 + signal.SIGTERM)

    return in_child


class _Forker:
    """The thread that forks, one a process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._asked: SimpleQueue[tuple[Callable[[], ChildProcess], Future[ChildProcess]]] = SimpleQueue()
        threading.Thread(target=self._serve, name="muster-forker", daemon=True).start()

    def run(self, fork: Callable[[], ChildProcess]) -> ChildProcess:
        answer: Future[ChildProcess] = Future()
        self._asked.put((fork, answer))
        return answer.result()

    def _serve(self) -> None:
        while True:
            fork, answer = self._asked.get()
            try:
                answer.set_result(fork())
            except BaseException as error:  # this thread must not end: its end would end all children
                answer.set_exception(error)
            del fork, answer  # else the last child stays referenced until the next one is asked for


_forker: _Forker | None = None
_forker_lock = threading.Lock()


def _the_forker() -> _Forker:
    global _forker
    with _forker_lock:
        if _forker is None or _forker.pid != os.getpid():  # a fork of this process inherits the object, not its thread
            _forker = _Forker()
        return _forker
