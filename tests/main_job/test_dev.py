"""`muster dev` itself: how it begins, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from domain.log.keys import Keyspace
from tests.main_job.inputs import differing, expected, facts, path_of
from tests.main_job.running import MUSTER, PATIENCE_S, Dev, Muster, descendants
from tests.waiting import has_ended, wait_until
from tests.workers.test_reloading import takes_hangups
from workers.child_process import start_child

STORE: Final = Keyspace("dev", "main", 32)


@pytest.mark.usefixtures("real_logs")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_the_next_start_goes_on_from_there(
    tmp_path: Path, start_dev: Callable[[Path], Dev], number: signal.Signals
) -> None:
    """Stopped right after an import, by a signal to it alone: exit 0, one line said, nothing lost and nothing twice."""
    dev = start_dev(tmp_path / "data")
    dev.muster.ok("event", "import", path_of("coding_agents"))
    said = f"ready {dev.url}\n"

    assert dev.stop(number) == 0, dev.err
    assert dev.out == said

    dev = start_dev(tmp_path / "data")
    assert dev.out == said, "the same port, so that whoever is connected finds it again"
    dev.muster.caught_up()
    should = expected("coding_agents")
    assert not differing({name: facts(row) for name, row in dev.muster.sessions().items()}, should.facts)
    assert dev.muster.findings() == []
    listed = dev.muster.ok("session", "ls", "--all", "-o", "jsonl")

    assert dev.stop(number) == 0, dev.err
    dev = start_dev(tmp_path / "data")
    assert dev.muster.ok("session", "ls", "--all", "-o", "jsonl") == listed
    again = dev.muster.document("event", "import", path_of("coding_agents"))
    assert (again["appended"], again["duplicates"]) == (0, again["lines"])


@pytest.mark.parametrize("when", ["ready", "starting"])
def test_without_a_data_directory_nothing_is_left(tmp_path: Path, when: str) -> None:
    """Its data lies under $TMPDIR and goes with it, also when it is stopped before it is ready."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with Dev(tmp_path, None, TMPDIR=str(temporary)) as dev:
        if when == "ready":
            assert list(temporary.iterdir())
            dev.muster.ok("event", "append", "s-1", "start", "--actor", "a")
        else:
            assert dev.stop() == 0
            dev.launch()
            wait_until(lambda: list(temporary.iterdir()), timeout_s=PATIENCE_S)
        assert dev.stop() == 0, dev.err
        assert list(temporary.iterdir()) == []
        assert dev.out.count("\n") <= 1


def test_nothing_outlives_a_dev_that_was_killed(tmp_path: Path, start_dev: Callable[[Path], Dev]) -> None:
    """SIGKILL to it alone: server and workers end by themselves, and the next start finds all that was appended."""
    dev = start_dev(tmp_path / "data")
    dev.muster.ok("event", "append", "s-1", "start", "--actor", "a")
    dev.muster.caught_up()
    before = dev.muster.ok("session", "ls", "--all", "-o", "jsonl")
    family = descendants(dev.pid)
    assert len(family) == 3, "a server and two workers"

    assert dev.stop(signal.SIGKILL, waits_for_children=True) == -signal.SIGKILL

    assert all(map(has_ended, family))
    dev = start_dev(tmp_path / "data")
    assert dev.muster.ok("session", "ls", "--all", "-o", "jsonl") == before


def test_a_data_directory_serves_one_dev_at_a_time(tmp_path: Path, start_dev: Callable[[Path], Dev]) -> None:
    """A second one is refused with the cause and the remedy, and does no harm to the first."""
    dev = start_dev(tmp_path / "data")

    refused = dev.muster.run("dev", "--data-dir", tmp_path / "data")

    assert (refused.code, refused.out) == (3, "")
    assert refused.err.startswith("error: DATA_DIR_IN_USE: ")
    assert "\nremedy: " in refused.err
    dev.muster.ok("event", "append", "s-1", "start", "--actor", "a")


def written(toml: Path, beat_ms: int, more: str = "") -> None:
    """As one step, like an editor that is careful."""
    beside = toml.with_suffix(".new")
    beside.write_text(f"[worker]\nbeat_ms = {beat_ms}\nlease_ttl_ms = 8000\n{more}")
    beside.rename(toml)


def lifetimes(client: Any) -> list[int]:
    """For how long each worker's sign of life is good: four beats."""
    return [client.pttl(STORE.worker(name.decode())) for name in client.zrange(STORE.workers, 0, -1)]


def test_settings_that_change_reach_its_workers(tmp_path: Path) -> None:
    """Without a new start of anything; by SIGHUP at once. Its server's address is its own, whatever the file says."""
    toml = tmp_path / "own.toml"
    written(toml, 100, '[redis]\nurl = "redis://elsewhere:1"\n')
    with Dev(tmp_path, None, MUSTER_CONFIG=str(toml)) as dev:
        client: Any = dev.client
        wait_until(lambda: len(lifetimes(client)) == 2, message="both live")
        assert all(lifetime <= 400 for lifetime in lifetimes(client))
        wait_until(lambda: takes_hangups(dev.pid), message="it takes changes")
        family = descendants(dev.pid)

        written(toml, 2000, '[redis]\nurl = "redis://another:1"\n[jobs]\nurl = "redis://another:1/1"\n')

        wait_until(lambda: [one > 4000 for one in lifetimes(client)] == [True, True], message="both beat slower")
        assert "settings reloaded: worker.beat_ms: 100 → 2000\n" in dev.err
        wait_until(lambda: client.xlen(STORE.audit), message="it is audited")
        ((_, audited),) = client.xrange(STORE.audit)
        assert json.loads(audited[b"changes"]) == {"worker.beat_ms": {"was": 100, "is": 2000}}
        os.kill(dev.pid, signal.SIGHUP)
        wait_until(lambda: "settings reloaded: nothing differs" in dev.err, message="it is read at once")
        assert descendants(dev.pid) == family


def test_it_ends_with_its_terminal(tmp_path: Path) -> None:
    """SIGHUP says so then: nothing goes on where nobody sees it, and nothing is left."""
    temporary, said = tmp_path / "tmp", tmp_path / "said"
    temporary.mkdir()
    terminal, end = os.openpty()
    with said.open("wb") as out:
        dev = start_child([MUSTER, "dev"], env=Muster(TMPDIR=str(temporary)).environ, stdout=out, stderr=end)
    os.close(end)
    try:
        wait_until(lambda: takes_hangups(dev.pid), timeout_s=PATIENCE_S, message="it takes the signal")
        family = descendants(dev.pid)
        assert len(family) == 3, "a server and two workers"

        os.close(terminal)
        dev.send_signal(signal.SIGHUP)

        dev.wait(PATIENCE_S)
        assert all(map(has_ended, family))
        assert list(temporary.iterdir()) == []
    finally:
        dev.kill()
        dev.wait()
