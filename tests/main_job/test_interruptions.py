"""Imports during which something dies: what comes of them is what would have come of them anyway."""

from __future__ import annotations

import json
import os
import signal
from threading import Event, Thread
from typing import Any

import pytest

from tests.main_job.inputs import differing, expected, facts, lines_of, path_of
from tests.main_job.running import PATIENCE_S, Answer, Dev, Muster, feeding
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("real_logs")


def split(lines: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Most lines, and the last tenth, which keeps an import from ending."""
    at = len(lines) * 9 // 10
    return lines[:at], lines[at:]


def wait_until_appended(dev: Dev, events: int) -> None:
    wait_until(lambda: dev.appended() >= events, timeout_s=PATIENCE_S, message=f"{events} events appended")


def is_what_its_source_says(muster: Muster, name: str) -> None:
    """Sessions and agents are what they would be without any interruption, and verification finds nothing."""
    muster.caught_up()
    should = expected(name)
    sessions = {session: row for session, row in muster.sessions().items() if session in should.sessions}
    assert not differing({session: facts(row) for session, row in sessions.items()}, should.facts)
    agents = {agent: (row["events"], row["sessions"]) for agent, row in muster.agents().items() if agent != "witness"}
    assert not differing(agents, {agent: (part.events, part.sessions) for agent, part in should.agents.items()})
    assert muster.findings() == []


def report_of(answer: Answer) -> dict[str, Any]:
    (line,) = answer.out.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found["appended"] + found["duplicates"] + found["refused"] == found["lines"] or answer.code == 5
    return found


def test_an_import_that_was_killed_half_way_is_completed_by_the_next(dev: Dev) -> None:
    """SIGKILL in the middle of a file; the same file again appends just what is missing, and all is as it should be."""
    muster = dev.muster
    lines = lines_of("receipt")
    with feeding(muster, *split(lines), rate=5000) as half:
        wait_until_appended(dev, len(lines) // 4)
        half.process.kill()
    there = muster.appended()
    assert len(lines) // 4 <= there < len(lines)

    report = muster.document("event", "import", path_of("receipt"))

    assert (report["appended"], report["duplicates"]) == (len(lines) - there, there)
    is_what_its_source_says(muster, "receipt")


def test_two_imports_of_one_file_at_once_append_it_once(dev: Dev) -> None:
    """Each line is appended by one of them and a duplicate for the other; neither fails."""
    muster = dev.muster
    lines = lines_of("receipt")
    with feeding(muster, *split(lines), rate=5000) as one, feeding(muster, *split(lines), rate=5000) as other:
        wait_until_appended(dev, len(lines) // 2)
        answers = [one.finish(), other.finish()]

    reports = [report_of(answer) for answer in answers]
    assert [answer.code for answer in answers] == [0, 0], answers
    assert [report["lines"] for report in reports] == [len(lines)] * 2
    assert sum(report["appended"] for report in reports) == len(lines)
    is_what_its_source_says(muster, "receipt")


def test_workers_killed_during_an_import_are_replaced_and_nothing_is_missed(dev: Dev) -> None:
    """Three times a worker is killed with SIGKILL: `worker ls` drops it, two live again, and every view is right."""
    muster = dev.muster
    lines = lines_of("receipt")
    with feeding(muster, *split(lines), rate=5000) as running:
        for part in (1, 2, 3):
            wait_until_appended(dev, len(lines) * part // 5)
            kill_a_worker(muster)
        answer = running.finish()

    assert answer.code == 0, answer
    assert report_of(answer)["appended"] == len(lines)
    is_what_its_source_says(muster, "receipt")

    def is_shared() -> bool:
        held = [row["partitions"] for row in muster.workers().values()]
        return len(held) == 2 and sorted(partition for one in held for partition in one) == list(range(32))

    wait_until(is_shared, message="two workers share all partitions")


def kill_a_worker(muster: Muster) -> None:
    """Kills one of two workers, and returns when `worker ls` shows two again, and not that one."""
    living: list[int] = []

    def are_two() -> bool:
        living[:] = muster.workers()
        return len(living) == 2

    wait_until(are_two, message="two workers live")
    killed, other = living
    os.kill(killed, signal.SIGKILL)

    def is_replaced() -> bool:
        now = muster.workers()
        return len(now) == 2 and killed not in now and other in now

    wait_until(is_replaced, message=f"worker {killed} is replaced, and the other one lives on")


class Witness:
    """A producer that appends to a session of its own, one event a command, and keeps what was acknowledged."""

    def __init__(self, muster: Muster) -> None:
        self.receipts: list[dict[str, Any]] = []
        self._muster = muster
        self._stop = Event()
        self._thread = Thread(target=self._produce)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _produce(self) -> None:
        while not self._stop.is_set():
            answer = self._muster.run("event", "append", "witness", "note.taken", "--actor", "witness", "-o", "json")
            if answer.code == 0:
                self.receipts.append(json.loads(answer.out))


def test_a_server_that_was_killed_during_an_import_has_lost_nothing_it_acknowledged(dev: Dev) -> None:
    """SIGKILL to the server, which syncs before it answers: what it acknowledged is there, and the import completes."""
    muster = dev.muster
    lines = lines_of("receipt")
    dev.client.config_set("appendfsync", "always")
    killed = dev.server_pid
    with feeding(muster, *split(lines), rate=5000) as running, Witness(muster) as witness:
        wait_until_appended(dev, len(lines) // 4)
        wait_until(lambda: witness.receipts)
        os.kill(killed, signal.SIGKILL)
        enough = len(witness.receipts) + 2  # one may have been under way
        wait_until(lambda: len(witness.receipts) >= enough, timeout_s=PATIENCE_S, message="appends are answered again")
        interrupted = running.finish()
    assert dev.server_pid != killed

    assert interrupted.code in (0, 5), interrupted
    acknowledged = report_of(interrupted)["appended"]
    events = muster.rows("event", "tail", "witness", "-n", "100000")
    assert muster.appended() - len(events) >= acknowledged
    there = {event["seq"]: event["digest"] for event in events}
    for receipt in witness.receipts:
        assert there[receipt["last_seq"]] == receipt["digest"]

    report = muster.document("event", "import", path_of("receipt"))

    assert report["appended"] + report["duplicates"] == len(lines)
    assert report["duplicates"] >= acknowledged
    is_what_its_source_says(muster, "receipt")
