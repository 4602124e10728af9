"""`muster worker`, `muster init` and `muster explain` as commands."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest

from projections.findings import KINDS
from tests.conftest import Store
from tests.projections.world import World, notes, run_cli
from tests.waiting import wait_until
from workers.child_process import start_child
from workers.cli import main

MUSTER = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main(sys.argv[1:]))"]


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=4))


def test_workers_run_until_they_are_told_to_stop(world: World) -> None:
    """`worker run` keeps its processes alive, `worker ls` lists them, SIGTERM drains them: exit 0, nothing is held."""
    environ = world.environ(lease_ttl_ms=60_000, beat_ms=500)
    with start_child([*MUSTER, "worker", "run", "--processes", "2"], env=environ) as child:
        wait_until(lambda: len(world.shares()) == 2 and sum(world.shares().values()) == 4, message="two workers share")
        listed = run_cli(world, "worker", "ls").rows
        assert {row["pid"] for row in listed} == world.shares().keys()
        world.log.append("s", notes(3))
        world.wait_until_caught_up()
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=60) == 0

    assert run_cli(world, "worker", "ls").rows == []
    assert world.leases.owners() == [None] * 4


def test_a_store_that_is_not_there_is_no_reason_to_run(world: World) -> None:
    """`worker run` says at once what is missing, rather than starting processes that cannot work."""
    ran = run_cli(world, "worker", "run", environment="another")

    assert (ran.code, "STORE_MISSING" in ran.err) == (3, True)


def test_init_makes_a_store_once(world: World) -> None:
    """The second time it says that it was there; another partition count is refused."""
    again = run_cli(world, "init")
    other = run_cli(world, "init", "--partitions", "5")

    assert (again.code, again.row["created"], again.row["partitions"]) == (0, False, 4)
    assert (other.code, "PARTITIONS_DIFFER" in other.err) == (3, True)


@pytest.mark.parametrize("code", sorted(KINDS))
def test_every_code_of_a_finding_is_explained(world: World, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`explain` knows each, in any case of letters."""
    assert main(["explain", code.lower(), "-o", "json"]) == 0
    assert KINDS[code].remedy in capsys.readouterr().out.replace('\\"', '"')
    assert main(["explain", "NONSENSE"]) == 4
