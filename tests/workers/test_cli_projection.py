"""`muster projection`: lag, verification and rebuild as commands, with their exit codes."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

import pytest

from tests.conftest import Store
from tests.projections.world import Ran, World, notes, run_cli


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A store with twelve sessions, all projected."""
    world = World(make_store(server_url, partitions=4))
    world.sessions(12)
    world.project()
    return world


def test_lag_tells_events_and_seconds_without_a_worker(world: World) -> None:
    """The numbers are right while nobody works: what was appended and not applied, and for how long."""
    world.log.append("s-1", notes(5))
    partition = world.keyspace.partition_of("s-1")

    lag = run_cli(world, "projection", "lag").row

    assert (lag["schema"], lag["events"], lag["applied"]) == ("muster.lag/1", 5, 36)
    assert lag["partitions"][partition]["events"] == 5
    assert lag["seconds"] == lag["partitions"][partition]["seconds"] >= 0
    assert {part["owner"] for part in lag["partitions"]} == {None}
    assert "5 events" in run_cli(world, "projection", "lag", output="table").out


def test_lag_with_wait_returns_when_a_worker_caught_up(world: World) -> None:
    """It waits as long as it takes, and says so."""
    world.log.append("s-1", notes(5))
    ran: list[Ran] = []
    thread = Thread(target=lambda: ran.append(run_cli(world, "projection", "lag", "--wait", "--timeout", "60")))
    thread.start()
    with world.workers(1):
        thread.join()

    assert ran[0].code == 0
    assert ran[0].row["events"] == 0


def test_lag_with_wait_gives_up_after_its_time(world: World) -> None:
    """Nobody works: exit code 10, and what to look at."""
    world.log.append("s-1", notes(5))

    ran = run_cli(world, "projection", "lag", "--wait", "--timeout", "0.2")

    assert ran.code == 10
    assert "BEHIND" in ran.err
    assert "5 events" in ran.err
    assert run_cli(world, "projection", "lag", "--timeout", "0").code == 0


def test_verify_exits_with_0_for_nothing_and_1_for_anything(world: World) -> None:
    """Each finding is one JSON line on stdout; how much was read is on stderr."""
    clean = run_cli(world, "projection", "verify", "--all")
    world.redis.delete(world.keyspace.of("s-1").session_view("s-1"))
    found = run_cli(world, "projection", "verify", "--all")

    assert (clean.code, clean.out) == (0, "")
    assert "read 12 sessions, 36 events in 4 partitions: no finding" in clean.err
    assert found.code == 1
    assert (found.row["code"], found.row["session"], found.row["schema"]) == ("VIEW_MISSING", "s-1", "muster.finding/1")
    assert "1 finding" in found.err


def test_verify_of_one_session_reads_just_that(world: World) -> None:
    """Damage elsewhere is not reported; a session that is not there is exit code 4."""
    world.redis.delete(world.keyspace.of("s-1").session_view("s-1"))

    assert run_cli(world, "projection", "verify", "--session", "s-2").code == 0
    assert run_cli(world, "projection", "verify", "--session", "s-1").row["code"] == "VIEW_MISSING"
    assert run_cli(world, "projection", "verify", "--session", "none").code == 4


@pytest.mark.parametrize("head", [None, "garbage"])
def test_verify_of_a_session_without_a_head_finds_that(world: World, head: str | None) -> None:
    """A session is known by the registry, not by the head that may be damaged."""
    key = world.keyspace.of("s-1").head("s-1")
    world.redis.delete(key)
    if head is not None:
        world.redis.set(key, head)

    ran = run_cli(world, "projection", "verify", "--session", "s-1")

    assert ran.code == 1
    assert ran.row["kind"] == "head"


def test_verify_wants_to_know_what(world: World) -> None:
    """Neither `--all` nor `--session`, or both: usage."""
    assert run_cli(world, "projection", "verify").code == 2
    assert run_cli(world, "projection", "verify", "--all", "--session", "s").code == 2


def test_rebuild_builds_everything_again(world: World) -> None:
    """Whatever was wrong with what is derived is right afterwards; a dry run only counts."""
    before = world.derived()
    world.redis.delete(*before)
    dry = run_cli(world, "projection", "rebuild", "--dry-run")
    assert dry.code == 0
    assert "12 sessions in 4 partitions" in dry.err
    assert world.derived() == {}

    done = run_cli(world, "projection", "rebuild").row

    assert (done["sessions"], done["changed"], done["quarantined"]) == (12, 12, 0)
    assert world.derived() == before


def test_rebuild_of_one_partition_leaves_the_others(world: World) -> None:
    """Only the named ones are touched; one that the store does not have is refused."""
    names = [name for name in (f"s-{n}" for n in range(12)) if world.keyspace.partition_of(name) != 1]
    for name in names:
        world.redis.delete(world.keyspace.of(name).session_view(name))

    assert run_cli(world, "projection", "rebuild", "--partition", "1").row["changed"] == 0
    for wrong in ("4", "-1"):
        ran = run_cli(world, "projection", "rebuild", f"--partition={wrong}")
        assert (ran.code, "USAGE" in ran.err) == (9, True)


def test_an_error_of_the_server_in_the_middle_is_no_bug(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server refuses while a command reads is an error with a code and a remedy, and no traceback."""
    client = world.redis
    client.acl_setuser("limited", enabled=True, nopass=True, keys="*", commands=["+@all", "-zrangebylex"], reset=True)
    try:
        monkeypatch.setenv("MUSTER_REDIS__PASSWORD", "x")
        url = world.store.url.replace("redis://", "redis://limited@")
        ran = run_cli(world, "projection", "verify", "--all", url=url)
    finally:
        client.acl_deluser("limited")

    assert ran.code == 3
    assert ran.err.startswith("error: ACCESS_DENIED")
