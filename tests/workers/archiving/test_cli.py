"""`muster archive`: archives now, says how much is where, and reads what is kept to the last byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from domain.codec import genesis
from domain.log.archive.segment import seal
from tests.conftest import Store
from tests.projections.world import World, did, notes, run_cli


@pytest.fixture
def one(make_store: Callable[..., Store], server_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A session that is open and one that ended; the settings name the archive."""
    monkeypatch.setenv("MUSTER_ARCHIVE__URL", str(folder))
    monkeypatch.setenv("MUSTER_ARCHIVE__AFTER_END_S", "0")
    world = World(make_store(server_url, partitions=2), archive=str(folder))
    for session in ("open", "ended"):
        for size in (30, 40, 50):
            world.log.append(session, notes(size))
    world.log.append("ended", did("completed"))
    world.project()
    return world


def test_it_archives_what_may_go_and_says_how_much_is_where(one: World, folder: Path) -> None:
    dry = run_cli(one, "archive", "run", "--dry-run")
    assert (dry.code, dry.out, "121 events of 1 sessions" in dry.err) == (0, "", True)
    assert list(folder.iterdir()) == []
    ran = run_cli(one, "archive", "run").row
    assert (ran["sessions"], ran["events"], ran["segments"], ran["left"]) == (1, 121, 1, 0)
    status = run_cli(one, "archive", "status").row
    assert {name: status[name] for name in ("sessions", "cold", "begun", "events", "events_archived")} == {
        "sessions": 2, "cold": 1, "begun": 0, "events": 241, "events_archived": 121,
    }  # fmt: skip
    assert run_cli(one, "archive", "run", "--all").row["events"] == 120
    assert run_cli(one, "archive", "verify").code == 0
    assert run_cli(one, "session", "show", "ended").row["seq"] == 121
    assert run_cli(one, "event", "show", "ended", "7").row["seq"] == 7
    assert run_cli(one, "projection", "verify", "--all").code == 0
    assert run_cli(one, "archive", "run", "--all").row["sessions"] == 0


def test_every_flipped_byte_of_what_is_kept_is_found(one: World, folder: Path) -> None:
    """By its session; and no other session is accused."""
    run_cli(one, "archive", "run", "--all")
    for path in folder.rglob("*.zst"):
        whole = path.read_bytes()
        name = path.parent.name
        for at in range(0, len(whole), 97):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
            found = run_cli(one, "archive", "verify")
            assert (found.code, [row["session"] for row in found.rows]) == (8, [name]), at
        path.write_bytes(whole)
    assert run_cli(one, "archive", "verify").code == 0


def test_a_segment_of_commits_that_the_log_does_not_hold_is_a_finding(one: World, folder: Path) -> None:
    """Of a branch that was lost; what a process left that died before it trimmed is none."""
    commits = list(one.log.read("open"))
    archive, store = one.log.archive, one.log.identity.store
    left = seal(store, "open", genesis("open"), commits[:1])
    archive.put(left.name, left.content)
    assert run_cli(one, "archive", "verify").code == 0

    other = one.log.append("other", notes(3))
    branch = seal(store, "other", genesis("other"), list(one.log.read("other")))
    archive.put(branch.name, branch.content)
    one.redis.delete(one.keyspace.of("other").log("other"), one.keyspace.of("other").head("other"))
    one.redis.zrem(one.keyspace.of("other").sessions, "other")
    found = run_cli(one, "archive", "verify")
    assert (found.code, [row["code"] for row in found.rows]) == (8, ["ARCHIVE_STRAY"])
    assert found.row["stored"]["digest"] == other.digest


def test_without_an_archive_it_says_what_to_set(one: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSTER_ARCHIVE__URL")
    for command in ("run", "status", "verify"):
        ran = run_cli(one, "archive", command)
        assert ran.code == 3
        assert "ARCHIVE_NOT_GIVEN" in ran.err
    assert json.loads(run_cli(one, "session", "show", "open", output="json").out)["seq"] == 120


def test_an_archive_that_is_away_is_seen_and_makes_nothing_else_look_broken(one: World, folder: Path) -> None:
    def told() -> dict[str, tuple[str, str | None]]:
        return {row["component"]: (row["status"], row["code"]) for row in run_cli(one, "health").rows}

    before = told()
    assert before["archive"] == ("healthy", None)
    folder.rename(folder.parent / "away")
    assert told() == before | {"archive": ("down", "ARCHIVE_UNREACHABLE")}
