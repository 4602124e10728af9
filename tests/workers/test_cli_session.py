"""`muster session` and `muster agent`: what readers get on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

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
    }  # fmt: skip
