"""`muster dev` itself: how it begins, how it ends, and what it leaves behind."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.main_job.inputs import differing, expected, facts, path_of
from tests.main_job.running import PATIENCE_S, Dev, descendants
from tests.waiting import has_ended, wait_until


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
