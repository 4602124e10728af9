"""Read-only mode as operators and components have it: by command, by health, by itself while something is critical."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from msgspec import structs

from domain import Unavailable
from domain.log.read_only import ReadOnlyMode
from tests.conftest import Store
from tests.domain.log.logs import refused
from tests.projections.world import World, did, notes, run_cli
from tests.waiting import wait_until
from workers.absence import Absences
from workers.child_process import start_child
from workers.closing import ClosesOnCritical
from workers.expiry import Expiry
from workers.health.component import Component, Status
from workers.health.looking import Health
from workers.health.probes import READY
from workers.metrics import exposition
from workers.reloading import InForce
from workers.settings import HealthSettings, ReadOnlySettings, ServeSettings
from workers.vigil import Vigil

MUSTER: Final = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=4))


def test_by_hand(world: World) -> None:
    """On, shown, off: with who, why and since when, at the command, in health, metrics and for whoever appends."""
    assert run_cli(world, "read-only", "on", "--why", "moving house", "--dry-run").row["partitions"] == 0
    assert run_cli(world, "read-only", "show").row == {"schema": "muster.read_only/1", "read_only": False}

    on = run_cli(world, "read-only", "on", "--why", "moving house")

    assert (on.code, on.row["read_only"], on.row["partitions"], on.row["until"]) == (0, True, 4, None)
    appended = run_cli(world, "event", "append", "s", "start", "--actor", "a")
    assert (appended.code, "READ_ONLY" in appended.err, "moving house" in appended.err) == (5, True, True)
    found = Health(world.settings()).look(READY)
    assert [(one.status, one.code) for one in found] == [(Status.HEALTHY, None), (Status.CRITICAL, "READ_ONLY")]
    assert "\nmuster_read_only 1\n" in exposition(found)
    assert found[1].remedy is not None
    assert "muster read-only off" in found[1].remedy
    checked = {row["code"]: row for row in run_cli(world, "config", "check", "--live").rows}
    assert (checked["READ_ONLY"]["level"], "moving house" in checked["READ_ONLY"]["why"]) == ("warning", True)
    assert run_cli(world, "read-only", "off").row["partitions"] == 4
    assert run_cli(world, "event", "append", "s", "start", "--actor", "a").code == 0
    assert run_cli(world, "read-only", "on").code == 2, "a reason is asked for"


def test_views_are_built_and_verified_meanwhile(world: World) -> None:
    """What was appended before is projected, read, repaired."""
    world.log.append("s", notes(3))
    ReadOnlyMode(world.log).close("ann", "x")

    with world.workers(1):
        world.wait_until_caught_up()
    world.redis.delete(world.keyspace.of("s").session_view("s"))

    assert world.recover() == []
    world.assert_views_are_folds()


def test_muster_states_nothing_meanwhile(world: World) -> None:
    """No session expires and no agent is reported gone while nobody can append; neither is forgotten."""
    world.log.append("s", [did("start", "ann")])
    world.log.heartbeat("s", "ann", silent_after_s=0.001)
    world.project()
    before = world.log.head("s")
    mode, vigil = ReadOnlyMode(world.log), Vigil()
    mode.close("bob", "x")
    now = world.projections.server_ms() + 10_000_000
    vigil.look(now - 9_000_000, range(4))
    vigil.since = dict.fromkeys(range(4), now - 9_000_000)

    expiry = Expiry(world.log, world.projections, idle_s=60, grace_s=60)
    refused(lambda: expiry.look(now, vigil), Unavailable, "READ_ONLY")
    absences = Absences(world.log, world.projections, vigil, grace_s=0)
    assert absences.look(now) == 0

    assert world.log.head("s") == before
    mode.open("bob")
    assert absences.look(now) == 1


def test_by_itself_while_a_chosen_component_is_critical(world: World) -> None:
    """Closed while it is, opened when it is not; other components, and being closed itself, close nothing."""
    settings = structs.replace(world.settings(), read_only=ReadOnlySettings("disk, log", 60))
    closes, mode = ClosesOnCritical(InForce(settings)), ReadOnlyMode(world.log)
    full = Component("disk", Status.CRITICAL, "98% is used", "DISK_NEARLY_FULL")

    closes.heed([structs.replace(full, name="spool"), structs.replace(full, status=Status.WARNING)])
    assert mode.standing() is None
    closes.heed([full])
    standing = mode.standing()
    assert standing is not None
    assert (standing.why, standing.is_by_itself) == ("disk is critical: 98% is used", True)
    closes.heed([Component("log", Status.CRITICAL, "it takes no appends", "READ_ONLY")])
    assert mode.standing() is None

    closes.heed([full])
    mode.close("ann", "by hand")
    closes.heed([])
    standing = mode.standing()
    assert standing is not None
    assert standing.who == "ann"


def test_serve_closes_the_store_and_a_dead_serve_locks_nobody_out(world: World, tmp_path: Path) -> None:
    """A real process: the disk of its spool is as full as the threshold says; killed, what it said lapses."""
    settings = structs.replace(
        world.settings(),
        health=HealthSettings(disk_warning=0.000001, disk_critical=0.000001),
        read_only=ReadOnlySettings("disk", 1.0),
        serve=ServeSettings(port=0, look_every_s=0.1),
    )
    said = tmp_path / "said"
    mode = ReadOnlyMode(world.log)
    with said.open("wb") as stderr:
        child = start_child([*MUSTER, "serve"], env=world.environ() | settings.environ(), stderr=stderr)
    try:
        wait_until(lambda: mode.standing() is not None, timeout_s=60, message="it closes the store")
        wait_until(lambda: is_refused(world), message="it takes no appends")  # it lapses, and is told again
        child.send_signal(signal.SIGKILL)
        child.wait()
        wait_until(lambda: mode.standing() is None, message="it lapses")
        world.log.append("s", did("joined"))
    finally:
        child.kill()
        child.wait()


def is_refused(world: World) -> bool:
    try:
        world.log.append("s", did("joined"))
    except Unavailable as error:
        return error.code == "READ_ONLY"
    return False
