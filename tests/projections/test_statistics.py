"""Figures are what a reading of all logs counts, over sessions and over time; and so is what was done to entities."""

from __future__ import annotations

from typing import Any

import pytest

from projections import indexing, session_view
from projections.searching import Filter
from tests.projections.brute_force import Known, counted, exact, generate, read
from tests.projections.world import World, did, raised_code

HOUR = 3_600_000


@pytest.fixture
def crowd(world: World) -> World:
    """A few hundred sessions of all kinds."""
    generate(world, 200)
    return world


def power(number: int) -> str:
    """The least power of two that is above a number."""
    above = 1
    while above <= number:
        above *= 2
    return f"<{above}"


def tally(values: list[str]) -> dict[str, int]:
    return {value: values.count(value) for value in set(values)}


def plainly(known: dict[str, Known]) -> dict[str, Any]:
    """The figures by all events."""
    sessions = list(known.values())
    said = [one for each in sessions for one in each.events]
    by_agents = [len(each.values("agent")) for each in sessions]
    took = [
        each.completed.at_ms - each.events[0].at_ms for each in sessions if each.state == "completed" and each.completed
    ]
    severities = [one.severity for one in said if one.severity is not None]
    states = [each.state for each in sessions]
    return {
        "sessions": len(sessions),
        "active": sum(state not in ("completed", "expired") for state in states),
        "by_state": {
            state: states.count(state) for state in ("working", "broken", "coordinating", "completed", "expired")
        },
        "by_priority": {name: counted(known, "priority")[name] for name in ("low", "normal", "high")},
        "events": len(said),
        "events_per_session": round(len(said) / len(sessions), 3),
        "sessions_by_events": tally([power(len(each.events)) for each in sessions]),
        "completed_took_ms": sum(took) // len(took),
        "completed_by_seconds": tally([power(ms // 1000) for ms in took]),
        "collaborations": sum(number > 1 for number in by_agents),
        "sessions_by_agents": tally([str(number) if number < 10 else "10+" for number in by_agents]),
        "breaks": sum(one.type == "broke" for one in said),
        "severities": tally(severities),
        "perf_delta": exact([one.perf_delta for one in said if one.perf_delta is not None]),
    }


def test_figures_are_what_the_logs_say(crowd: World) -> None:
    """However often sessions were reopened, in whatever batches they were projected."""
    known = read(crowd.log)

    assert crowd.views.statistics() == plainly(known)
    assert crowd.views.statistics(agents=True)["agents"] == len(counted(known, "agent"))


@pytest.mark.parametrize("damage", [None, b"garbage"])
def test_sums_that_are_lost_or_damaged_are_taken_from_the_views(crowd: World, damage: bytes | None) -> None:
    """Readers are told the same; recovery brings them back."""
    before, derived = crowd.views.statistics(), crowd.derived()
    for keys in crowd.keyspace.partitions[:2]:
        crowd.redis.delete(keys.statistics) if damage is None else crowd.redis.set(keys.statistics, damage)

    assert crowd.views.statistics() == before
    assert crowd.codes() == ["STATISTICS_DIFFER", "STATISTICS_DIFFER"]
    assert crowd.recover() == []
    assert crowd.derived() == derived


def test_damaged_sums_are_left_for_recovery(crowd: World) -> None:
    """A worker does not add to what it cannot read; what it projects meanwhile counts afterwards."""
    key = crowd.keyspace.of("s").statistics
    crowd.redis.set(key, b"garbage")
    crowd.log.append("s", did("start"))
    crowd.project()

    assert crowd.redis.get(key) == b"garbage"
    assert crowd.codes() == ["STATISTICS_DIFFER"]
    crowd.recover()
    assert crowd.views.statistics() == plainly(read(crowd.log))


def test_figures_over_time_are_counts_of_sessions(world: World) -> None:
    """By the hour and by the day, in UTC; nothing is counted twice."""
    now = world.projections.server_ms()
    now -= now % (24 * HOUR)
    keys = world.keyspace.partitions[1]
    for number, hours in enumerate((0, 0.5, 1, 25, 26, 49)):
        at = int(now - hours * HOUR)
        for index in (keys.started_index, keys.last_index) + ((keys.completed_index,) if number % 2 else ()):
            world.redis.zadd(index, {f"s-{number}": at})

    hours_told = world.views.statistics_over_time("hour", since=now - 2 * HOUR, until=now + 1)
    days = world.views.statistics_over_time("day", since=now - 48 * HOUR, until=now + 1)

    assert [row["started"] for row in hours_told] == [0, 2, 1]
    assert [(row["started"], row["completed"], row["last_appended"]) for row in days] == [
        (2, 1, 2),
        (2, 1, 2),
        (1, 0, 1),
    ]
    assert hours_told[1]["until"] == hours_told[2]["from"]
    assert len(world.views.statistics_over_time("hour")) == 48
    assert len(world.views.statistics_over_time("day")) == 14


def test_too_many_buckets_are_refused(world: World) -> None:
    """So that no answer grows without bounds."""
    assert raised_code(lambda: world.views.statistics_over_time("hour", since=0)) == "USAGE"
    assert raised_code(lambda: world.views.statistics_over_time("week")) == "USAGE"


def test_entities_are_listed_with_their_sessions(crowd: World) -> None:
    """In the order of their names, page by page, by prefix."""
    crowd.log.append("other", did("modified", entities=["größe.py", "src", "zzz"]))
    crowd.project()
    should = sorted(counted(read(crowd.log), "entity").items())

    assert [(one["entity"], one["sessions"]) for one in crowd.views.entities()] == should
    paged: list[tuple[str, int]] = []
    while page := list(crowd.views.entities(after=paged[-1][0] if paged else None, limit=4)):
        paged += [(one["entity"], one["sessions"]) for one in page]
    assert paged == should
    of_prefix = [one["entity"] for one in crowd.views.entities(prefix="src/1")]
    assert of_prefix == [entity for entity, _ in should if entity.startswith("src/1")]
    assert next(one["entity"] for one in crowd.views.entities(prefix="src/", after="a")) == "src/0.py"


def test_what_was_done_to_an_entity_is_what_the_logs_say(crowd: World) -> None:
    """Its events, breaks, agents and times."""
    known = read(crowd.log)
    said = [
        one
        for each in known.values()
        for one in each.events
        if "." not in one.type and "src/3.py" in (one.data.get("change") or {}).get("entity_ids", ())
    ]
    sessions = {one.session for one in said}

    told = crowd.views.entity("src/3.py")

    assert (told["sessions"], told["read"]) == (len(sessions), len(sessions))
    assert (told["events"], told["breaks"]) == (len(said), sum(one.type == "broke" for one in said))
    assert told["agents"] == tally([one.actor for one in said])
    assert told["by_state"] == tally([known[session].state for session in sessions])
    assert told["first_at"] <= told["last_at"]
    some = crowd.views.entity("src/3.py", most=5)
    assert (some["sessions"], some["read"]) == (len(sessions), 5)
    assert raised_code(lambda: crowd.views.entity("nowhere")) == "ENTITY_UNKNOWN"


def test_statistics_of_nothing_are_none(world: World) -> None:
    """Before the first session, and for a session without events."""
    told = world.views.statistics()
    assert (told["sessions"], told["events_per_session"], told["completed_took_ms"]) == (0, None, None)
    assert list(world.views.entities()) == []
    assert indexing.sums(session_view.initial("s")) == {}
    assert world.views.count(Filter()) == 0
