"""Archives that are away, damaged or lack something; processes that die in the middle; projections that are behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from domain import MusterError, NotFound
from domain.log.archive.place import Archive
from tests.conftest import Store
from tests.projections.examples import ChangedByType
from tests.projections.own_world import Own
from tests.projections.world import World, did, notes
from tests.workers.archiving.cold import ALL_THAT_ENDED, archived, derived, events_on_the_server, everything
from workers.archiving.choosing import TIGHT


@pytest.fixture
def one(make_store: Callable[..., Store], server_url: str, archive: Archive) -> World:
    """A session that is open and one that ended, in one partition."""
    world = World(make_store(server_url, partitions=1), archive=archive)
    for session in ("open", "ended"):
        for size in (30, 40, 50):
            world.log.append(session, notes(size))
    world.log.append("ended", did("completed"))
    world.project()
    return world


def segments(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.zst"))


class Died(BaseException):
    """As if the process were killed: nothing after it happens."""


class Mortal:
    """Kills whoever archives at its so-manieth act: a segment put or read, a function called; before or after it."""

    def __init__(self, world: World, at: int | None, *, after: bool) -> None:
        self.acts = 0
        self._world, self._at, self._after = world, at, after

    def __enter__(self) -> Mortal:
        archive, client = self._world.log.archive, self._world.log.client
        self._was = [(archive, "put"), (archive, "get"), (client, "fcall"), (client, "mget"), (client, "pipeline")]
        for owner, name in self._was:
            setattr(owner, name, self._mortal(getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name in self._was:
            delattr(owner, name)

    def _mortal(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def done(*arguments: Any, **options: Any) -> Any:
            number, self.acts = self.acts, self.acts + 1
            if number == self._at and not self._after:
                raise Died
            result = act(*arguments, **options)
            if number == self._at:
                raise Died
            return result

        return done


def test_whoever_dies_at_any_step_leaves_what_the_next_one_finishes(one: World, folder: Path) -> None:
    """Nothing is lost or doubled at any point, and in the end the same is archived."""
    before, views = everything(one.log), derived(one)
    log = {key: one.redis.dump(key) for key in list(one.store.keys())}
    with Mortal(one, None, after=False) as counted:
        archived(one, TIGHT)
    assert counted.acts >= 10
    kept, reached = segments(folder), one.store.snapshot()
    for at in range(counted.acts):
        for after in (False, True):
            for key in list(one.store.keys()):
                one.redis.delete(key)
            for key, value in log.items():
                one.redis.restore(key, 0, value)
            shutil.rmtree(folder)
            folder.mkdir()
            with Mortal(one, at, after=after), pytest.raises(Died):
                archived(one, TIGHT)
            assert everything(one.store.open(archive=str(folder))) == before, f"after death at act {at}"
            assert one.verify() == []
            archived(one, TIGHT)
            assert everything(one.store.open(archive=str(folder))) == before
            assert (derived(one), segments(folder)) == (views, kept)
            assert one.store.snapshot() == reached


@pytest.mark.parametrize("how", ["missing", "flipped", "cut", "swapped"])
def test_a_segment_that_is_not_as_it_was_sealed_is_a_finding_of_its_own(one: World, folder: Path, how: str) -> None:
    """It is named; what is derived stays, whoever repairs; others are read; appends go on; mended, all is well."""
    archived(one, TIGHT)
    views = derived(one)
    victim, other = segments(folder)
    whole = victim.read_bytes()
    match how:
        case "missing":
            victim.unlink()
        case "flipped":
            victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        case "cut":
            victim.write_bytes(whole[:-9])
        case "swapped":
            victim.write_bytes(other.read_bytes())
    name = "ended" if "/ended/" in str(victim) else "open"

    fresh = World(one.store, archive=str(folder))
    (finding,) = fresh.verify()
    code = "ARCHIVE_MISSING" if how == "missing" else "ARCHIVE_DAMAGED"
    assert (finding.code, finding.kind, finding.severity, finding.session) == (code, "archive", "critical", name)
    assert finding.first_bad_seq == 1
    assert [one.code for one in fresh.recover()] == [code]
    assert derived(fresh) == views
    assert not fresh.log.head(name).quarantined  # type: ignore[union-attr]
    with pytest.raises(MusterError) as raised:
        list(fresh.log.read(name))
    assert raised.value.code == code
    assert list(fresh.log.read({"open": "ended", "ended": "open"}[name]))
    fresh.log.append(name, did("start"))
    fresh.project()
    assert fresh.codes() == [code]

    victim.write_bytes(whole)
    again = World(one.store, archive=str(folder))
    assert again.verify() == []


def test_an_archive_that_is_away_is_said_of_each_session_it_holds(one: World, folder: Path) -> None:
    """Nothing is called healthy that was not read, and nothing is mended by it."""
    one.log.append("hot", notes(3))
    one.project()
    archived(one, TIGHT)
    views = derived(one)
    away = folder.rename(folder.parent / "away")
    fresh = World(one.store, archive=str(folder))
    assert fresh.codes() == ["ARCHIVE_UNREACHABLE"] * 2
    assert World(one.store).codes() == ["ARCHIVE_NOT_GIVEN"] * 2
    assert [finding.code for finding in fresh.recover()] == ["ARCHIVE_UNREACHABLE"] * 2
    assert derived(fresh) == views
    one.redis.delete(one.keyspace.of("ended").session_view("ended"))
    one.redis.delete(one.keyspace.partitions[0].cursor("sessions", 2))
    fresh.project()  # it waits for the archive, parked, and no other does
    assert fresh.views.session("hot")["seq"] == 3
    away.rename(folder)
    fresh.recover()
    assert World(one.store, archive=str(folder)).verify() == []
    assert derived(fresh) == views


def test_nothing_is_trimmed_before_it_can_be_read_back(one: World, folder: Path) -> None:
    """An archive that forgets, or keeps something else, gets nothing more, and loses nothing."""
    hot = events_on_the_server(one)
    archive: Any = one.log.archive
    get = archive.get

    def forgets(name: str) -> bytes:
        raise NotFound("ARCHIVE_MISSING", f"segment {name} is not there")

    archive.get = forgets
    with pytest.raises(NotFound):
        archived(one, TIGHT)
    archive.get = lambda name: get(name)[:-1] + b"\0"
    assert archived(one, TIGHT).sessions == 0
    del archive.get
    assert events_on_the_server(one) == hot
    assert archived(one, TIGHT).sessions == 2


def test_what_an_own_projection_has_before_it_stays(one: World) -> None:
    """Until it holds it; one that is added later builds itself from the archive too."""
    own = Own(one, ChangedByType)
    own.project()
    one.log.append("more", [did("modified", entities=["a.py"]), did("completed")])
    one.project()
    archived(one, ALL_THAT_ENDED)
    assert {session: one.log.head(session).is_cold for session in ("ended", "more")} == {  # type: ignore[union-attr]
        "ended": True,
        "more": False,
    }
    own.project()
    archived(one, ALL_THAT_ENDED)
    assert one.log.head("more").is_cold  # type: ignore[union-attr]
    assert own.states() == own.expected()
