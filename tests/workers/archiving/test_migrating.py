"""Sessions whose commits are in the archive are moved to another server, and back, as any others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from domain import Event
from domain.log.archive.place import Archive
from tests.conftest import Store
from tests.projections.world import World, did, notes
from tests.workers.archiving.cold import ALL, archived
from tests.workers.migration.scene import Scene, history
from tests.workers.migration.test_rollback import rolled_back


@pytest.fixture
def scene(make_store: Callable[..., Store], server_url: str, redis7_url: str, archive: Archive) -> Scene:
    scene = Scene(make_store(server_url, partitions=3), make_store(redis7_url, partitions=5))
    scene.archive = archive
    return scene


def test_what_is_archived_moves_and_comes_back(scene: Scene, archive: Archive) -> None:
    """All of it is hot at the target, archived there in its own name, and carried back onto what is cold."""
    there, here = World(scene.source, archive=archive), World(scene.target, archive=archive)
    for session in ("cold", "begun"):
        for size in (30, 40, 60):
            there.log.append(session, notes(size))
        there.log.append(session, did("completed"))
    there.project()
    archived(there, ALL)
    there.log.append("begun", did("start"))
    there.project()
    before = {session: history(there.log, session) for session in ("cold", "begun")}

    migration = scene.moved()
    here.project()

    assert {session: history(here.log, session) for session in before} == before
    assert (here.codes(), there.codes()) == ([], [])
    assert archived(there, ALL).sessions == 0, "what was moved away stays as it is"
    assert archived(here, ALL).sessions == 2
    here.log.append("cold", did("start"))
    here.log.append("cold", Event.of("tool.called", actor="ann", data={"n": 1}))
    held = {session: history(here.log, session) for session in before}

    assert rolled_back(scene, migration, carry_back=True) == (2, 0)

    here.project()
    there.project()
    assert {session: history(there.log, session) for session in before} == held
    assert (here.codes(), there.codes()) == ([], [])
    assert archived(there, ALL).sessions == 2
    assert {session: history(there.log, session) for session in before} == held
