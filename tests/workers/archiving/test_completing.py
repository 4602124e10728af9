"""A log that begins at its horizon is completed from there: what is archived stays in the archive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from domain.codec import genesis
from domain.log.archive.segment import seal
from projections.grafting import Grafting
from tests.projections.world import World
from tests.workers.archiving.cold import archived, derived, events_on_the_server, everything
from tests.workers.backup.test_backup import back_up
from workers.archiving.choosing import Keeping
from workers.recovery import Recovery, mendable, plan_of, with_grafts
from workers.settings import ArchiveSettings
from workers.sources import open_source

SESSION: Final = "open-4"


def a_hole(world: World) -> None:
    log = world.keyspace.of(SESSION).log(SESSION)
    world.redis.xdel(log, *(entry_id for entry_id, _ in world.redis.xrange(log)[3:6]))


def the_tail(world: World) -> None:
    log = world.keyspace.of(SESSION).log(SESSION)
    world.redis.xdel(log, *(entry_id for entry_id, _ in world.redis.xrevrange(log, count=5)))


def the_log(world: World) -> None:
    world.redis.delete(world.keyspace.of(SESSION).log(SESSION))


def the_head(world: World) -> None:
    world.redis.delete(world.keyspace.of(SESSION).head(SESSION))


def a_hole_and_the_head(world: World) -> None:
    a_hole(world)
    the_head(world)


@pytest.mark.parametrize("kept", ["backup", "archive"])
@pytest.mark.parametrize(
    "damage", [a_hole, the_tail, the_log, the_head, a_hole_and_the_head], ids=lambda damage: damage.__name__
)
def test_what_a_log_lost_after_its_horizon_comes_back(
    world: World, folder: Path, tmp_path: Path, damage: Callable[[World], None], kept: str
) -> None:
    before, views, store = everything(world.log), derived(world), world.log.identity.store
    back_up(world, tmp_path / "b")
    archived(world, Keeping(100, 0.0))
    hot, keys = events_on_the_server(world), world.keyspace.of(SESSION)
    head, entries = world.redis.get(keys.head(SESSION)), world.redis.xrange(keys.log(SESSION))
    assert world.redis.hget(keys.hold(SESSION), "horizon")
    commits = list(world.log.read(SESSION))
    segment = seal(store, SESSION, genesis(SESSION), commits)
    world.log.archive.put(segment.name, segment.content)
    where = str(folder if kept == "archive" else tmp_path / "b")
    source = open_source(where, store, archive=ArchiveSettings(), say=lambda _: None)
    damage(world)

    plan = plan_of(store, world.verify())
    grafting = Grafting(world.projections, world.log, source, who="tester")
    plan = with_grafts(plan, grafting.plan(mendable(plan)), world.keyspace)
    list(grafting.apply([graft.session for graft in plan.grafts]))
    left = Recovery(world.projections, world.log, who="tester", progress=lambda _: None).apply(plan)

    assert (left, plan.unfit) == ([], [])
    assert (world.redis.get(keys.head(SESSION)), world.redis.xrange(keys.log(SESSION))) == (head, entries)
    assert events_on_the_server(world) == hot
    assert everything(world.log) == before
    assert derived(world) == views
    assert world.verify() == []
