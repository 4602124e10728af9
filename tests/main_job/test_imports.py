"""All logs imported into one store: what comes of them is what their sources say; the same again changes nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import Struct

from domain.errors import REGISTRY
from domain.log import SessionLog
from projections.queries import Views
from projections.store import ProjectionStore
from tests.main_job.inputs import LETTERS, LOGS, REPEATABLE, Expected, differing, expected, facts, lines_of, path_of
from tests.main_job.running import Answer, Dev, Muster

SEED: Final = 2
#: Of each large file so many sessions are asked for at every seq …
SAMPLED_SESSIONS: Final = 60
#: … and of each file so many at one seq, on the command line.
SAMPLED_CALLS: Final = 3


class Import(Struct, frozen=True):
    """One import: how it ended, what it counted, and its refused lines."""

    answer: Answer
    report: dict[str, Any]
    rejects: list[dict[str, Any]]


def imported(muster: Muster, name: str, rejects: Path) -> Import:
    answer = muster.run("event", "import", path_of(name), "-o", "json", "--rejects", rejects)
    (line,) = answer.out.splitlines()
    return Import(answer, json.loads(line), [json.loads(line) for line in rejects.read_text().splitlines()])


@pytest.fixture(scope="module")
def imports(real_logs: None, module_dev: Dev, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Import]:
    """All files, imported one after the other and caught up with."""
    rejects = tmp_path_factory.mktemp("rejects")
    done = {name: imported(module_dev.muster, name, rejects / name) for name in (*LOGS, "malformed")}
    module_dev.muster.caught_up()
    return done


@pytest.fixture(scope="module")
def muster(imports: dict[str, Import], module_dev: Dev) -> Muster:
    """The command line for the store with all logs in it."""
    return module_dev.muster


@pytest.fixture(scope="module")
def truth(imports: dict[str, Import]) -> Expected:
    """What must have come of all logs."""
    return expected(*LOGS)


@pytest.fixture(scope="module")
def views(muster: Muster, module_dev: Dev) -> Iterator[Views]:
    """What the command line reads from, in this process: for questions too many to start a process each."""
    with SessionLog.open(module_dev.url, environment="dev", namespace="main") as log:
        yield Views(ProjectionStore(log.client, log.keyspace), log)


def test_every_session_is_what_its_source_says(muster: Muster, truth: Expected) -> None:
    """Seq, state, actors, types, entities, first actor and last type of every session, and no session more."""
    sessions = muster.sessions()

    assert not differing({session: facts(row) for session, row in sessions.items()}, truth.facts)
    assert all(row["quarantined"] is None for row in sessions.values())


def test_every_agent_has_done_what_the_sources_say(muster: Muster, truth: Expected) -> None:
    """Events and sessions of every agent, summed over all files and partitions, and no agent more."""
    found = {agent: (row["events"], row["sessions"]) for agent, row in muster.agents().items()}

    assert not differing(found, {agent: (part.events, part.sessions) for agent, part in truth.agents.items()})


@pytest.mark.parametrize("name", LOGS)
def test_an_import_counts_every_line(imports: dict[str, Import], name: str) -> None:
    """Lines are appended, duplicates or refused, and the report says how many; refused lines make the exit code 7."""
    done, lines, refused = imports[name], lines_of(name), expected(name).refused

    assert done.answer.code == (7 if refused else 0)
    report = {key: value for key, value in done.report.items() if key not in ("schema", "seconds")}
    kept = len(lines) - len(refused)
    assert report == {"lines": len(lines), "appended": kept, "duplicates": 0, "refused": len(refused)}
    assert done.report["seconds"] > 0


@pytest.mark.parametrize("name", LOGS)
def test_exactly_the_lines_that_must_be_refused_are_refused(imports: dict[str, Import], name: str) -> None:
    """The gate refuses what the transition table forbids; the rejects file names line, id, code and cause of each."""
    rejects, lines = imports[name].rejects, lines_of(name)

    assert sorted(reject["id"] for reject in rejects) == expected(name).refused
    for reject in rejects:
        assert reject.keys() == {"line", "id", "code", "cause"}
        assert json.loads(lines[reject["line"] - 1])["id"] == reject["id"]
        assert reject["code"] == "GATE_REFUSED"
        assert reject["cause"]


def test_every_malformed_line_is_refused_with_its_cause(imports: dict[str, Import]) -> None:
    """Each line has one reject with a registered code; the id is null where it cannot be read."""
    done, lines = imports["malformed"], lines_of("malformed")

    assert done.answer.code == 7
    assert (done.report["lines"], done.report["refused"]) == (len(lines), len(lines))
    assert [reject["line"] for reject in done.rejects] == list(range(1, len(lines) + 1))
    for reject, line in zip(done.rejects, lines, strict=True):
        assert reject.keys() == {"line", "id", "code", "cause"}
        assert reject["code"] in REGISTRY
        assert reject["cause"]
        assert reject["id"] in (None, id_in(line))
    assert sum(reject["id"] is None for reject in done.rejects) == sum(id_in(line) is None for line in lines)


def id_in(line: bytes) -> Any:
    """A line's id, read as leniently as can be."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found.get("id") if isinstance(found, dict) else None


@pytest.mark.parametrize("name", LOGS)
def test_a_session_can_be_seen_as_it_stood_at_every_seq(views: Views, name: str) -> None:
    """The state after each kept event of all sessions of the small files, and of a sample of the large ones."""
    sessions = expected(name).sessions
    if len(sessions) > 1000:
        sampled = random.Random(SEED).sample(sorted(sessions), SAMPLED_SESSIONS)
        sessions = {session: sessions[session] for session in sampled}

    found = {
        session: "".join(LETTERS[views.session_at(session, seq)["state"]] for seq in range(1, should.seq + 1))
        for session, should in sessions.items()
    }

    assert not differing(found, {session: should.states for session, should in sessions.items()})


@pytest.mark.parametrize("name", LOGS)
def test_the_command_line_shows_a_session_at_a_seq(muster: Muster, views: Views, name: str) -> None:
    """`session show --at` prints one line, the same as is read here for every seq; at the last seq it is today's."""
    sessions = expected(name).sessions
    chance = random.Random(SEED)
    for session in chance.sample(sorted(sessions), SAMPLED_CALLS):
        should = sessions[session]
        seq = chance.randint(1, should.seq)
        shown = muster.document("session", "show", session, "--at", str(seq))
        assert (shown["session"], shown["seq"]) == (session, seq)
        assert LETTERS[shown["state"]] == should.states[seq - 1]
        assert {"schema": shown["schema"], **views.session_at(session, seq)} == shown
        assert views.session_at(session, should.seq) == views.session(session)


def test_sessions_can_be_listed_page_by_page(muster: Muster) -> None:
    """Pages, each begun after the last id of the one before, are together what `--all` prints."""
    everything = muster.rows("session", "ls", "--all")
    page = muster.rows("session", "ls", "--limit", "5000")
    rest = muster.rows("session", "ls", "--limit", "5000", "--after", page[-1]["session"])

    assert len(page) == 5000
    assert page + rest == everything


def test_verification_finds_nothing(muster: Muster) -> None:
    """All logs, views, checkpoints and totals were read, and nothing is wrong with them."""
    assert muster.findings() == []


def test_importing_the_same_files_again_changes_nothing(muster: Muster, tmp_path: Path) -> None:
    """Every line is a duplicate; the listings of sessions, digests included, and of agents are the same to the byte."""
    muster.caught_up()
    before = [muster.ok(group, "ls", "--all", "-o", "jsonl") for group in ("session", "agent")]
    appended = muster.appended()

    for name in REPEATABLE:
        again = imported(muster, name, tmp_path / name)
        lines = len(lines_of(name))
        assert again.answer.code == 0
        assert (again.report["lines"], again.report["duplicates"]) == (lines, lines)
        assert (again.report["appended"], again.report["refused"]) == (0, 0)

    muster.caught_up()
    assert muster.appended() == appended
    assert [muster.ok(group, "ls", "--all", "-o", "jsonl") for group in ("session", "agent")] == before
