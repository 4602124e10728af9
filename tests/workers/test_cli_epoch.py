"""`muster epoch`: what the operator sees of a loss, and what accepting it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from domain import Damaged
from domain.log.contract import Position
from tests.conftest import Store
from tests.projections.world import World, did, run_cli


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A store with a few sessions, all projected."""
    world = World(make_store(server_url, partitions=4))
    world.sessions(4)
    world.project()
    return world


def lose(world: World) -> None:
    """A producer knows more of `s-1` than the log holds."""
    with pytest.raises(Damaged, match="TAIL_LOST"):
        world.log.append("s-1", did("modified"), known=Position(9, "0" * 20))


def test_nothing_lost_is_shown_and_cannot_be_accepted(world: World) -> None:
    """Exit 0 and an empty list; accepting is not found."""
    shown = run_cli(world, "epoch", "show")

    assert (shown.code, shown.row["epoch"], shown.row["lost"]) == (0, 1, [])
    assert len(shown.row["run_id"]) == len(shown.row["replication_id"]) == 40
    assert run_cli(world, "epoch", "accept").code == 4


def test_a_loss_is_shown_until_it_is_accepted(world: World) -> None:
    """Exit 1 and what is lost; verification finds it too, and recovery does not take it away."""
    lose(world)

    shown = run_cli(world, "epoch", "show")
    (lost,) = shown.row["lost"]
    found = run_cli(world, "projection", "verify", "--all", output="jsonl")

    assert (shown.code, lost["session"], lost["code"], lost["first_bad_seq"], lost["last_seq"]) == (
        1, "s-1", "TAIL_LOST", 4, 9,
    )  # fmt: skip
    assert found.code == 1
    assert run_cli(world, "recover", "apply").code == 7
    assert run_cli(world, "event", "append", "s-1", "left", "--actor", "ann").code == 0

    assert run_cli(world, "epoch", "accept", "--dry-run").row["would_accept"] == 1
    assert run_cli(world, "epoch", "show").code == 1
    accepted = run_cli(world, "epoch", "accept").row
    assert (accepted["epoch"], accepted["accepted"]) == (2, 1)
    assert run_cli(world, "epoch", "show").row["epoch"] == 2
    assert run_cli(world, "epoch", "show").code == 0
    world.project()
    assert run_cli(world, "projection", "verify", "--all").code == 0
