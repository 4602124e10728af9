"""`muster session` and `muster agent`: what readers get on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from domain import Event
from tests.conftest import Store
from tests.projections.world import World, did, run_cli


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A store with sixty sessions, all projected."""
    world = World(make_store(server_url, partitions=4))
    world.sessions(60)
    world.project()
    return world


def test_ls_pages_until_the_end(world: World) -> None:
    """Fifty at a time, or all, or as many as asked for, beginning after the last one of the page before."""
    whole = [row["session"] for row in run_cli(world, "session", "ls", "--all").rows]
    first = [row["session"] for row in run_cli(world, "session", "ls").rows]
    second = [row["session"] for row in run_cli(world, "session", "ls", "--after", first[-1]).rows]

    assert sorted(whole) == sorted(f"s-{n}" for n in range(60))
    assert len(first) == 50
    assert first + second == whole
    assert len(run_cli(world, "session", "ls", "--limit", "7").rows) == 7
    assert len(run_cli(world, "session", "ls", "--all", output="table").out.splitlines()) == 61


def test_show_shows_now_or_then(world: World) -> None:
    """With `--at`, the state right after that seq."""
    now = run_cli(world, "session", "show", "s-1").row
    then = run_cli(world, "session", "show", "s-1", "--at", "1").row

    assert (now["schema"], now["seq"], sorted(now["agents"])) == ("muster.session/1", 3, ["ann", "bob", "eve"])
    assert (then["seq"], sorted(then["agents"])) == (1, ["ann"])


def test_diff_says_what_differs(world: World) -> None:
    """A row a field, with both values: between two states of a session, or of two sessions."""
    rows = run_cli(world, "session", "diff", "s-1", "--from", "1", "--to", "2").rows
    listed = json.loads(run_cli(world, "session", "diff", "s-1", "--from", "1", "--to", "2", output="json").out)
    two = run_cli(world, "session", "diff", "s-1", "--from", "3", "--with", "s-2").rows
    table = run_cli(world, "session", "diff", "s-1", "--from", "3", output="table")

    assert listed == rows
    assert {"schema": "muster.change/1", "field": "seq", "before": 1, "after": 2} in rows
    assert {row["field"] for row in two} <= {"session", "digest", "started_at", "last_at"}
    assert (table.code, table.out) == (0, "")


def test_show_shows_then_by_the_clock_too(world: World) -> None:
    """`--at` also takes a time, as RFC 3339 or in ms: the state after the last commit at or before it."""
    first, *_, last = world.log.read("s-1")
    by_ms = run_cli(world, "session", "show", "s-1", "--at", str(last.at_ms)).row
    by_time = run_cli(world, "session", "show", "s-1", "--at", by_ms["last_at"]).row
    later = run_cli(world, "session", "show", "s-1", "--at", "2999-01-01T00:00:00+02:00").row
    before = run_cli(world, "session", "show", "s-1", "--at", str(first.at_ms - 1))

    assert by_ms == by_time == later == run_cli(world, "session", "show", "s-1").row
    assert (before.code, "TIME_UNKNOWN" in before.err) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("session", "show", "none"), 4),
        (("session", "show", "s-1", "--at", "9"), 4),
        (("session", "show", "s-1", "--at", "yesterday"), 9),
        (("session", "show", "s-1", "--at", "2026-01-01T00:00:00"), 9),
        (("session", "show", "s-1", "--at", "9" * 30), 9),
        (("session", "show", "not an id"), 9),
        (("session", "show"), 2),
        (("session",), 2),
        (("agent", "show", "none"), 4),
        (("session", "ls", "--limit", "x"), 2),
        (("session", "diff", "s-1"), 2),
        (("session", "diff", "s-1", "--from", "9"), 4),
        (("session", "diff", "s-1", "--from", "1", "--with", "none"), 4),
    ],
)
def test_what_cannot_be_shown_has_its_exit_code(world: World, arguments: tuple[str, ...], code: int) -> None:
    """Not found is 4, refused is 9, usage is 2; stdout stays empty."""
    ran = run_cli(world, *arguments)

    assert (ran.code, ran.out) == (code, "")
    assert ran.err


def test_agents_are_listed_and_shown(world: World) -> None:
    """Totals over all sessions, in order, page by page."""
    world.log.append("s-1", did("left", "ann"))
    world.project()

    assert [row["agent"] for row in run_cli(world, "agent", "ls").rows] == ["ann", "bob", "eve"]
    assert [row["agent"] for row in run_cli(world, "agent", "ls", "--after", "ann", "--limit", "1").rows] == ["bob"]
    assert run_cli(world, "agent", "show", "ann").row == {
        "schema": "muster.agent/1", "agent": "ann", "events": 61, "sessions": 60, "present": 59,
        "severities": {}, "perf_delta": 0.0,
    }  # fmt: skip


@pytest.fixture
def busy(world: World) -> World:
    """Some of the sessions are broken, tagged, completed."""
    for number in range(12):
        data = {"tags": ["auth"], "priority": "high", "impact": {"severity": "critical", "perf_delta": -3.5}}
        world.log.append(f"s-{number}", Event.of("broke", actor="eve", data=data))
    for number in range(6):
        done = Event.of("completed", actor="zoe", data={"outcome": "merged"})
        world.log.append(f"s-{number}", [did("modified", "zoe", entities=["src/a.py"]), did("test_pass", "zoe"), done])
    world.project()
    return world


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (("--state", "broken"), range(6, 12)),
        (("--state", "broken", "--state", "completed"), range(12)),
        (("--agent", "zoe"), range(6)),
        (("--entity", "src/a.py"), range(6)),
        (("--tag", "auth", "--priority", "high", "--severity", "critical"), range(12)),
        (("--outcome", "merged"), range(6)),
        (("--transition", "working>broken"), range(12)),
        (("--transition", "broke>test_pass", "--agent", "eve"), range(6)),
        (("--perf-below", "-3"), range(12)),
        (("--completed-since", "1h"), range(6)),
        (("--since", "1h", "--until", "2000-01-01T00:00:00Z"), ()),
        (("--started-until", "2000-01-01T00:00:00Z"), ()),
        (("--since", "2000-01-01T00:00:00Z", "--state", "broken"), range(6, 12)),
        (("--quarantined",), ()),
        (("--parked",), ()),
    ],
)
def test_ls_lists_and_counts_what_meets_a_filter(busy: World, wanted: tuple[str, ...], numbers: range) -> None:
    """Options are combined; one that is given twice means either."""
    found = run_cli(busy, "session", "ls", *wanted)

    assert sorted(row["session"] for row in found.rows) == sorted(f"s-{number}" for number in numbers)
    assert run_cli(busy, "session", "ls", *wanted, "--count").row == {
        "schema": "muster.count/1", "sessions": len(numbers),
    }  # fmt: skip


def test_ls_with_a_filter_pages_by_its_cursor(busy: World) -> None:
    """Each row holds the cursor after it; stderr says the last one."""
    whole = [row["session"] for row in run_cli(busy, "session", "ls", "--agent", "ann", "--all").rows]
    first = run_cli(busy, "session", "ls", "--agent", "ann", "--limit", "40")
    cursor = first.rows[-1]["cursor"]
    second = run_cli(busy, "session", "ls", "--agent", "ann", "--after", cursor)

    assert first.err == f"there may be more: --after {cursor}\n"
    assert [row["session"] for row in first.rows + second.rows] == whole
    assert len(whole) == 60
    assert run_cli(busy, "session", "ls", "--count").row["sessions"] == 60


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (("--since", "yesterday"), 2),
        (("--state", "asleep"), 9),
        (("--after", "s-1", "--tag", "a"), 9),
        (("--transition", "x"), 9),
    ],
)
def test_ls_refuses_what_no_session_can_have(world: World, wanted: tuple[str, ...], code: int) -> None:
    """An option that cannot be read is usage, a value that is none is refused; stdout stays empty."""
    ran = run_cli(world, "session", "ls", *wanted)

    assert (ran.code, ran.out) == (code, "")
    assert ran.err


def test_transitions_are_listed_page_by_page(busy: World) -> None:
    """By states, types, severity, perf_delta and time, over all sessions."""
    ran = run_cli(busy, "session", "transitions", "--transition", "working>broken", "--limit", "7")
    after = ran.rows[-1]["cursor"]
    rest = run_cli(busy, "session", "transitions", "--transition", "working>broken", "--after", after).rows

    assert ran.err == f"there may be more: --after {after}\n"
    assert sorted(row["session"] for row in ran.rows + rest) == sorted(f"s-{number}" for number in range(12))
    assert {(row["schema"], row["from"], row["to"], row["severity"]) for row in rest} == {
        ("muster.transition/1", "working", "broken", "critical"),
    }  # fmt: skip
    assert len(run_cli(busy, "session", "transitions", "--severity", "critical", "--perf-below", "-3").rows) == 12
    assert len(run_cli(busy, "session", "transitions", "--transition", "broke>test_pass", "--agent", "zoe").rows) == 6
    assert run_cli(busy, "session", "transitions", "--until", "2000-01-01T00:00:00Z").rows == []
    assert len(run_cli(busy, "session", "transitions", "--since", "1h", "--all").rows) == 24


def test_the_context_of_a_session_is_shown(busy: World) -> None:
    """As JSON, and a field a line."""
    told = run_cli(busy, "session", "context", "s-7", "--recent", "2").row

    assert (told["schema"], told["state"], told["tags"]) == ("muster.context/1", "broken", ["auth"])
    assert told["look_first"][0]["impact"] == {"severity": "critical", "perf_delta": -3.5}
    assert [event["seq"] for event in told["recent"]] == [4, 3]
    assert "look_first" in run_cli(busy, "session", "context", "s-7", output="table").out
    assert run_cli(busy, "session", "context", "none").code == 4


def test_an_agent_is_shown_by_itself(busy: World) -> None:
    """With its impacts; its events session by session."""
    told = run_cli(busy, "agent", "show", "eve").row
    events = run_cli(busy, "agent", "events", "zoe", "--all").rows

    assert (told["severities"], told["perf_delta"]) == ({"critical": 12}, -42.0)
    assert len(events) == 18
    assert {(event["schema"], event["actor"]) for event in events} == {("muster.agent-event/1", "zoe")}
    assert len(run_cli(busy, "agent", "events", "zoe", "--limit", "5").rows) == 5
    assert run_cli(busy, "agent", "events", "zoe", "--until", "2000-01-01T00:00:00Z").rows == []


def test_entities_and_figures_are_shown(busy: World) -> None:
    """Lists, one entity, figures now and over time."""
    assert [(row["entity"], row["sessions"]) for row in run_cli(busy, "entity", "ls").rows] == [("src/a.py", 6)]
    assert run_cli(busy, "entity", "ls", "--prefix", "x").rows == []
    assert run_cli(busy, "entity", "show", "src/a.py").row["agents"] == {"zoe": 6}
    assert run_cli(busy, "entity", "show", "none").code == 4
    figures = run_cli(busy, "stats", "--agents").row
    assert (figures["schema"], figures["sessions"], figures["by_state"]["completed"]) == ("muster.statistics/1", 60, 6)
    assert figures["agents"] == 4
    assert sum(row["started"] for row in run_cli(busy, "stats", "--by", "hour").rows) == 60
    assert len(run_cli(busy, "stats", "--by", "day", output="table").out.splitlines()) == 15
    assert run_cli(busy, "stats", "--since", "1h").code == 9
