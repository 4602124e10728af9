"""`muster replay`: what is printed is what the log holds, and a replay that was broken off is gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Store
from tests.projections.world import Ran, World, did, run_cli
from tests.waiting import wait_until
from workers.child_process import start_child
from workers.cli.event import events_of

MUSTER: Final = [sys.executable, "-c", "import sys; from workers.cli import main; sys.exit(main())"]


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """Four sessions, written by turns, and projected."""
    world = World(make_store(server_url, partitions=4))
    for number in range(12):
        for session in ("s", "t", "u", "v"):
            events = [did("modified", "ann", entities=[f"f{number}"]), did("tool.called", "bob")][: 1 + number % 2]
            world.log.append(session, events)
    world.project()
    return world


def printed(world: World) -> list[dict[str, Any]]:
    """Every event of the log, as `event show` prints it, in the order of a replay."""
    events = [
        (commit.at_ms, event)
        for name in world.log.sessions()
        for commit in world.log.read(name)
        for event in events_of(commit)
    ]
    return [event for _, event in sorted(events, key=lambda one: (one[0], one[1]["session"], one[1]["seq"]))]


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def test_a_replay_prints_the_log_event_by_event(world: World, tmp_path: Path) -> None:
    """As JSON lines, as one list, into a file; the same everywhere."""
    expected = [without(event, "schema") for event in printed(world)]

    lines = run_cli(world, "replay").rows

    assert [without(row, "schema", "position", "skipped") for row in lines] == expected
    assert {row["schema"] for row in lines} == {"muster.replayed/1"}
    assert json.loads(run_cli(world, "replay", output="json").out) == lines
    target = tmp_path / "replayed.jsonl"
    ran = run_cli(world, "replay", "--output", str(target))
    assert (ran.code, ran.out) == (0, "")
    assert [json.loads(line) for line in target.read_text("utf-8").splitlines()] == lines
    table = run_cli(world, "replay", "s", "t", "--state", output="table").out.splitlines()
    assert len(table) == 36
    assert table[0].split()[1:] == ["s", "1", "modified", "ann", "working"]


def test_states_are_those_of_their_seqs(world: World) -> None:
    """With `--state`, what `session show --at` prints stands beside each event."""
    rows = run_cli(world, "replay", "s", "--session", "u", "--state", "--from", "7").rows

    assert {row["session"] for row in rows} == {"s", "u"}
    assert min(row["seq"] for row in rows) == 7
    for row in rows[::4]:
        assert row["state"] == world.views.session_at(row["session"], row["seq"])


def test_the_filters_are_those_of_the_command(world: World) -> None:
    """By actor, by type, and by time."""
    everything = run_cli(world, "replay").rows
    since, until = everything[20]["at"], everything[50]["at"]

    assert run_cli(world, "replay", "--actor", "bob").rows == [row for row in everything if row["actor"] == "bob"]
    assert run_cli(world, "replay", "--type", "tool.*").rows == [
        row for row in everything if row["type"] == "tool.called"
    ]
    between = run_cli(world, "replay", "--since", since, "--until", until).rows
    assert between == [row for row in everything if since <= row["at"] <= until]


def test_it_goes_on_after_a_position_or_after_its_own_file(world: World, tmp_path: Path) -> None:
    """A file whose last line was torn off is mended, and holds every event once in the end."""
    everything = run_cli(world, "replay").rows
    assert run_cli(world, "replay", "--after", everything[9]["position"]).rows == everything[10:]

    target = tmp_path / "replayed.jsonl"
    assert run_cli(world, "replay", "--output", str(target), "--after", "last").code == 0
    whole = target.read_bytes()
    for end in (0, 10, len(whole) // 2, len(whole) - 1, len(whole)):
        target.write_bytes(whole[:end])
        ran = run_cli(world, "replay", "--output", str(target), "--after", "last")
        assert (ran.code, target.read_bytes() == whole) == (0, True), end
    target.write_text("no replay\n")
    assert run_cli(world, "replay", "--output", str(target), "--after", "last").code == 9


def test_one_that_is_stopped_says_where_to_go_on(world: World, tmp_path: Path) -> None:
    """SIGTERM while it waits for the next event: exit 7, whole lines, and the position to go on after."""
    target = tmp_path / "replayed.jsonl"
    world.log.append("s", did("left", "ann"))
    command = [*MUSTER, "replay", "s", "--speed", "0.000001", "--output", str(target)]
    child = start_child(command, env=world.environ(), stderr=subprocess.PIPE)
    wait_until(lambda: target.exists() and target.stat().st_size > 0, message="the first event is written")
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)

    rows = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert (child.returncode, f"stopped; go on with --after {rows[-1]['position']}" in err.decode()) == (7, True), err
    run_cli(world, "replay", "s", "--output", str(target), "--after", rows[-1]["position"])
    assert [json.loads(line)["seq"] for line in target.read_text("utf-8").splitlines()] == list(range(1, 20))


def test_damage_is_told_and_the_rest_is_played(world: World) -> None:
    """Exit 8, after everything that verifies."""
    world.redis.xdel(world.keyspace.of("s").log("s"), "3-2")

    ran = run_cli(world, "replay")

    assert (ran.code, "damage: LOG_GAP" in ran.err) == (8, True)
    assert [row["seq"] for row in ran.rows if row["session"] == "s"] == [1]
    assert sum(row["session"] != "s" for row in ran.rows) == 54


def test_a_replay_writes_nothing(world: World) -> None:
    """No key of the store is another after it."""
    before = world.store.snapshot()

    assert run_cli(world, "replay", "--state", "--speed", "1000000").code == 0

    assert world.store.snapshot() == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("none",), 4),
        (("not an id",), 9),
        (("--speed", "0"), 9),
        (("--speed", "fast"), 9),
        (("--since", "7"), 9),
        (("--after", "nowhere"), 9),
        (("--after", "last"), 9),
        (("--output", "jsonl"), 9),
        (("--output", "/no/such/folder/file"), 4),
        (("--type", "nonsense"), 9),
        (("--from", "x"), 2),
    ],
)
def test_what_cannot_be_replayed_has_its_exit_code(world: World, arguments: tuple[str, ...], code: int) -> None:
    """Before anything is printed."""
    ran: Ran = run_cli(world, "replay", *arguments)

    assert (ran.code, ran.out) == (code, "")
