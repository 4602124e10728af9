"""`muster recover`: plans and repairs as commands, with their exit codes."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.conftest import Store
from tests.projections.world import World, did, run_cli
from tests.waiting import wait_until
from workers.child_process import start_child

MUSTER = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]


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

    assert {**dry.row, "seconds": 0} == {**plan.row, "seconds": 0}
    assert plan.row == json.loads(path.read_bytes())
    assert plan.row["partitions"] == [
        {
            "partition": world.keyspace.partition_of("s-1"),
            "sessions": ["s-1"],
            "whole": False,
            "agents": [],
            "shortcuts": ["s-1"],
            "events": 3,
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


def spoil_view(world: World, session: str) -> bytes:
    key = world.keyspace.of(session).session_view(session)
    world.redis.set(key, world.redis.get(key)[:-1])
    return bytes(world.redis.get(key))


def test_undo_puts_back_what_recovery_replaced(world: World) -> None:
    """To the byte, once, and audited with the digests before and after; the drift it was is found again."""
    spoilt = spoil_view(world, "s-1")
    keys = world.keyspace.of("s-1")
    found = [finding.code for finding in world.verify()]
    assert run_cli(world, "recover", "apply").code == 0
    before = world.store.snapshot()
    assert run_cli(world, "recover", "undo", "s-1", "--dry-run").code == 0
    assert world.store.snapshot() == before

    assert run_cli(world, "recover", "undo", "s-1").row["views"] == 1

    assert world.redis.get(keys.session_view("s-1")) == spoilt
    (_, replaced), (_, back) = [row for row in world.redis.xrange(keys.audit) if row[1][b"session"] == b"s-1"]
    assert (back[b"what"], back[b"before"], back[b"after"]) == (
        b"view put back",
        replaced[b"after"],
        replaced[b"before"],
    )
    assert found[0] in world.codes()
    again = run_cli(world, "recover", "undo", "s-1")
    assert (again.code, "NOTHING_REPLACED" in again.err) == (4, True)
    assert run_cli(world, "recover", "apply").code == 0
    assert world.verify() == []


def test_undo_is_refused_once_the_session_moved_on(world: World) -> None:
    """What workers built since is not thrown away."""
    spoil_view(world, "s-1")
    assert run_cli(world, "recover", "apply").code == 0
    world.log.append("s-1", did("modified"))
    world.project()
    before = world.derived()

    refused = run_cli(world, "recover", "undo", "s-1")

    assert (refused.code, "VIEW_MOVED" in refused.err) == (6, True)
    assert world.derived() == before
    assert run_cli(world, "recover", "undo", "nobody").code == 4


# -- long work ---------------------------------------------------------------------------------------------------------


def test_a_plan_says_how_much_and_how_long(world: World) -> None:
    """Sessions and events that are gone through, of single sessions and of whole partitions, and an estimate."""
    whole = world.keyspace.partition_of("s-2")
    elsewhere = next(f"s-{n}" for n in range(12) if world.keyspace.partition_of(f"s-{n}") != whole)
    lose_view(world, elsewhere)
    world.redis.delete(world.keyspace.of("s-2").feed)
    in_whole = sum(world.keyspace.partition_of(f"s-{n}") == whole for n in range(12))

    plan = run_cli(world, "recover", "plan").row

    assert (plan["sessions"], plan["events"]) == (1 + in_whole, 3 + 3 * in_whole)
    assert plan["seconds"] >= 0
    assert "events, about" in run_cli(world, "recover", "plan", output="table").out


def test_apply_goes_no_faster_than_it_may_and_stops_between_steps(world: World) -> None:
    """Told to stop, it says so and exits 7; the partitions it came to are right, and the next one does the rest."""
    right = world.derived()
    for number in range(12):
        lose_view(world, f"s-{number}")
    child = start_child(
        [*MUSTER, "recover", "apply", "--rate", "2", "-o", "jsonl"], env=world.environ(), stdout=PIPE, stderr=PIPE
    )
    assert child.stdout is not None
    wait_until(lambda: any(world.projections.views([f"s-{n}" for n in range(12)])), message="it has begun")
    time.sleep(1)  # of the eighteen seconds that 36 events take at this rate
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)

    assert child.returncode == 7
    told = json.loads(out)
    assert (told["stopped"], told["repaired"], told["found"]) == (True, None, 12)
    assert 0 < told["sessions"] < 12, "it was told to go slowly"
    assert b"stopped" in err
    assert 0 < len(world.verify()) < 12
    assert run_cli(world, "recover", "apply").code == 0
    assert world.derived() == right
    assert run_cli(world, "recover", "apply", "--rate", "0").code == 9


def test_from_nothing_all_workers_build_at_once_and_apply_waits_for_them(world: World) -> None:
    """Every derived key deleted while workers live: each builds its partitions; without workers `apply` does."""
    right = world.derived()
    with world.workers(2) as children:
        world.wait_until_shared(children)
        world.redis.delete(*right)
        ran = run_cli(world, "recover", "apply")
        assert (ran.code, ran.row["left"]) == (0, [])
        assert world.derived() == right
    for keys in world.keyspace.partitions:
        world.redis.hset(keys.owner("sessions"), "deadline", 1)
    world.redis.delete(*right)

    assert run_cli(world, "recover", "apply").code == 0

    assert world.derived() == right
