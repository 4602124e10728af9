"""Sessions are found by what they are: exactly those that a reading of all logs finds, page by page, whatever became of
the indexes.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

import pytest
from msgspec import structs

from domain import Event
from projections import session_view
from projections.searching import Filter
from tests.chaos.effort import FULL
from tests.conftest import DATA, Store
from tests.projections.brute_force import Known, counted, generate, read
from tests.projections.world import World, did, raised_code
from workers.importing import Importer

FIELDS: Final = ("state", "agent", "entity", "tag", "priority", "outcome", "severity", "transition")
TIMES: Final = ("started", "last", "completed")
FILTERS: Final = 60 if FULL else 250
PAGE_SIZES: Final = (500, 10_000) if FULL else (1, 3, 50, 1000)


@pytest.fixture
def crowd(world: World) -> World:
    """A few hundred sessions of all kinds."""
    generate(world, 300)
    return world


def pages(world: World, filter: Filter, limit: int) -> list[dict[str, Any]]:
    """All pages of what is found."""
    found, cursor = [], None
    while True:
        page = world.views.find(filter, after=cursor, limit=limit)
        assert len(page.found) <= limit
        found += page.found
        cursor = page.cursor
        if cursor is None:
            return found
        assert page.found[-1]["cursor"] == cursor


def filter_of(**wanted: Any) -> Filter:
    """A filter by the names of its fields."""
    return Filter(**wanted)


def any_filter(chance: random.Random, known: dict[str, Known], conditions: int) -> Filter:
    """A filter that some session may meet."""
    wanted: dict[str, Any] = {}
    like = chance.choice(sorted(known))
    for field in chance.sample((*FIELDS, *TIMES, "perf_below"), conditions):
        if field == "perf_below":
            wanted[field] = chance.choice((-20, -0.3, 0, 0.15, 100))
        elif field in TIMES:
            at = known[like].time(field) or 1
            kind = chance.choice(("after", "before", "both"))
            wanted |= {f"{field}_after": at - chance.randrange(20)} if kind != "before" else {}
            wanted |= {f"{field}_before": at + chance.randrange(20)} if kind != "after" else {}
        else:
            of = known[like if chance.random() < 0.7 else chance.choice(sorted(known))]
            values = sorted(of.values(field))
            wanted[field] = tuple(chance.sample(values, min(len(values), chance.randint(1, 2))))
    return Filter(**wanted)


def assert_found(world: World, known: dict[str, Known], filter: Filter, limit: int) -> int:
    """What is found and counted is what the logs say; each once."""
    should = sorted(session for session, one in known.items() if one.meets(filter))
    found = pages(world, filter, limit)
    assert sorted(document["session"] for document in found) == should, filter
    assert world.views.count(filter) == len(should), filter
    return len(should)


def test_every_filter_finds_what_the_logs_say(world: World) -> None:
    """Any conditions together, in pages of any size; with MUSTER_CHAOS=full of 200,000 sessions."""
    generate(world, 200_000 if FULL else 300)
    known, chance = read(world.log), random.Random(11)

    sizes = [
        assert_found(world, known, any_filter(chance, known, chance.randint(0, 4)), chance.choice(PAGE_SIZES))
        for _ in range(FILTERS)
    ]

    assert sum(size > 0 for size in sizes) > FILTERS // 3


def test_every_value_there_is_finds_its_sessions(crowd: World) -> None:
    """Of each field."""
    known = read(crowd.log)
    for field in FIELDS:
        values = counted(known, field)
        assert values, field
        for value, count in values.items():
            assert assert_found(crowd, known, filter_of(**{field: value}), 100) == count


@pytest.mark.skipif(not (DATA / "incidents.ndjson.gz").exists(), reason="the data is not here")
def test_real_incidents_are_found_as_their_logs_say(server_url: str, make_store: Callable[..., Store]) -> None:
    """7,554 sessions of 1,439 agents where MUSTER_CHAOS=full; in the gate the first fifth of the file."""
    world = World(make_store(server_url, partitions=8))
    with gzip.open(DATA / "incidents.ndjson.gz") as lines:
        importer = Importer(world.log, reject=lambda _: None, progress=lambda _: None)
        assert importer.run(enumerate(islice(lines, None if FULL else 15_000), 1)).refused == 0
    world.project()
    known, chance = read(world.log), random.Random(3)

    for _ in range(40):
        assert_found(world, known, any_filter(chance, known, chance.randint(1, 3)), 500)
    for agent, count in chance.sample(sorted(counted(known, "agent").items()), 20):
        assert assert_found(world, known, Filter(agent=agent), 500) == count
    assert world.codes() == []


def test_an_order_of_time_is_kept_over_pages(crowd: World) -> None:
    """Without another condition sessions come in the order of the time that is asked for, over all partitions."""
    known = read(crowd.log)
    for name, field in (("started", "started_at"), ("last", "last_at"), ("completed", "completed_at")):
        times = [document[field] for document in pages(crowd, filter_of(**{f"{name}_after": 1}), 7)]
        assert times == sorted(times)
        assert len(times) == sum(one.time(name) is not None for one in known.values())


def test_many_sessions_of_one_moment_are_found_over_pages(world: World) -> None:
    """A page may end, and begin, anywhere among sessions of the same ms."""
    world.sessions(40, events=1)
    world.project()
    for partition in range(4):
        for page in world.projections.member_pages(partition):
            for session in page:
                view = session_view.decode(world.projections.views([session])[0] or b"")
                view.started_at = 5
                world.redis.set(world.keyspace.of(session).session_view(session), session_view.encode(view))
                world.redis.zadd(world.keyspace.of(session).started_index, {session: 5})

    found = [document["session"] for document in pages(world, Filter(started_before=6), 3)]

    assert found == sorted(f"s-{number}" for number in range(40))


def test_a_page_goes_on_where_the_last_one_ended_whatever_was_added(crowd: World) -> None:
    """Sessions that meet the filter all the while are each in one page; those added before the cursor are not."""
    before = [document["session"] for document in pages(crowd, Filter(state="working"), 10)]
    first = crowd.views.find(Filter(state="working"), limit=len(before) // 2)
    for number in range(60):
        crowd.log.append(f"new-{number}", did("start"))
    crowd.project()

    rest: list[str] = []
    cursor = first.cursor
    while cursor is not None:
        page = crowd.views.find(Filter(state="working"), after=cursor, limit=10)
        rest += [document["session"] for document in page.found]
        cursor = page.cursor

    old = [session for session in rest if not session.startswith("new-")]
    assert [document["session"] for document in first.found] + old == before
    assert len(set(rest)) == len(rest) > len(old)


def test_a_lagging_index_never_lies(world: World) -> None:
    """What was appended and is not projected changes nothing that is found; a view that is newer than its index is not
    given as what it is no more.
    """
    world.sessions(20)
    world.project()
    stale = world.projections.views(["s-3"])[0]
    world.log.append("s-3", did("broke"))
    assert world.views.find(Filter(state="broken")).found == []
    world.project()
    keys = world.keyspace.of("s-3")
    world.redis.zadd(keys.session_index, {"state\0working\0s-3": 0, "state\0completed\0s-4": 0})
    (broken,) = world.views.find(Filter(state="broken")).found
    assert broken["session"] == "s-3"
    assert "s-3" not in [document["session"] for document in world.views.find(Filter(state="working")).found]
    assert world.views.find(Filter(state="completed")).found == []
    assert stale is not None


def test_a_view_that_is_lost_or_damaged_is_read_from_its_log(crowd: World) -> None:
    """And what is found stays the same."""
    known = read(crowd.log)
    for number, session in enumerate(sorted(known)[:40]):
        key = crowd.keyspace.of(session).session_view(session)
        crowd.redis.set(key, b"garbage") if number % 2 else crowd.redis.delete(key)

    for state in ("working", "broken", "completed"):
        assert_found(crowd, known, Filter(state=state), 17)


@pytest.mark.parametrize("index", ["session_index", "started_index", "last_index"])
def test_an_index_that_is_lost_comes_back(crowd: World, index: str) -> None:
    """It is one finding, recovery brings it back, and all is found again."""
    known, before = read(crowd.log), crowd.derived()
    keys = crowd.keyspace.partitions[1]
    crowd.redis.delete(getattr(keys, index))

    (found,) = crowd.verify()
    assert (found.code, found.session, found.partition) == ("INDEX_DIFFERS", None, 1)
    assert crowd.recover() == []

    assert crowd.derived() == before
    assert_found(crowd, known, Filter(state="working"), 50)


def test_an_index_of_another_type_is_none_and_comes_back(crowd: World) -> None:
    """Queries go on without what it held."""
    before, keys = crowd.derived(), crowd.keyspace.partitions[1]
    crowd.redis.delete(keys.session_index)
    crowd.redis.set(keys.session_index, "none")

    assert crowd.views.find(Filter(state="working")).found
    assert {found.code for found in crowd.verify()} == {"INDEX_DIFFERS"}
    assert crowd.recover() == []
    assert crowd.derived() == before


def test_quarantined_sessions_are_found_without_reading_others(world: World) -> None:
    """From the step on that closes them, until an operator accepts the loss."""
    world.sessions(30)
    world.project()
    keys = world.keyspace.of("s-7")
    entries = world.redis.xrange(keys.log("s-7"))
    world.redis.xdel(keys.log("s-7"), entries[1][0])
    assert world.views.count(Filter(quarantined=True)) == 0
    world.recover()

    (found,) = world.views.find(Filter(quarantined=True)).found
    assert (found["session"], found["quarantined"]["code"]) == ("s-7", "LOG_GAP")
    assert world.views.count(Filter(quarantined=True)) == 1
    assert world.views.find(Filter(quarantined=True, state="completed")).found == []
    assert len(world.views.find(Filter(quarantined=True, state="working")).found) == 1
    assert {finding.code for finding in world.verify()} == {"LOG_GAP"}


def test_parked_sessions_are_found_by_their_list(crowd: World) -> None:
    """Alone and together with what else they are."""
    from tests.projections.world import lying_append

    for number in range(5):
        crowd.log.append(f"lied-{number}", [did("completed")])
        lying_append(crowd.store, f"lied-{number}", did("modified"), ".")
    crowd.project()

    assert sorted(document["session"] for document in pages(crowd, Filter(parked=True), 2)) == [
        f"lied-{number}" for number in range(5)
    ]
    assert crowd.views.count(Filter(parked=True, state="completed")) == 5
    assert crowd.views.find(Filter(parked=True, state="broken")).found == []


@pytest.mark.parametrize(
    "wanted",
    [
        {"state": "asleep"},
        {"priority": "urgent"},
        {"severity": "huge"},
        {"agent": "a\0b"},
        {"tag": ""},
        {"transition": "working"},
        {"transition": "working>start"},
        {"perf_below": float("nan")},
    ],
)
def test_what_no_session_can_have_is_refused(world: World, wanted: dict[str, Any]) -> None:
    """Before anything is asked of the server."""
    assert raised_code(lambda: world.views.find(Filter(**wanted))) == "USAGE"
    assert raised_code(lambda: world.views.count(Filter(**wanted))) == "USAGE"


@pytest.mark.parametrize("cursor", ["", "x", "id:", "last:5:s-1", "started:x:s-1", "started:5:"])
def test_what_is_no_cursor_of_this_filter_is_refused(crowd: World, cursor: str) -> None:
    """Rather than giving a page of something else."""
    asked = Filter(started_after=1)
    assert raised_code(lambda: crowd.views.find(asked, after=cursor)) == "USAGE"


def test_perf_deltas_are_summed_without_an_error(world: World) -> None:
    """In any order, over sessions and partitions: 0.1 + 0.2 - 0.3 is nothing."""
    deltas = [0.1, 0.2, -0.3, 1e15, -1e15, 1e-7, -12.5]
    for number in range(30):
        random.Random(number).shuffle(deltas)
        for delta in deltas:
            data = {"impact": {"perf_delta": delta, "severity": "low"}}
            world.log.append(f"s-{number}", Event.of("broke", actor="ann", data=data))
        world.project()

    agent = world.views.agent("ann")
    assert (agent["perf_delta"], agent["severities"]) == (30 * -12.5, {"low": 210})
    assert world.views.session("s-1")["agents"]["ann"]["perf_lowest"] == -1_000_000.0
    assert world.codes() == []


def test_a_view_of_an_older_release_is_built_again_and_is_no_damage(world: World) -> None:
    """Its cursor was another one: nothing is found meanwhile, nothing kept as replaced, and the old cursor goes."""
    world.sessions(12)
    world.project()
    before = world.derived()
    for keys in world.keyspace.partitions:
        world.redis.rename(keys.cursor("sessions", 2), keys.cursor("sessions", 1))
        world.redis.delete(*world.projections.index_keys(0))
        world.redis.delete(keys.session_index, keys.started_index, keys.last_index, keys.statistics)
    for session in [f"s-{number}" for number in range(12)]:
        from projections.sealed import seal

        old = seal(1, structs.astuple(session_view.decode(world.projections.views([session])[0] or b""))[:12])
        world.redis.set(world.keyspace.of(session).session_view(session), old)
        assert world.views.session(session)["seq"] == 3

    assert set(world.codes()) == {"CURSOR_MISSING"}

    world.project()

    assert world.derived() == before
    assert world.codes() == []
    names: Sequence[bytes] = world.store.keys()
    assert not [name for name in names if b":replaced:" in name or b"sessions@1" in name]


def test_either_of_two_values_is_found_over_many_pages(server_url: str, make_store: Callable[..., Store]) -> None:
    """Where one is met by few sessions and the other by many, none is passed over."""
    world = World(make_store(server_url, partitions=1))
    world.sessions(700, events=2)
    for number in range(0, 700, 10):
        world.log.append(f"s-{number}", did("joined", "zoe"))
    world.project()

    assert world.views.count(Filter(agent=("zoe", "bob"))) == 700
    assert len(pages(world, Filter(agent=("zoe", "bob")), 1000)) == 700
    assert world.views.count(Filter(agent=("zoe", "nobody"))) == 70
