"""Stored state damaged behind Muster's back: what is found, what comes back, and what goes on meanwhile.

A store is filled once; every test damages a copy of its data directory, served by a `muster dev` of its own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any, Final, NamedTuple

import pytest

from domain.log.keys import Keyspace
from projections import agent_view, session_view
from tests.chaos.effort import seeded
from tests.main_job.inputs import derived, differing, lines_of, written
from tests.main_job.running import PATIENCE_S, Dev, Muster, feeding
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("real_logs")

KEYS: Final = Keyspace("dev", "main", 32)
VIEWS: Final = 50
CHECKPOINTS: Final = 20
#: The logs are brought in by so many imports, one after the other, so that sessions consist of several commits.
PARTS: Final = 4
RECEIPTS: Final = 2_000
INCIDENTS: Final = 3_000
#: One session a writer appends to, again and again.
WRITTEN_SESSIONS: Final = 64

StartDev = Callable[[Path], Dev]


@pytest.fixture(scope="module")
def filled(real_logs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with sessions of several commits, all caught up with; nothing runs on it."""
    scratch = tmp_path_factory.mktemp("filled")
    logs = [lines_of("coding_agents"), lines_of("receipt")[:RECEIPTS], lines_of("incidents")[:INCIDENTS]]
    with Dev(scratch, scratch / "data") as dev:
        for part in range(PARTS):
            chunk = [line for log in logs for line in log[len(log) * part // PARTS : len(log) * (part + 1) // PARTS]]
            dev.muster.document("event", "import", "-", stdin=b"".join(chunk))
        dev.muster.caught_up()
    return scratch / "data"


@pytest.fixture
def copy(filled: Path, tmp_path: Path) -> Path:
    """A copy of the filled data directory for a test of its own."""
    return shutil.copytree(filled, tmp_path / "data")


@pytest.fixture
def dev(copy: Path, start_dev: StartDev) -> Dev:
    """A `muster dev` on a copy of the filled data directory."""
    return start_dev(copy)


@pytest.fixture
def chance() -> random.Random:
    """What decides on the damage."""
    return seeded()


# -- damage ------------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What a finding must say."""

    kind: str
    session: str | None
    first_bad_seq: int | None
    quarantined: bool


def found(muster: Muster) -> list[Found]:
    """What verification finds, ordered."""
    return sorted(
        Found(row["kind"], row["session"], row["first_bad_seq"], row["quarantined"]) for row in muster.findings()
    )


class Damage:
    """Damages what is stored, and keeps what verification must find."""

    def __init__(self, dev: Dev, chance: random.Random) -> None:
        self.client: Any = dev.client
        self.chance = chance
        self.sessions = dev.muster.sessions()
        self.before = derived(dev.client)
        self.expected: list[Found] = []
        self.altered: dict[str, str] = {}

    def views(self, number: int, *, without: Collection[str] = ()) -> None:
        """Alters views of sessions, each in one of several ways."""
        ways = [self._flipped, self._deleted, self._anothers, self._truncated, self._resealed, self._older]
        names = sorted(self.sessions.keys() - set(without))
        old = [name for name in names if self._older_checkpoints(name)]
        for at in range(number):
            way = ways[at % len(ways)]
            session = self.chance.choice(old if way == self._older else names)
            names.remove(session)
            if session in old:
                old.remove(session)
            self.altered[session] = way.__name__
            view = self.before[self._view_key(session)]
            bad = way(session, view)
            assert bad != view
            if bad is None:
                self.client.delete(self._view_key(session))
            else:
                self.client.set(self._view_key(session), bad)
            self.expected.append(Found("view", session, self.sessions[session]["seq"], False))

    def checkpoints(self, number: int, *, without: Collection[str] = ()) -> None:
        """Deletes single checkpoints."""
        there = [
            (session, int(seq))
            for session in sorted(self.sessions.keys() - set(without))
            for seq in self.before.get(KEYS.of(session).checkpoints(session), {})
        ]
        for session, seq in self.chance.sample(there, number):
            assert self.client.hdel(KEYS.of(session).checkpoints(session), str(seq)) == 1
            self.expected.append(Found("checkpoint", session, seq, False))

    def commit(self, which: str) -> tuple[str, int]:
        """Deletes one commit from the log of one session; returns the session and the first seq of the commit."""
        logs = {session: self._commits(session) for session in sorted(self.sessions)}
        fitting = {
            session: log for session, log in logs.items() if (len(log) == 1 if which == "only" else len(log) > 2)
        }
        session = self.chance.choice(sorted(fitting))
        commits = fitting[session]
        at = {"first": 0, "only": 0, "middle": self.chance.randint(1, max(1, len(commits) - 2)), "last": -1}[which]
        last_seq, _, length = commits[at].partition("-")
        assert self.client.xdel(KEYS.of(session).log(session), commits[at]) == 1
        first_seq = int(last_seq) - int(length) + 1
        self.expected.append(Found("log", session, first_seq, False))
        return session, first_seq

    def _commits(self, session: str) -> list[str]:
        return [entry.decode() for entry, _ in self.client.xrange(KEYS.of(session).log(session))]

    def _view_key(self, session: str) -> str:
        return KEYS.of(session).session_view(session)

    def _older_checkpoints(self, session: str) -> list[bytes]:
        kept: dict[bytes, bytes] = self.before.get(KEYS.of(session).checkpoints(session), {})
        return [view for seq, view in sorted(kept.items()) if int(seq) < self.sessions[session]["seq"]]

    def _flipped(self, session: str, view: bytes) -> bytes:
        bad = bytearray(view)
        bad[self.chance.randrange(len(bad))] ^= self.chance.randint(1, 255)
        return bytes(bad)

    def _deleted(self, session: str, view: bytes) -> None:
        return None

    def _anothers(self, session: str, view: bytes) -> bytes:
        other = self.chance.choice(sorted(self.sessions.keys() - {session}))
        bad: bytes = self.before[self._view_key(other)]
        return bad

    def _truncated(self, session: str, view: bytes) -> bytes:
        return view[: self.chance.randrange(len(view))]

    def _resealed(self, session: str, view: bytes) -> bytes:
        """Another state under a checksum that fits, as a bug of ours might write it."""
        state = session_view.decode(view)
        state.event_types = {**state.event_types, "note.invented": 1}
        state.digest = state.digest[::-1]
        return session_view.encode(state)

    def _older(self, session: str, view: bytes) -> bytes:
        return self.chance.choice(self._older_checkpoints(session))


def of_others(content: dict[str, Any], sessions: set[str]) -> dict[str, Any]:
    """The views and checkpoints among what is stored, but for those of some sessions."""
    names = {name for s in sessions for name in (KEYS.of(s).session_view(s), KEYS.of(s).checkpoints(s))}
    kinds = (":view:session:", ":ckpt:")
    return {key: value for key, value in content.items() if key not in names and any(kind in key for kind in kinds)}


def totals_add_up(muster: Muster, sessions: dict[str, dict[str, Any]]) -> None:
    """The totals of agents are the sums over what the sessions say."""
    summed: dict[str, tuple[int, int]] = {}
    for row in sessions.values():
        for agent, part in row["agents"].items():
            events, number = summed.get(agent, (0, 0))
            summed[agent] = (events + part["events"], number + 1)
    agents = {agent: (row["events"], row["sessions"]) for agent, row in muster.agents().items()}
    assert not differing(agents, summed)


class Writer:
    """An import that goes on and on, into sessions in all partitions, until it is told to stop."""

    def __init__(self, sessions: list[str]) -> None:
        self.sessions = sessions
        self.stop = Event()

    def lines(self) -> Iterator[bytes]:
        for number in count():
            if self.stop.is_set():
                return
            session = self.sessions[number % len(self.sessions)]
            line = {"session": session, "type": "note.taken", "actor": "writer", "id": f"writer:{number}"}
            yield json.dumps(line).encode() + b"\n"


@contextmanager
def writing(dev: Dev, sessions: list[str]) -> Iterator[None]:
    """Appends go on during the block, and none of them fails."""
    muster, writer = dev.muster, Writer(sessions)
    before = muster.appended()
    with feeding(muster, writer.lines(), rate=200) as appends:
        try:
            wait_until(lambda: dev.appended() > before, timeout_s=PATIENCE_S, message="appends go on")
            yield
            so_far = dev.appended()
            wait_until(lambda: dev.appended() > so_far, timeout_s=PATIENCE_S, message="appends go on")
        finally:
            writer.stop.set()
        answer = appends.finish()
    report = json.loads(answer.out)
    assert (answer.code, report["appended"]) == (0, report["lines"]), answer
    assert muster.appended() == before + report["lines"]


# -- tests -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["middle", "first", "last", "only"])
def test_damage_is_found_exactly_and_what_can_be_repaired_is(dev: Dev, chance: random.Random, which: str) -> None:
    """Each damage is found, views come back to the byte, the session of the log is closed; appends go on meanwhile."""
    muster = dev.muster
    damage = Damage(dev, chance)
    lost, first_bad_seq = damage.commit(which)
    damage.views(VIEWS, without={lost})
    damage.checkpoints(CHECKPOINTS, without={lost})
    live = [f"live-{number}" for number in range(WRITTEN_SESSIONS)]

    # Where the commit was says nothing about appends to others: once is enough.
    with writing(dev, live) if which == "middle" else nullcontext():
        assert found(muster) == sorted(damage.expected)

        answer = muster.run("recover", "apply", "-o", "json")

        assert answer.code == 7, answer
        done = json.loads(answer.out)
        assert (done["found"], done["quarantined"], len(done["left"])) == (len(damage.expected), 1, 1)
    muster.caught_up()

    ours = {lost, *live}
    assert not differing(of_others(derived(dev.client), ours), of_others(damage.before, ours))
    after = muster.sessions()
    assert not differing(rows_of_others(after, ours), rows_of_others(damage.sessions, ours))
    row = after[lost]
    assert row["quarantined"]["first_bad_seq"] == first_bad_seq
    assert row["quarantined"]["code"]
    assert row["seq"] == first_bad_seq - 1
    assert muster.document("session", "show", lost) == row
    totals_add_up(muster, after)

    refused = muster.run("event", "append", lost, "note.taken", "--actor", "a")
    assert refused.code == 8, refused
    assert refused.err.startswith("error: QUARANTINED: ")
    assert found(muster) == [Found("log", lost, first_bad_seq, True)]


def rows_of_others(rows: dict[str, dict[str, Any]], sessions: set[str]) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in rows.items() if name not in sessions}


def test_damage_that_spares_the_log_is_repaired_altogether(dev: Dev, chance: random.Random) -> None:
    """While some of the sessions are appended to: the others come back to the byte, and nothing is found then."""
    muster = dev.muster
    damage = Damage(dev, chance)
    damage.views(VIEWS)
    damage.checkpoints(CHECKPOINTS)
    busy = set(sorted(name for name in damage.altered if damage.sessions[name]["state"] != "expired")[:10])

    assert found(muster) == sorted(damage.expected)
    with writing(dev, sorted(busy)):
        answer = muster.run("recover", "apply", "-o", "json")
        assert answer.code == 0, answer
        assert json.loads(answer.out)["left"] == []
    muster.caught_up()

    assert found(muster) == []
    assert not differing(of_others(derived(dev.client), busy), of_others(damage.before, busy))
    totals_add_up(muster, muster.sessions())


def test_a_reader_is_not_misled_by_a_damaged_view(dev: Dev, chance: random.Random) -> None:
    """Sessions are shown as their logs say, wherever the damage can be seen in the view alone."""
    damage = Damage(dev, chance)
    damage.views(VIEWS)

    shown = dev.muster.sessions()

    hidden = {session for session, way in damage.altered.items() if way in ("_older", "_resealed")}
    assert shown.keys() == damage.sessions.keys()
    for session in shown.keys() - hidden:
        assert shown[session] == damage.sessions[session], damage.altered.get(session)


def test_an_append_to_a_session_with_a_damaged_view_builds_the_view_again(dev: Dev, chance: random.Random) -> None:
    """The worker does not fold onto what it cannot trust: afterwards the views are right, and no session is parked."""
    muster = dev.muster
    damage = Damage(dev, chance)
    damage.views(VIEWS)
    lines = [
        json.dumps({"session": session, "type": "note.taken", "actor": "writer", "id": f"writer:{session}"}).encode()
        for session in damage.altered
    ]

    muster.ok("event", "import", "-", stdin=b"\n".join(lines))
    muster.caught_up()

    after = muster.sessions()
    for session in damage.altered:
        assert after[session]["seq"] == damage.sessions[session]["seq"] + 1, damage.altered[session]
    assert muster.findings() == []
    totals_add_up(muster, after)


def test_a_plan_touches_nothing(dev: Dev, chance: random.Random, tmp_path: Path) -> None:
    """`verify`, `recover plan` and `recover apply --dry-run` write nothing; the plan can be carried out later."""
    muster = dev.muster
    damage = Damage(dev, chance)
    lost, _ = damage.commit("middle")
    damage.views(5, without={lost})
    before = written(dev.client)
    plan = tmp_path / "plan.json"

    assert len(muster.findings()) == len(damage.expected)
    planned = muster.document("recover", "plan", "--file", plan)
    muster.ok("recover", "apply", "--dry-run")

    assert not differing(written(dev.client), before)
    assert {finding["session"] for finding in planned["findings"]} == {lost, *damage.altered}
    assert muster.run("recover", "apply", plan).code == 7
    assert muster.run("recover", "apply").code == 7, "a quarantined session stays a finding"
    assert found(muster) == [damage.expected[0]._replace(quarantined=True)]


def delete_everything_derived(client: Any) -> None:
    names = list(derived(client))
    for start in range(0, len(names), 5000):
        client.delete(*names[start : start + 5000])


@contextmanager
def frozen(workers: Iterable[int]) -> Iterator[None]:
    """Workers that do nothing during the block, as if their hosts stood still."""
    pids = list(workers)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_everything_derived_can_be_deleted_and_is_brought_back(dev: Dev) -> None:
    """Views, checkpoints, cursors and indexes: `recover apply` and `projection rebuild` need no worker for that."""
    muster = dev.muster
    before = derived(dev.client)
    workers: set[int] = set()

    def are_known() -> bool:
        workers.update(muster.workers())
        return len(workers) == 2

    wait_until(are_known, message="both workers hold partitions")
    with frozen(workers):
        wait_until(lambda: not any(row["owner"] for row in lag_of(muster)), message="the leases ran out")
        for command in (("recover", "apply"), ("projection", "rebuild")):
            delete_everything_derived(dev.client)
            assert {finding["kind"] for finding in muster.findings()} == {"cursor"}
            muster.ok(*command)
            assert not differing(derived(dev.client), before), command
    assert muster.findings() == []


def lag_of(muster: Muster) -> list[dict[str, Any]]:
    """How far each partition is, and who works on it."""
    found: list[dict[str, Any]] = muster.document("projection", "lag")["partitions"]
    return found


@pytest.mark.parametrize("is_restarted", [False, True], ids=["while it runs", "before a restart"])
def test_everything_derived_can_be_deleted_and_comes_back_by_itself(
    dev: Dev, copy: Path, start_dev: StartDev, is_restarted: bool
) -> None:
    """Workers notice, without any append; sessions are shown rightly all the while."""
    muster = dev.muster
    before = derived(dev.client)
    listed = muster.ok("session", "ls", "--all", "-o", "jsonl")

    delete_everything_derived(dev.client)
    assert muster.ok("session", "ls", "--all", "-o", "jsonl") == listed
    if is_restarted:
        assert dev.stop() == 0
        dev = start_dev(copy)
        muster = dev.muster
    muster.caught_up()

    assert not differing(derived(dev.client), before)
    assert muster.ok("session", "ls", "--all", "-o", "jsonl") == listed
    assert muster.findings() == []


def test_totals_of_agents_are_found_and_repaired(dev: Dev, chance: random.Random) -> None:
    """A part of an agent's totals that was altered, made unreadable or deleted is one finding, about no session."""
    muster = dev.muster
    before = derived(dev.client)
    parts = [key for key in sorted(before) if ":view:agent:" in key]
    altered, unreadable, deleted = chance.sample(parts, 3)
    agent = agent_of(altered)
    totals = agent_view.decode(agent, before[altered])
    dev.client.set(altered, agent_view.encode(agent, totals + totals))
    dev.client.set(unreadable, bytes([before[unreadable][0] ^ 1]) + before[unreadable][1:])
    dev.client.delete(deleted)

    findings = muster.findings()

    assert {finding["kind"] for finding in findings} == {"agent"}
    assert sorted(finding["agent"] for finding in findings) == sorted(map(agent_of, (altered, unreadable, deleted)))
    assert all(finding["session"] is None and finding["quarantined"] is False for finding in findings)
    muster.ok("recover", "apply")
    assert not differing(derived(dev.client), before)
    assert muster.findings() == []


def agent_of(key: str) -> str:
    return key.partition(":view:agent:")[2]
