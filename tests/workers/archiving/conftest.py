"""Stores whose sessions may be archived, and all that can be read of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from domain.log.archive.place import Archive, open_archive
from tests.conftest import Store
from tests.domain.log.archive.conftest import make_bucket, s3_url  # noqa: F401 - fixtures
from tests.projections.world import World, did, notes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    return tmp_path / "archive"


@pytest.fixture
def archive(folder: Path) -> Archive:
    return open_archive(str(folder))


@pytest.fixture(params=["valkey", "redis7"])
def world(request: pytest.FixtureRequest, make_store: Callable[..., Store], archive: Archive) -> World:
    """Histories of every kind, projected: short and long, open and ended, in commits of any size."""
    servers = request.getfixturevalue("servers")
    world = World(make_store(servers.url(request.param), partitions=2), archive=archive)
    for number, sizes in enumerate(([1], [1, 2, 3], [40, 40, 40], [1] * 130, [7] * 60, [300, 1, 300])):
        for name, ends in ((f"open-{number}", False), (f"ended-{number}", True)):
            for size in sizes:
                world.log.append(name, [did("start"), *notes(size)][-size:])
            if ends:
                world.log.append(name, did("completed"))
    world.project()
    assert world.verify() == []
    return world
