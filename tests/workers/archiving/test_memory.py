"""A server whose memory fills: appends wait, then they are refused; reading, projecting and freeing go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from domain import Append, Event, Receipt, Unavailable
from domain.log.archive.place import Archive
from tests.conftest import Store
from tests.own_server import OwnServer
from tests.projections.world import World, did
from tests.waiting import wait_until
from tests.workers.archiving.cold import ALL, archived
from workers.memory import FULL, MemoryWatch, Watermarks

MARKS = Watermarks(0.7, 0.8, 0.9)


@pytest.fixture(params=["valkey", "redis7"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OwnServer]:
    server = OwnServer(tmp_path / "own", "--maxmemory-policy", "noeviction", kind=request.param)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def world(server: OwnServer, make_store: Callable[..., Store], archive: Archive) -> World:
    """Ten sessions of which half ended, projected, on a server of their own."""
    world = World(make_store(server.url, partitions=2), archive=archive)
    for number in range(10):
        big(world, f"s-{number}", 40)
        if number % 2:
            world.log.append(f"s-{number}", did("completed"))
    world.project()
    return world


def big(world: World, session: str, commits: int) -> None:
    """Commits of 20 kB."""
    data = {"text": "x" * 20_000}
    done = world.log.append_many(
        [Append(session, (Event.of("tool.called", actor="ann", data=data),)) for _ in range(commits)]
    )
    assert all(isinstance(receipt, Receipt) for receipt in done)


@contextmanager
def used(world: World, share: float) -> Iterator[None]:
    """The server's limit is such that this share of it is used."""
    world.redis.config_set("maxmemory", int(world.redis.info("memory")["used_memory"] / share))
    yield
    world.redis.config_set("maxmemory", 0)


def watch(world: World) -> MemoryWatch:
    return MemoryWatch(world.projections, world.log.identity, MARKS)


def test_the_fuller_the_longer_appends_wait_until_they_are_refused() -> None:
    waits = [MARKS.wait(share / 100) for share in range(70, 101)]
    assert waits[:10] == [None] * 10
    assert waits[20:] == [FULL] * 11
    assert [int(wait or 0) for wait in waits[10:20]] == sorted(int(wait or 0) for wait in waits[10:20])
    assert (waits[10], int(waits[19] or 0) > 500) == ("5", True)


def test_appends_wait_while_memory_is_short_and_go_as_ever_after(world: World) -> None:
    """The receipt says for how long; this log waits by itself, whoever else is told; repeats are told nothing new."""
    looks = watch(world)
    with used(world, 0.85):
        looks.look(range(2))
        assert looks.is_short
        first = world.log.append("s-0", did("tool.called", id="one"))
        assert 5 < first.wait_ms < 500
        before = time.monotonic()
        second = world.log.append("s-0", did("tool.called"))
        assert time.monotonic() - before >= first.wait_ms / 1000 * 0.9
        assert second.last_seq == first.last_seq + 1
        assert [commit.last_seq for commit in world.log.read("s-0")][-1] == second.last_seq
    looks.look(range(2))
    assert not looks.is_short
    world.log.append("s-0", did("tool.called"))
    assert world.log.append("s-0", did("tool.called")).wait_ms == 0


async def test_appends_with_asyncio_wait_too(world: World) -> None:
    with used(world, 0.85):
        watch(world).look(range(2))
        async with await world.store.open_async() as log:
            first = await log.append("s-0", did("tool.called"))
            before = time.monotonic()
            await log.append("s-0", did("tool.called"))
            assert time.monotonic() - before >= first.wait_ms / 1000 * 0.9


def test_where_hardly_any_is_left_appends_are_refused_and_all_else_goes_on(world: World) -> None:
    """With a typed error, before anything is written; what is there already is recognised."""
    known = world.log.append("s-0", did("tool.called", id="there"))
    looks = watch(world)
    with used(world, 0.95):
        looks.look(range(2))
        before = world.log.head("s-2")
        with pytest.raises(Unavailable) as refused:
            world.log.append("s-2", did("tool.called"))
        assert (refused.value.code, refused.value.exit_code) == ("MEMORY_HIGH", 5)
        assert world.log.head("s-2") == before
        again = world.store.open().append("s-0", did("tool.called", id="there"), known=known.first_seq - 1)
        assert (again.last_seq, again.appended) == (known.last_seq, 0)
        assert len(list(world.log.read("s-1"))) == 41
        world.project()
        assert world.verify() == []
        assert archived(world, ALL).events > 300
    looks.look(range(2))
    world.log.append("s-2", did("tool.called"))


def test_what_was_told_lapses_when_nobody_looks_any_more(world: World) -> None:
    """A worker that died keeps nobody waiting."""
    keys = world.keyspace.of("s-2")
    world.redis.fcall("muster_press_1", 1, keys.meta, world.log.identity.store, 1, FULL)
    wait_until(lambda: is_taken(world, "s-2"), message="appends are taken again")


def is_taken(world: World, session: str) -> bool:
    try:
        world.log.append(session, did("tool.called"))
    except Unavailable:
        return False
    return True


def test_where_all_memory_is_used_reading_projecting_and_freeing_go_on(world: World) -> None:
    """The server itself refuses every write that needs memory: then archiving makes room, and appends are taken."""
    big(world, "s-2", 5)
    world.redis.config_set("maxmemory", int(world.redis.info("memory")["used_memory"] * 0.8))
    with pytest.raises(Unavailable) as refused:
        world.log.append("s-2", did("tool.called"))
    assert refused.value.code == "SERVER_OUT_OF_MEMORY"
    assert len(list(world.log.read("s-1"))) == 41
    world.project()
    before: Any = world.redis.info("memory")["used_memory"]
    assert archived(world, ALL).sessions == 10
    wait_until(lambda: world.redis.info("memory")["used_memory"] < before * 0.7, message="memory is free")
    world.log.append("s-2", did("tool.called"))
    world.redis.config_set("maxmemory", 0)
    world.project()
    assert world.verify() == []
    assert len(list(world.log.read("s-1"))) == 41
