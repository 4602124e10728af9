"""`muster recover`: plans and repairs as commands, with their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.projections.world import World, run_cli


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A store with twelve sessions, all projected."""
    world = World(make_store(server_url, partitions=4))
    world.sessions(12)
    world.project()
    return world


def lose_view(world: World, session: str) -> None:
    world.redis.delete(world.keyspace.of(session).session_view(session))


def test_apply_repairs_everything_and_exits_with_0(world: World) -> None:
    """It verifies, plans and repairs without asking, and verification finds nothing afterwards."""
    before = world.derived()
    lose_view(world, "s-1")
    lose_view(world, "s-2")

    ran = run_cli(world, "recover", "apply")

    assert ran.code == 0
    assert (ran.row["found"], ran.row["repaired"], ran.row["quarantined"], ran.row["left"]) == (2, 2, 0, [])
    assert world.derived() == before


def test_apply_exits_with_7_when_something_is_quarantined(world: World) -> None:
    """What an operator must decide about is left, and said; doing it again says the same."""
    world.redis.xdel(world.keyspace.of("s-1").log("s-1"), "2-1")
    lose_view(world, "s-2")

    for found, quarantined in ((2, 1), (1, 1)):
        ran = run_cli(world, "recover", "apply")
        assert ran.code == 7
        assert (ran.row["found"], ran.row["quarantined"]) == (found, quarantined)
        assert [left["code"] for left in ran.row["left"]] == ["LOG_GAP"]
    assert run_cli(world, "session", "show", "s-1").row["quarantined"] == {"code": "LOG_GAP", "first_bad_seq": 2}
    assert run_cli(world, "event", "append", "s-1", "left", "--actor", "ann").code == 8


def test_a_dry_run_and_a_plan_change_nothing(world: World, tmp_path: Path) -> None:
    """They say what would be done; the plan may be kept in a file and carried out."""
    lose_view(world, "s-1")
    before = world.store.snapshot()
    path = tmp_path / "plan.json"

    dry = run_cli(world, "recover", "apply", "--dry-run")
    plan = run_cli(world, "recover", "plan", "--file", str(path))

    assert dry.row == plan.row == json.loads(path.read_bytes())
    assert plan.row["partitions"] == [
        {
            "partition": world.keyspace.partition_of("s-1"),
            "sessions": ["s-1"],
            "whole": False,
            "agents": [],
            "shortcuts": ["s-1"],
        }
    ]
    assert world.store.snapshot() == before
    assert run_cli(world, "recover", "apply", str(path)).code == 0
    assert world.verify() == []
    assert "0 findings" in run_cli(world, "recover", "plan", output="table").out


def test_a_plan_for_another_store_is_refused(world: World, tmp_path: Path) -> None:
    """Nothing is touched by a plan that was made elsewhere, or by a file that is none."""
    path = tmp_path / "plan.json"
    run_cli(world, "recover", "plan", "--file", str(path))
    plan = json.loads(path.read_bytes())
    path.write_text(json.dumps({**plan, "store": "another"}))
    other = run_cli(world, "recover", "apply", str(path))
    path.write_text("no plan")
    nothing = run_cli(world, "recover", "apply", str(path))
    missing = run_cli(world, "recover", "apply", str(tmp_path / "none"))

    assert (other.code, "STORE_CHANGED" in other.err) == (3, True)
    assert (nothing.code, missing.code) == (4, 4)


def test_what_recovery_did_is_audited_with_who_did_it(world: World) -> None:
    """The audit stream names a recovery, its user, host and process."""
    world.redis.set(world.keyspace.of("s-1").session_view("s-1"), b"garbage")

    run_cli(world, "recover", "apply")

    ((_, entry),) = world.redis.xrange(world.keyspace.of("s-1").audit)
    assert entry[b"who"].startswith(b"recovery:")
    assert entry[b"session"] == b"s-1"
