"""What happened in sessions is told as their logs say it: every transition, every event of an agent, what is open."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from domain import Event
from projections.queries import Views
from projections.searching import Filter, Page
from projections.session_view import rfc3339
from tests.projections.brute_force import LEADS_TO, Said, counted, exact, generate, read
from tests.projections.world import World, did, notes, raised_code


@pytest.fixture
def crowd(world: World) -> World:
    """A few hundred sessions of all kinds."""
    generate(world, 200)
    return world


def pages(page_after: Callable[[str | None], Page]) -> Iterator[dict[str, Any]]:
    """All that is told, page after page."""
    cursor = None
    while True:
        page = page_after(cursor)
        yield from page.found
        cursor = page.cursor
        if cursor is None:
            return


def meets(said: Said, wanted: Filter) -> bool:
    """Whether an event is one that is asked for, in the plainest words."""
    changed = said.before != said.after
    if wanted.agent and said.actor != wanted.agent:
        return False
    if not wanted.transition and not wanted.severity and wanted.perf_below is None:
        return changed
    if wanted.transition:
        of_states = changed and f"{said.before}>{said.after}" == wanted.transition
        if not of_states and not (said.type in LEADS_TO and f"{said.leading}>{said.type}" == wanted.transition):
            return False
    if wanted.severity and said.severity not in wanted.severity:
        return False
    return wanted.perf_below is None or (said.perf_delta is not None and said.perf_delta < wanted.perf_below)


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(),
        Filter(transition="working>broken"),
        Filter(transition="broken>working"),
        Filter(transition="coordinating>working"),
        Filter(transition="test_pass>broke"),
        Filter(transition="broke>broke"),
        Filter(severity=("high", "critical")),
        Filter(perf_below=-0.2),
        Filter(severity=("low",), perf_below=0.15, transition="working>broken"),
        Filter(agent="agent-3"),
        Filter(agent="agent-3", severity=("low", "high")),
    ],
    ids=repr,
)
def test_transitions_are_those_of_the_logs(crowd: World, wanted: Filter) -> None:
    """By states, by types of events, by severity and perf_delta, together, in pages of any size."""
    known = read(crowd.log)
    should = [said for one in known.values() for said in one.events if meets(said, wanted)]

    found: list[dict[str, Any]] = []
    for limit in (7, 10_000):
        found = list(pages(lambda cursor, limit=limit: crowd.views.transitions(wanted, after=cursor, limit=limit)))  # type: ignore[misc]
        assert sorted((one["session"], one["seq"]) for one in found) == sorted((one.session, one.seq) for one in should)
    told = {(said.session, said.seq): said for said in should}
    assert should
    for one in found:
        said = told[one["session"], one["seq"]]
        assert {name: value for name, value in one.items() if name != "cursor"} == {
            "session": said.session, "seq": said.seq, "time": rfc3339(said.at_ms), "actor": said.actor,
            "type": said.type, "from": said.before if said.seq > 1 else None, "to": said.after,
            "previous_type": said.leading, "severity": said.severity, "perf_delta": said.perf_delta,
        }  # fmt: skip


def test_what_else_a_filter_asks_for_is_of_the_session(crowd: World) -> None:
    """And times are those of the event."""
    known = read(crowd.log)
    times = sorted(said.at_ms for one in known.values() for said in one.events)
    since, until = times[len(times) // 3], times[2 * len(times) // 3]
    wanted = Filter(state="working", transition="working>broken")

    found = crowd.views.transitions(wanted, since=since, until=until, limit=10_000).found

    should = [
        (said.session, said.seq)
        for one in known.values()
        if one.state == "working"
        for said in one.events
        if meets(said, Filter(transition="working>broken")) and since <= said.at_ms < until
    ]
    assert sorted((one["session"], one["seq"]) for one in found) == sorted(should)
    assert should


def test_an_agent_by_itself_is_what_the_logs_say(crowd: World) -> None:
    """Its events over all sessions, page by page; its impacts by severity, and what it did to performance, exactly."""
    known = read(crowd.log)
    for agent in random.Random(5).sample(sorted(counted(known, "agent")), 8):
        said = [one for each in known.values() for one in each.events if one.actor == agent]

        told = list(pages(lambda cursor, agent=agent: crowd.views.agent_events(agent, after=cursor, limit=5)))  # type: ignore[misc]

        assert sorted((one["session"], one["seq"]) for one in told) == sorted((one.session, one.seq) for one in said)
        assert all(one["actor"] == agent for one in told)
        totals = crowd.views.agent(agent)
        assert totals["events"] == len(said)
        severities = [one.severity for one in said if one.severity is not None]
        assert totals["severities"] == {severity: severities.count(severity) for severity in set(severities)}
        assert totals["perf_delta"] == exact([one.perf_delta for one in said if one.perf_delta is not None])


def test_a_page_goes_on_within_a_session(world: World) -> None:
    """Where the last one ended, although the session went on since."""
    world.log.append("s", [did("start", "ann"), *notes(8, "ann")])
    world.log.append("t", [did("start", "ann")])
    world.project()
    first = world.views.agent_events("ann", limit=4)
    world.log.append("s", notes(2, "ann"))
    second = world.views.agent_events("ann", after=first.cursor, limit=100)

    told = [(one["session"], one["seq"]) for one in first.found + second.found]
    assert sorted(told) == [*(("s", seq) for seq in range(1, 12)), ("t", 1)]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("cursor", ["", "5", "x/id:s", "5/", "5/nowhere:s"])
def test_what_is_no_cursor_is_refused(crowd: World, cursor: str) -> None:
    assert raised_code(lambda: crowd.views.agent_events("agent-1", after=cursor)) == "USAGE"


def test_a_log_that_breaks_a_law_is_told_up_to_there(world: World) -> None:
    """And all other sessions wholly."""
    for session in ("good", "bad"):
        for type in ("start", "broke", "test_pass", "broke"):
            world.log.append(session, did(type, "ann"))
    world.project()
    entries = world.redis.xrange(world.keyspace.of("bad").log("bad"))
    world.redis.xdel(world.keyspace.of("bad").log("bad"), entries[2][0])

    found = world.views.transitions(Filter(transition="working>broken")).found

    assert sorted((one["session"], one["seq"]) for one in found) == [("bad", 2), ("good", 2), ("good", 4)]


def test_the_next_agent_is_told_what_is_open(world: World) -> None:
    """Open breaks, the worst first; the handoff, the last checkpoint, entities; the newest events."""

    def broke(severity: str, entity: str) -> Event:
        data = {"impact": {"severity": severity, "tests_failed": ["t1"]}, "change": {"entity_ids": [entity]}}
        return Event.of("broke", actor="ann", data=data)

    world.log.append("s", [did("start", "ann"), broke("critical", "old.py"), did("test_pass", "ann")])
    world.log.append("s", [did("checkpoint", "ann"), broke("low", "a.py"), broke("critical", "b.py")])
    world.log.append("s", broke("low", "c.py"))
    handoff = Event.of("handoff", actor="ann", data={"to": "bob", "reason": "stuck"})
    world.log.append("s", [*notes(30, "ann"), handoff, did("left", "ann")])

    for _ in range(2):  # as the log tells it, then as the view does
        told = world.views.context("s", recent=5)
        assert [(one["why"], one["seq"]) for one in told["look_first"]] == [
            ("an open break", 6), ("an open break", 7), ("an open break", 5), ("handed off", 38),
        ]  # fmt: skip
        assert told["look_first"][0]["impact"]["tests_failed"] == ["t1"]
        assert told["look_first"][0]["change"]["entity_ids"] == ["b.py"]
        assert (told["look_first"][3]["to"], told["look_first"][3]["reason"]) == ("bob", "stuck")
        assert [one["seq"] for one in told["recent"]] == [39, 38, 37, 36, 35]
        assert [one["seq"] for one in told["open_breaks"]] == [5, 6, 7]
        assert told["last_checkpoint"]["seq"] == 4
        assert told["entities"] == ["a.py", "b.py", "c.py", "old.py"]
        assert (told["state"], told["present"], told["quarantined"]) == ("coordinating", [], None)
        world.project()


def test_without_anything_open_the_last_event_comes_first(world: World) -> None:
    """There is always something to begin with."""
    world.log.append("s", [did("start"), did("broke"), did("test_pass")])

    (first,) = world.views.context("s")["look_first"]

    assert (first["why"], first["seq"]) == ("the last event", 3)
    assert raised_code(lambda: world.views.context("none")) == "SESSION_UNKNOWN"
    assert isinstance(world.views, Views)
