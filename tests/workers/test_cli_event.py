"""`muster event`: appends, imports and shows as commands, with their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.projections.world import World, notes, run_cli


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    return World(make_store(server_url, partitions=4))


def append(world: World, *more: str, session: str = "s", type: str = "modified") -> int:
    return run_cli(world, "event", "append", session, type, "--actor", "ann", *more).code


def test_append_prints_the_receipt(world: World) -> None:
    """Where the event stands, and its digest; a repeat under the same id and place is a duplicate."""
    first = run_cli(world, "event", "append", "s", "start", "--actor", "ann", "--id", "1", "--expect", "new").row
    again = run_cli(world, "event", "append", "s", "start", "--actor", "ann", "--id", "1", "--expect", "new").row

    assert (first["schema"], first["first_seq"], first["appended"]) == ("muster.receipt/1", 1, 1)
    assert (again["digest"], again["appended"], again["duplicates"]) == (first["digest"], 0, 1)


def test_an_event_with_an_id_of_its_own_may_be_appended_again(world: World) -> None:
    """Whoever does not know what became of a call repeats it: nothing is written twice, also after other events."""
    arguments = ("event", "append", "s", "modified", "--actor", "ann", "--id", "mine")
    first = run_cli(world, *arguments).row
    assert append(world) == 0
    again = run_cli(world, *arguments).row

    assert (first["appended"], again["appended"], again["duplicates"]) == (1, 0, 1)
    assert again["last_seq"] == first["last_seq"] == 1
    assert run_cli(world, *arguments, "--data", '{"other":1}').code == 9


def test_append_has_the_exit_code_of_what_went_wrong(world: World) -> None:
    """Refused is 9, a conflict 6; nothing is written then, nor by a dry run."""
    assert append(world, "--dry-run") == 0
    assert world.log.head("s") is None
    assert append(world) == 0
    assert append(world, "--expect", "7") == 6
    assert append(world, "--expect", "new") == 6
    for wrong in ("seven", "-1", "²", ""):
        assert append(world, f"--expect={wrong}") == 9
    assert append(world, "--data", "[]") == 9
    assert append(world, "--data", '{"a":1,"a":2}') == 9
    assert append(world, "--data", '{}, "actor": "bob"') == 9
    assert append(world, "--data", "{") == 9
    assert append(world, type="nothing") == 9
    assert append(world, session="not an id") == 9
    head = world.log.head("s")
    assert head is not None
    assert head.seq == 1


def test_show_and_tail_print_events(world: World) -> None:
    """One at a seq, or the last ones; what is not there is 4."""
    for number in range(4):
        world.log.append("s", notes(3, f"agent-{number}"))

    shown = run_cli(world, "event", "show", "s", "5").row
    tail = run_cli(world, "event", "tail", "s", "-n", "2").rows

    assert (shown["seq"], shown["actor"], shown["digest"]) == (5, "agent-1", None)
    assert [event["seq"] for event in tail] == [11, 12]
    assert tail[-1]["digest"] is not None
    assert run_cli(world, "event", "show", "s", "13").code == 4
    assert run_cli(world, "event", "show", "s", "0").code == 4
    assert run_cli(world, "event", "show", "none", "1").code == 4
    assert run_cli(world, "event", "tail", "none").code == 4


def test_import_reports_and_writes_rejects(world: World, tmp_path: Path) -> None:
    """Exit 0 when all lines are in, 7 when some were refused; each refused line is in the file of rejects."""
    good = tmp_path / "good.jsonl"
    lines = [{"session": "s", "type": "x.y", "actor": "ann", "id": f"{n}", "data": {}} for n in range(5)]
    good.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bad, rejects = tmp_path / "bad.jsonl", tmp_path / "rejects"
    bad.write_text(good.read_text() + "oops\n" + json.dumps({**lines[0], "id": "9"}) + "\n")

    first = run_cli(world, "event", "import", str(good))
    second = run_cli(world, "event", "import", str(bad), "--rejects", str(rejects))

    assert (first.code, first.row["appended"], first.row["lines"]) == (0, 5, 5)
    assert second.code == 7
    assert (second.row["appended"], second.row["duplicates"], second.row["refused"]) == (1, 5, 1)
    assert json.loads(rejects.read_text()) == {
        "line": 6, "id": None, "code": "LINE_NOT_JSON", "cause": json.loads(rejects.read_text())["cause"],
    }  # fmt: skip
    assert "refused: line 6" in run_cli(world, "event", "import", str(bad)).err


def test_import_of_what_cannot_be_read_is_not_found(world: World, tmp_path: Path) -> None:
    """A missing file, a directory, a file of rejects that cannot be written: exit 4."""
    assert run_cli(world, "event", "import", str(tmp_path / "none")).code == 4
    assert run_cli(world, "event", "import", str(tmp_path)).code == 4
    (tmp_path / "empty").touch()
    assert run_cli(world, "event", "import", str(tmp_path / "empty"), "--rejects", str(tmp_path)).code == 4
    assert run_cli(world, "event", "import", str(tmp_path / "empty")).row["lines"] == 0
