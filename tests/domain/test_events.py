"""The rules of an event's fields: what is taken, and what is refused with which code."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import Event, Refused
from domain.events import BUILT_IN, NO_DATA, check_session, shortened
from tests.domain.log.logs import refused

IDENTIFIERS = ["a", "agent-7", "s-1:2", "A.b_c:d@e/f+g-h", "9", "x" * 200]
NO_IDENTIFIERS: list[Any] = ["x" * 201, "two words", "a\n", "a\x00b", "{a}", "ü", "a,b", 7, b"a"]


@pytest.mark.parametrize("name", IDENTIFIERS)
def test_identifiers_are_taken(name: str) -> None:
    """Sessions, actors and events are named with 1 to 200 of a few ASCII characters."""
    check_session(name)
    event = Event.of("start", actor=name, id=name)

    assert (event.actor, event.id) == (name, name)


@pytest.mark.parametrize("name", [*NO_IDENTIFIERS, "", None])
def test_other_names_are_refused(name: Any) -> None:
    """Anything else is refused, each with the code of its field."""
    refused(lambda: check_session(name), Refused, "SESSION_INVALID")
    refused(lambda: Event.of("start", actor=name), Refused, "ACTOR_INVALID")
    if name:  # no id, and no text as the id, stand for an event that the log gives one
        refused(lambda: Event.of("start", actor="a", id=name), Refused, "ID_INVALID")


def test_musters_own_names_are_reserved() -> None:
    """The actor `muster` and types under `muster.` belong to Muster; names that merely resemble them are free."""
    refused(lambda: Event.of("start", actor="muster"), Refused, "ACTOR_RESERVED")
    refused(lambda: Event.of("muster.archived", actor="a"), Refused, "TYPE_RESERVED")

    assert Event.of("musters.note", actor="muster-2", id="muster").id == "muster"


@pytest.mark.parametrize("type", [*BUILT_IN, "tool.called", "a.b.c", "0.1", "_._", "x" * 126 + ".y"])
def test_known_and_dotted_types_are_taken(type: str) -> None:
    """Built-in types are bare words, all others lower-case words joined by dots."""
    assert Event.of(type, actor="a").type == type


@pytest.mark.parametrize(
    "type",
    ["banana", "Start", "tool.", ".called", "..", "a..b", "Tool.called", "a.b\n", "a-b.c", "", "x" * 127 + ".y", 1],
)
def test_other_types_are_refused(type: Any) -> None:
    """A type that is neither is refused, so that a slip of the pen does not become a new type."""
    refused(lambda: Event.of(type, actor="a"), Refused, "TYPE_UNKNOWN")


@pytest.mark.parametrize(
    "time",
    ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.123456+02:00", "1999-12-31T23:59:59-11:30", "2024-02-29T00:00:00Z"],
)
def test_times_with_an_offset_are_kept_to_the_letter(time: str) -> None:
    """The time is the producer's claim: its text is kept, not the instant it means."""
    assert Event.of("start", actor="a", time=time).time == time


@pytest.mark.parametrize(
    "time",
    [
        "yesterday",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-02-30T00:00:00Z",
        "",
        "2026-01-01T25:00:00Z",
        "\ud800",
        1.5,
        datetime(2026, 1, 1, tzinfo=UTC),
    ],
)
def test_other_times_are_refused(time: Any) -> None:
    """A time without an offset, or of a day that never was, tells nobody when."""
    refused(lambda: Event.of("start", actor="a", time=time), Refused, "TIME_INVALID")


TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("modified", {"change": {"element_type": "function", "entity_ids": ["f", "g ü"], "operation": "renamed"}}),
    ("modified", {"change": {"affected_lines": 3, "semantic_hash": "ab"}}),
    ("modified", {"change": {"entity_ids": ["x" * 1024]}}),
    ("modified", {"change": {}, "transition": {}, "impact": {}, "metadata": {}, "tags": []}),
    ("modified", {"change": None, "my_own": {"any": ["thing", 1, None, True, 2.5]}}),
    ("test_pass", {"transition": {"from": "broken", "to": "working", "verified_by": "test", "confidence": 1}}),
    ("broke", {"impact": {"severity": "critical", "tests_failed": ["t"], "perf_delta": -0.5, "external_ref": "r"}}),
    ("start", {"metadata": {"a": {"b": 1}}, "tags": ["x"], "priority": "high"}),
    ("handoff", {"to": "agent-2"}),
    ("completed", {"outcome": "done"}),
    ("extended", {"ttl_s": 60}),
    ("extended", {"ttl_s": 604800}),
    ("note.made", {"ttl_s": 5, "change": "of mind", "impact": 7}),
]


@pytest.mark.parametrize(("type", "data"), TAKEN)
def test_known_fields_and_any_others_are_kept(type: str, data: dict[str, Any]) -> None:
    """Fields of built-in types are optional, other keys are the user's own, and dotted types are free."""
    assert Event.of(type, actor="a", data=data).payload() == data


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("modified", {"change": {"element_type": "banana"}}),
    ("modified", {"change": {"entity_ids": "x"}}),
    ("modified", {"change": {"entity_ids": [1]}}),
    ("modified", {"change": {"entity_ids": ["a\nb"]}}),
    ("modified", {"change": {"entity_ids": ["a\x85"]}}),
    ("modified", {"change": {"entity_ids": ["x" * 1025]}}),
    ("modified", {"change": {"operation": "moved"}}),
    ("modified", {"change": {"affected_lines": "3"}}),
    ("modified", {"change": []}),
    ("test_pass", {"transition": {"confidence": 1.5}}),
    ("test_pass", {"transition": {"verified_by": "hope"}}),
    ("broke", {"impact": {"severity": "fatal"}}),
    ("broke", {"impact": {"tests_failed": "t"}}),
    ("broke", {"impact": {"perf_delta": "slow"}}),
    ("start", {"metadata": "text"}),
    ("start", {"tags": "x"}),
    ("start", {"priority": "urgent"}),
    ("handoff", {"to": 7}),
    ("completed", {"outcome": []}),
    ("extended", {"ttl_s": 59}),
    ("extended", {"ttl_s": 604801}),
    ("extended", {"ttl_s": "60"}),
]


@pytest.mark.parametrize(("type", "data"), REFUSED)
def test_known_fields_of_another_shape_are_refused(type: str, data: dict[str, Any]) -> None:
    """A known field of a built-in type has the type and range that readers rely on."""
    refused(lambda: Event.of(type, actor="a", data=data), Refused, "FIELD_INVALID")


def nested(levels: int) -> dict[str, Any]:
    """Data of so many levels."""
    data: dict[str, Any] = {}
    for _ in range(levels - 1):
        data = {"a": data}
    return data


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"x": float("nan")}, "NUMBER_INVALID"),
        ({"x": [float("-inf")]}, "NUMBER_INVALID"),
        ({"x": 2**64}, "NUMBER_INVALID"),
        ({"x": -(2**63) - 1}, "NUMBER_INVALID"),
        ({"x": "\ud800"}, "TEXT_NOT_UNICODE"),
        ({"\udfff": 1}, "TEXT_NOT_UNICODE"),
        ({"x": {1: 2}}, "FIELD_INVALID"),
        ({"x": b"bytes"}, "FIELD_INVALID"),
        ({"x": {1, 2}}, "FIELD_INVALID"),
        ({"x": object()}, "FIELD_INVALID"),
        ([], "FIELD_INVALID"),
        ("text", "FIELD_INVALID"),
        (nested(33), "NESTED_TOO_DEEP"),
        (nested(100_000), "NESTED_TOO_DEEP"),
    ],
)
@pytest.mark.parametrize("type", ["note.made", "modified"])
def test_data_that_json_cannot_carry_is_refused(type: str, data: Any, code: str) -> None:
    """What some reader could not read is refused when it is written."""
    refused(lambda: Event.of(type, actor="a", data=data), Refused, code)


@pytest.mark.parametrize(
    "data",
    [{"x": 2**64 - 1, "y": -(2**63)}, {"x": (1, [2])}, OrderedDict(x=1), MappingProxyType({"x": MappingProxyType({})})],
)
def test_every_kind_of_mapping_and_sequence_is_taken(data: Any) -> None:
    """Plain data may come in any mapping, and in tuples."""
    assert set(Event.of("note.made", actor="a", data=data).payload()) == set(data)


def test_data_may_nest_as_deep_as_the_limit() -> None:
    """Thirty-two levels are taken."""
    assert Event.of("note.made", actor="a", data=nested(32)).payload() == nested(32)


def test_no_data_is_an_empty_object() -> None:
    """An event without data and one with empty data are the same."""
    bare = Event.of("start", actor="a")

    assert bare == Event.of("start", actor="a", data={}) == Event.of("start", actor="a", data=None)
    assert bytes(bare.data) == NO_DATA
    assert bare.payload() == {}


@given(st.text(max_size=300))
def test_what_is_shown_of_bad_input_is_short_and_printable(text: str) -> None:
    """A cause quotes bad input in ASCII, and no more of it than helps."""
    shown = shortened(text)

    assert shown.replace("…", "").isascii()
    assert shown.isprintable()
    assert len(shown) < 100
