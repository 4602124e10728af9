"""What is archived leaves the server's memory, and nobody who reads, appends, verifies or subscribes notices."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from domain import Conflict, Damaged, Misconfigured
from domain.log.archive.place import open_archive
from domain.log.contract import Position
from projections import session_view
from tests.conftest import Store
from tests.domain.log.archive.conftest import KEYS
from tests.projections.world import World, did, notes
from tests.workers.archiving.cold import ALL, ALL_THAT_ENDED, archived, derived, events_on_the_server, everything
from tests.workers.backup.test_backup import back_up, restore
from workers.archiving.archivist import Archivist
from workers.archiving.choosing import TIGHT, Keeping


@pytest.mark.parametrize("keeping", [ALL_THAT_ENDED, ALL, TIGHT, Keeping(100, 0.0)], ids=repr)
def test_nobody_who_reads_notices(world: World, keeping: Keeping) -> None:
    """Forward, backward, from and to any seq, by time, one or many; and all that is derived stays as it is."""
    before, views = everything(world.log), derived(world)
    hot = events_on_the_server(world)

    done = archived(world, keeping)

    assert done.left == 0
    assert done.sessions > 5
    assert events_on_the_server(world) == hot - done.events
    assert everything(world.log) == before
    assert everything(world.store.open(archive=world.log.archive)) == before
    assert world.verify() == []
    assert derived(world) == views
    assert archived(world, keeping).sessions == 0


async def test_nobody_who_reads_with_asyncio_notices(world: World) -> None:
    before = {session: list(world.log.read(session)) for session in world.log.sessions()}
    archived(world, TIGHT)
    async with await world.store.open_async(archive=world.log.archive) as log:
        for session, commits in before.items():
            assert [commit async for commit in log.read(session)] == commits


def test_an_archived_session_goes_on(world: World) -> None:
    """It is reopened, its views and checkpoints follow, and it is archived again."""
    archived(world, ALL_THAT_ENDED)
    for session in ("ended-0", "ended-3"):
        assert world.log.head(session).is_cold  # type: ignore[union-attr]
        seq = world.log.head(session).seq  # type: ignore[union-attr]
        receipt = world.log.append(session, did("start"))
        assert receipt.first_seq == seq + 1
        for _ in range(3):
            world.log.append(session, notes(40))
        world.project()
        assert world.verify() == []
        world.log.append(session, did("completed"))
        world.project()
        assert archived(world, ALL_THAT_ENDED).sessions == 1
        assert world.log.head(session).is_cold  # type: ignore[union-attr]
        assert [commit.last_seq for commit in world.log.read(session)][-1] == seq + 122
    assert world.verify() == []


def test_what_is_derived_comes_back_from_archive_and_log(world: World) -> None:
    archived(world, TIGHT)
    before = derived(world)
    for key in list(world.store.keys()):
        if b":view:" in key or b":index:" in key or b":ckpt:" in key or b":cursor:" in key:
            world.redis.delete(key)
    world.project()
    assert world.verify() == []
    assert derived(world) == before
    assert not world.redis.exists(world.keyspace.of("ended-3").checkpoints("ended-3"))


# -- who appends -----------------------------------------------------------------------------------------------------


def test_a_repeat_of_what_is_archived_is_recognised(world: World) -> None:
    """Sent again by a producer that was away for long: with what it knew then, or with an exact seq."""
    session, event = "repeats", did("tool.called", id="mine")
    world.log.append(session, did("start"))
    first = world.log.append(session, event)
    for _ in range(4):
        world.log.append(session, notes(30))
    world.log.append(session, did("completed"))
    world.project()
    archived(world, ALL_THAT_ENDED)
    end = world.log.head(session)

    late = world.store.open(archive=world.log.archive)
    again = late.append(session, event, known=Position(1, None))
    exact = late.append(session, event, expected=1)
    known = late.append(session, event, known=Position(1, next(world.log.read(session)).digest))
    for receipt in (again, exact, known):
        assert (receipt.position, receipt.appended) == (first.position, 0)
    with pytest.raises(Conflict) as conflict:
        late.append(session, did("start"), expected=1)
    assert (conflict.value.code, conflict.value.facts["actual"]) == ("SEQ_CONFLICT", 122 + 1)
    with pytest.raises(Damaged) as fork:
        late.append(session, did("start"), known=Position(2, "f" * 20))
    assert (fork.value.code, fork.value.facts["first_bad_seq"]) == ("FORK", 2)
    with pytest.raises(Damaged) as at_the_horizon:
        late.append(session, did("start"), known=Position(123, "f" * 20))
    assert at_the_horizon.value.code == "FORK"
    assert world.log.head(session) == end


def test_an_id_in_the_archive_is_known_to_whoever_deduplicates(world: World) -> None:
    world.log.append("d", [did("start", id="one"), did("completed", id="two")])
    world.project()
    archived(world, ALL_THAT_ENDED)
    again = world.log.append("d", [did("start", id="one"), did("start", id="three")], dedupe=True)
    assert (again.appended, again.duplicates) == (1, 1)


def test_a_producer_without_the_archive_appends_and_reads_what_is_there(world: World) -> None:
    """It is told what it lacks only where it asks for it."""
    archived(world, TIGHT)
    log = world.store.open()
    log.append("ended-3", did("start"))
    seq = world.log.head("ended-3").seq  # type: ignore[union-attr]
    assert [commit.last_seq for commit in log.read("ended-3", after=seq - 1)] == [seq]
    with pytest.raises(Misconfigured, match="archive") as lacking:
        list(log.read("ended-3"))
    assert lacking.value.code == "ARCHIVE_NOT_GIVEN"
    assert list(log.read("open-0"))


# -- what stays ------------------------------------------------------------------------------------------------------


def test_what_is_not_in_the_views_stays(world: World) -> None:
    archived(world, TIGHT)
    world.log.append("late", [did("start"), did("completed")])
    world.log.append_many([])
    for _ in range(3):
        world.log.append("late-open", notes(60))
    assert archived(world, TIGHT).sessions == 0
    world.project()
    assert archived(world, TIGHT).sessions == 2


@pytest.mark.parametrize("trouble", ["quarantined", "parked", "no view", "damaged view", "other view", "no checkpoint"])
def test_a_session_in_doubt_stays(world: World, trouble: str) -> None:
    session = "open-3" if trouble == "no checkpoint" else "ended-3"
    keys = world.keyspace.of(session)
    match trouble:
        case "quarantined":
            world.projections.quarantine(session, "LOG_GAP", 5)
        case "parked":
            world.redis.hset(keys.parked(session_view.NAME), session, b"{}")
        case "no view":
            world.redis.delete(keys.session_view(session))
        case "damaged view":
            world.redis.setrange(keys.session_view(session), 30, b"x")
        case "other view":
            world.redis.set(
                keys.session_view(session), world.redis.get(world.keyspace.of("ended-0").session_view("ended-0"))
            )
        case "no checkpoint":
            world.redis.delete(keys.checkpoints(session))
    before = world.redis.xlen(keys.log(session))
    archived(world, TIGHT)
    assert world.redis.xlen(keys.log(session)) == before


def test_what_does_not_chain_is_not_archived(world: World) -> None:
    """The log of one session is damaged: it stays, for the validator to find, and all others go."""
    keys = world.keyspace.of("ended-3")
    world.redis.xdel(keys.log("ended-3"), "5-1")
    done = archived(world, ALL_THAT_ENDED)
    assert (done.left, done.sessions) == (1, 5)
    assert world.codes() == ["LOG_GAP"]


def test_a_session_that_moved_on_meanwhile_stays_as_it_is(world: World) -> None:
    """What was sealed then is found in the archive by the next round, and named once."""

    class Late(Archivist):
        def _keep(self, name: str, content: bytes) -> None:
            super()._keep(name, content)
            if "ended-3" in name:
                world.log.append("ended-3", did("start"))

    archivist = Late(world.log, world.projections, world.log.archive)
    for partition in range(2):
        archivist.partition(partition, ALL_THAT_ENDED)
    assert (archivist.done.sessions, archivist.done.left) == (6, 0)
    head = world.log.head("ended-3")
    assert head is not None
    assert (head.is_archived, head.is_cold) == (True, False)
    world.project()
    assert world.verify() == []


# -- whoever works with whole logs -----------------------------------------------------------------------------------


def test_a_subscriber_from_the_beginning_is_told_all_of_it(world: World) -> None:
    """Also where the feed is trimmed: by registry, log and archive; each event once, in the order of its session."""
    expected = {
        session: [event.id for one in world.log.read(session) for event in one.events]
        for session in world.log.sessions()
    }
    archived(world, ALL)
    for keys in world.keyspace.partitions:
        world.redis.xtrim(keys.feed, maxlen=0)
    told: dict[str, list[str]] = {}
    with world.log.subscribe(after="beginning") as events:
        for delivery in islice(events, sum(map(len, expected.values()))):
            assert delivery.event is not None
            told.setdefault(delivery.session, []).append(delivery.event.id)
    assert told == expected


def test_a_fork_of_what_is_archived_is_a_copy_of_it(world: World) -> None:
    archived(world, ALL)
    commits = list(world.log.read("ended-2"))
    forked = world.log.fork("ended-2", commits[1].last_seq, "forked")
    copied = list(world.log.read("forked", to=forked.seq))
    assert [commit.body for commit in copied] == [commit.body for commit in commits[:2]]
    world.project()
    assert world.verify() == []


def test_a_backup_holds_what_is_archived(world: World, tmp_path: Path, make_store: Callable[..., Store]) -> None:
    """And is restored without the archive."""
    before = {session: list(world.log.read(session)) for session in world.log.sessions()}
    archived(world, ALL)
    elsewhere = make_store(world.store.url, partitions=2, create=False)
    back_up(world, tmp_path / "backup")
    restore(elsewhere, tmp_path / "backup")
    log = elsewhere.open()
    assert {session: list(log.read(session)) for session in log.sessions()} == before


def test_it_is_archived_in_a_bucket_too(
    make_store: Callable[..., Store], server_url: str, make_bucket: Callable[[], str]
) -> None:
    url = make_bucket()
    archive = open_archive(url, KEYS)
    world = World(make_store(server_url, partitions=1), archive=archive)
    world.log.append("s", [*notes(60), did("completed")])
    world.project()
    before = everything(world.log)
    assert archived(world, ALL).sessions == 1
    assert everything(world.store.open(archive=open_archive(url, KEYS))) == before
    assert world.verify() == []
