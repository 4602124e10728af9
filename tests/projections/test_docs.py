"""What docs/projections.md, docs/queries.md and docs/time-travel.md show works as it stands there."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from domain import Event
from projections.playing import Player
from projections.queries import Views
from projections.replaying import Replay, Selection
from tests.conftest import Store
from tests.projections.own_world import Own
from tests.projections.world import World

DOCS = Path(__file__).parents[2] / "docs"


def test_the_class_and_the_reading_in_the_document_work(server_url: str, make_store: Callable[..., Store]) -> None:
    """The example's class is accepted, gives what it says, and is read as it says."""
    declared, read = re.findall(r"```python\n(.*?)```", (DOCS / "projections.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(declared, names)
    world = World(make_store(server_url, partitions=4))
    for n in range(6):
        calls = [Event.of("llm.called", actor="a", data={"model": m, "tokens": n}) for m in ("large", "small")]
        world.log.append(f"s-{n}", [Event.of("start", actor="a"), *calls])
    own = Own(world, names["TokensByModel"])
    own.project()
    own.offer()

    lines = read.strip().splitlines()
    exec("\n".join(lines[:-2]), names | {"log": world.log}, names)

    assert eval(lines[-2].split("  #")[0], names) == 15
    assert eval(lines[-1], names) == [("large", 15), ("small", 15)]
    own.assert_right()


def test_the_queries_in_the_document_work(server_url: str, make_store: Callable[..., Store]) -> None:
    """With the log of this test in the place of the document's server."""
    (shown,) = re.findall(r"```python\n(.*?)```", (DOCS / "queries.md").read_text(), re.DOTALL)
    world = World(make_store(server_url, partitions=4))
    for number in range(60):
        data = {"tags": ["auth"], "impact": {"severity": "high"}}
        world.log.append(f"s-{number:02}", Event.of("broke", actor="agent-7", data=data))
    world.project()
    names: dict[str, Any] = {"log": world.log}

    exec(shown.replace('log = SessionLog.open("redis://127.0.0.1:6379/0")\n', ""), names)

    told = [one["session"] for one in names["page"].found + names["more"].found]
    assert sorted(told) == [f"s-{number:02}" for number in range(60)]
    assert names["views"].count(names["Filter"](severity="high")) == 60


def test_what_the_page_on_time_travel_shows_works(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Its two pieces of Python run as they stand there, on a session that has what they ask for."""
    first, second = re.findall(r"```python\n(.*?)```", (DOCS / "time-travel.md").read_text(), re.DOTALL)
    for number in range(60):
        world.log.append("s-1", Event.of("tool.called" if number % 2 else "modified", actor="agent-1"))
    given: dict[str, Any] = {"log": world.log, "store": world.projections, "UTC": UTC, "datetime": datetime}
    given |= {"Views": Views, "Event": Event, "Replay": Replay, "Selection": Selection, "Player": Player}

    exec(first.replace("datetime(2026, 1, 2", "datetime(2999, 1, 2"), given)
    exec(second, given)

    assert given["fork"].seq == 40
    assert world.log.head("s-1-other-way") is not None
    assert given["played"].events == 30 + 20
    assert len(capsys.readouterr().out.splitlines()) == 60 + 50
