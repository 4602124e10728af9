"""The supervisor and child processes, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tests.waiting import has_ended, wait_until
from workers.child_process import ChildProcess, _bind_to_parent, start_child
from workers.supervisor import Supervisor, wait_before_restart

#: Leaves a file `ready-<pid>` in argv[1] when it can be stopped, and `asked-<pid>` when it is asked to; then it ends
#: with the code argv[2], or `never`.
CHILD = """
import os, signal, sys
from pathlib import Path

def on_term(number, frame):
    Path(sys.argv[1], f"asked-{os.getpid()}").touch()
    if sys.argv[2] != "never":
        os._exit(int(sys.argv[2]))

signal.signal(signal.SIGTERM, on_term)
Path(sys.argv[1], f"ready-{os.getpid()}").touch()
while True:
    signal.pause()
"""

#: Supervises two children that do not react to SIGINT, and lives on until it is killed.
PARENT = """
import sys, time
from functools import partial
from workers.child_process import start_child
from workers.supervisor import Supervisor

child = partial(start_child, [sys.executable, "-c", "import time; time.sleep(600)"])
supervisor = Supervisor({"a": child, "b": child}, log=print)
supervisor.start()
print(*supervisor.pids.values(), flush=True)
while True:
    time.sleep(60)
"""


def child(folder: Path, on_term: str = "0") -> Callable[[], ChildProcess]:
    return partial(start_child, [sys.executable, "-c", CHILD, folder, on_term])


def wait_until_ready(supervisor: Supervisor, folder: Path, count: int) -> None:
    """Returns when `count` children run and react to signals."""
    wait_until(
        lambda: len([pid for pid in supervisor.pids.values() if (folder / f"ready-{pid}").exists()]) == count,
        message=f"{count} children are ready",
    )


def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    """A slot whose child was killed has another one soon; the other slots keep theirs."""
    lines: list[str] = []
    with Supervisor({"a": child(tmp_path), "b": child(tmp_path)}, log=lines.append) as supervisor:
        wait_until_ready(supervisor, tmp_path, 2)
        before = supervisor.pids

        os.kill(before["a"], signal.SIGKILL)
        wait_until(lambda: supervisor.pids.get("a", before["a"]) != before["a"], message="a is started again")
        wait_until_ready(supervisor, tmp_path, 2)

        assert supervisor.pids["b"] == before["b"]
    assert lines[0].startswith(f"a (pid {before['a']}) was killed by SIGKILL")
    assert lines[1].startswith("a runs again")


def test_a_stop_waits_until_every_child_has_ended(tmp_path: Path) -> None:
    """Each child ends in its own time with its own code; when all ended with 0, `stop` says so."""
    supervisor = Supervisor({"a": child(tmp_path), "b": child(tmp_path)}, log=print)
    supervisor.start()
    wait_until_ready(supervisor, tmp_path, 2)
    pids = supervisor.pids.values()

    assert supervisor.stop()
    assert supervisor.stop()

    assert supervisor.exit_codes == {"a": 0, "b": 0}
    assert supervisor.pids == {}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_stop_tells_which_child_failed(tmp_path: Path) -> None:
    """One exit code other than 0 is enough for `stop` to answer False."""
    supervisor = Supervisor({"good": child(tmp_path), "bad": child(tmp_path, "7")}, log=print)
    supervisor.start()
    wait_until_ready(supervisor, tmp_path, 2)

    assert not supervisor.stop()

    assert supervisor.exit_codes == {"good": 0, "bad": 7}


def test_a_stubborn_child_is_killed_after_the_timeout(tmp_path: Path) -> None:
    """A child that does not react to SIGTERM gets SIGKILL, and is told apart from one that drained."""
    lines: list[str] = []
    supervisor = Supervisor({"good": child(tmp_path), "stubborn": child(tmp_path, "never")}, log=lines.append)
    supervisor.start()
    wait_until_ready(supervisor, tmp_path, 2)
    pid = supervisor.pids["stubborn"]

    assert not supervisor.stop(timeout_s=5)

    assert supervisor.exit_codes == {"good": 0, "stubborn": -signal.SIGKILL}
    assert lines == [f"stubborn (pid {pid}) did not end in time; killing it"]


def test_a_kill_ends_a_stop_that_waits(tmp_path: Path) -> None:
    """What the second SIGTERM does: nobody waits out the timeout of a child that hangs."""
    supervisor = Supervisor({"stubborn": child(tmp_path, "never")}, log=print)
    supervisor.start()
    wait_until_ready(supervisor, tmp_path, 1)
    stopped: list[bool] = []
    stopping = threading.Thread(target=lambda: stopped.append(supervisor.stop(timeout_s=600)))
    stopping.start()
    wait_until(lambda: list(tmp_path.glob("asked-*")), message="the child was asked to end")

    supervisor.kill()
    stopping.join(60)

    assert stopped == [False]
    assert supervisor.exit_codes == {"stubborn": -signal.SIGKILL}


def test_the_wait_before_a_restart_doubles_up_to_a_limit() -> None:
    """A first death is mended within a second, a crash loop does not eat the machine."""
    assert [wait_before_restart(deaths) for deaths in (0, 1, 2, 3, 4, 5, 6, 100_000)] == [
        0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0,
    ]  # fmt: skip


def test_a_child_that_keeps_dying_is_started_less_and_less_often() -> None:
    """The starts of a child that dies at once lie further and further apart."""
    starts: list[float] = []

    def dies_at_once() -> ChildProcess:
        starts.append(time.monotonic())
        return start_child(["false"])

    with Supervisor({"a": dies_at_once}, log=print, settled_after_s=600):
        wait_until(lambda: len(starts) >= 4)

    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert all(gap >= wait_before_restart(deaths) for deaths, gap in enumerate(gaps, start=1))


def test_a_child_that_had_settled_is_started_again_without_delay() -> None:
    """A death after a long life is the first of a row, whatever came before."""
    lines: list[str] = []
    with Supervisor({"a": partial(start_child, ["false"])}, log=lines.append, settled_after_s=0):
        wait_until(lambda: len(lines) >= 8)

    deaths = [line for line in lines if "ended with 1" in line]
    assert deaths
    assert all(line.endswith("starting it again in 0.1 s") for line in deaths)


def test_a_program_that_cannot_be_started_does_not_trouble_the_others(tmp_path: Path) -> None:
    """When a restart fails (the program was moved away), it is tried again; others are looked after as before."""
    program = tmp_path / "program"
    program.symlink_to("/bin/false")
    lines: list[str] = []
    moved = partial(start_child, [program])
    with Supervisor({"moved": moved, "b": child(tmp_path)}, log=lines.append) as supervisor:
        program.unlink()
        wait_until(lambda: any("moved could not be started" in line for line in lines))
        wait_until_ready(supervisor, tmp_path, 1)
        first = supervisor.pids["b"]

        os.kill(first, signal.SIGKILL)

        wait_until(lambda: supervisor.pids.get("b", first) != first)


def test_a_log_that_fails_does_not_end_the_supervision(tmp_path: Path) -> None:
    """A closed terminal must not be the end of all workers."""

    def log(line: str) -> None:
        raise BrokenPipeError(line)

    with Supervisor({"a": child(tmp_path)}, log=log) as supervisor:
        first = supervisor.pids["a"]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: supervisor.pids.get("a", first) != first)


def test_nothing_is_left_running_when_one_cannot_start_at_first(tmp_path: Path) -> None:
    """A first start is all or nothing."""
    started: list[ChildProcess] = []

    def start() -> ChildProcess:
        started.append(child(tmp_path)())
        return started[-1]

    with pytest.raises(FileNotFoundError):
        Supervisor({"a": start, "b": partial(start_child, [tmp_path / "nothing"])}, log=print).start()

    assert [process.returncode is not None for process in started] == [True]


def test_children_end_when_their_parent_is_killed() -> None:
    """No worker is left behind by a kill -9 of its supervisor."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(has_ended(pid) for pid in pids)
        parent.kill()

    wait_until(lambda: all(has_ended(pid) for pid in pids), message="the children end")


def test_a_terminals_interrupt_does_not_reach_the_children(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to its foreground group; each child has a session and a group of its own."""
    with Supervisor({"a": child(tmp_path), "b": child(tmp_path)}, log=print) as supervisor:
        for pid in supervisor.pids.values():
            assert os.getsid(pid) == pid != os.getsid(0)
            assert os.getpgid(pid) == pid != os.getpgid(0)


def test_a_child_outlives_the_thread_that_started_it() -> None:
    """The kernel ties a child to a thread; ours is tied to one that lives as long as the process."""
    started: list[ChildProcess] = []
    thread = threading.Thread(
        target=lambda: started.append(start_child(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    )
    thread.start()
    number = thread.native_id
    thread.join()
    wait_until(lambda: not Path(f"/proc/self/task/{number}").exists(), message="the kernel's thread is gone too")

    (echo,) = started
    with echo:
        out, _ = echo.communicate(b"still here")  # a signal sent before would be acted upon before this is read

    assert out == b"still here"
    assert echo.returncode == 0


def test_a_child_hears_sigterm_also_when_its_starter_blocks_it() -> None:
    """Blocked signals are inherited; a child must not be deaf for that."""
    script = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
from workers.child_process import start_child
process = start_child([sys.executable, "-c", "import time; time.sleep(600)"])
process.terminate()
print(process.wait())
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)

    assert int(answer.stdout) == -signal.SIGTERM


def test_a_child_whose_parent_is_gone_before_it_begins_does_not_begin(tmp_path: Path) -> None:
    """The kernel tells of a parent's death once; a child that comes too late to hear of it must look for itself."""
    begun = tmp_path / "begun"
    somebody_else = os.getppid()

    with subprocess.Popen(["touch", begun], preexec_fn=_bind_to_parent(somebody_else)) as late:
        assert late.wait() == 128 + signal.SIGTERM

    assert not begun.exists()


def test_what_a_child_forked_ends_with_it() -> None:
    """When a master is killed, what is left of its group is killed as well: no worker goes on without it."""
    master = start_child(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE)
    with master:
        assert master.stdout is not None
        forked = int(master.stdout.readline())

        os.kill(master.pid, signal.SIGKILL)
        master.wait()

        wait_until(lambda: has_ended(forked), message="the forked process ends")


def test_a_process_that_was_forked_starts_children_of_its_own() -> None:
    """A fork inherits no threads: it must not wait for the forking thread of its parent."""
    script = """
import os
from workers.child_process import start_child
start_child(["true"]).wait()
pid = os.fork()
if pid == 0:
    os._exit(start_child(["sh", "-c", "exit 5"]).wait())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore::DeprecationWarning"}  # to fork beside a thread is the point
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True, env=environment
    )

    assert int(answer.stdout) == 5
