"""Shapes of events: stated, kept, and brought into the current one step by step when they are read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import Damaged, Event, Misconfigured, Refused
from domain.codec import decode_body, encode_body, fingerprint, format_line, parse_line
from domain.upcast import NO_UPCASTERS, Upcasters
from tests.domain.log.logs import refused

plain = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4).filter(
    lambda data: all(not isinstance(value, int) or abs(value) < 1 << 60 for value in data.values())
)


def adding(n: int) -> Any:
    """A step that notes it was taken, in place."""

    def step(data: dict[str, Any]) -> dict[str, Any]:
        data["steps"] = f"{data.get('steps', '')}{n}"
        return data

    return step


@given(data=plain, shape=st.integers(1, 6), steps=st.integers(0, 5))
def test_every_step_from_a_shape_on_is_taken_once_and_in_order(data: dict[str, Any], shape: int, steps: int) -> None:
    """The stored event stays as it is; a shape beyond the last step is of somebody newer."""
    upcasters = Upcasters({"x.y": [adding(n) for n in range(1, steps + 1)]})
    event = Event.of("x.y", actor="a", id="1", data=data, shape=shape)
    before = bytes(event.data)

    if shape > steps + 1:
        refused(lambda: upcasters.upcast(event), Damaged, "EVENT_NEWER")
        return
    current = upcasters.upcast(event)

    assert current.shape == upcasters.current("x.y") == steps + 1
    taken = "".join(str(n) for n in range(shape, steps + 1))
    assert current.payload() == (data | {"steps": f"{data.get('steps', '')}{taken}"} if taken else data)
    assert bytes(event.data) == before
    assert upcasters.upcast(current) is current


def test_types_nobody_speaks_of_are_taken_as_they_are() -> None:
    """Without steps for its type an event is itself, whatever its shape."""
    event = Event.of("x.y", actor="a", shape=7)

    assert NO_UPCASTERS.upcast(event) is event
    assert Upcasters({"x.z": []}).upcast(event) is event
    assert Upcasters({"x.z": []}).current("x.y") is None


def failing(data: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("model")


@pytest.mark.parametrize("step", [failing, lambda _: None, lambda _: {"x": float("nan")}, lambda _: {"x": object()}])
def test_a_step_that_fails_says_which_one_at_which_event(step: Any) -> None:
    """By type, shapes and the event's id: what the user has to mend."""
    event = Event.of("x.y", actor="a", id="e-7")

    error = refused(lambda: Upcasters({"x.y": [step]}).upcast(event), Damaged, "UPCAST_FAILED")

    assert "x.y from shape 1 to 2" in str(error)
    assert "e-7" in str(error)


@pytest.mark.parametrize("steps", [{"start": []}, {"nodot": []}, {"X.Y": []}, {"x.y": ["step"]}])
def test_steps_for_what_is_not_the_users_are_refused(steps: Any) -> None:
    """When the table is made, not when the first event comes."""
    refused(lambda: Upcasters(steps), Misconfigured, "UPCASTER_INVALID")


@given(shape=st.integers(1, 65_535))
def test_a_shape_travels_with_its_event(shape: int) -> None:
    """In a body, in a producer's line, in a foreign body; another shape is another event."""
    event = Event.of("x.y", actor="a", id="1", data={"n": 1}, shape=shape)

    assert decode_body(encode_body([event])) == [event]
    assert parse_line(format_line("s", event)) == ("s", event)
    foreign = msgspec.json.encode([{"type": "x.y", "id": "1", "actor": "a", "data": {"n": 1}, "shape": shape}])
    assert decode_body(foreign) == [event]
    assert (fingerprint(event) == fingerprint(Event.of("x.y", actor="a", id="1", data={"n": 1}))) == (shape == 1)


def test_an_event_stored_before_there_were_shapes_has_the_first() -> None:
    """Bodies are never rewritten, so the oldest are read for ever; and a line without a shape stays without."""
    assert decode_body(msgspec.msgpack.encode([["x.y", "1", "a", None, {}]])) == [Event.of("x.y", actor="a", id="1")]
    assert b"shape" not in format_line("s", Event.of("x.y", actor="a", id="1"))


@pytest.mark.parametrize("shape", [0, -1, 65_536, True, "2", None, 1.5])
def test_what_is_no_shape_is_refused(shape: Any) -> None:
    """By the library, in a line, and in a foreign body."""
    line = msgspec.json.encode({"session": "s", "type": "x.y", "actor": "a", "id": "1", "shape": shape})
    body = msgspec.msgpack.encode([["x.y", "1", "a", None, {}, shape]])

    refused(lambda: parse_line(line), Refused, "FIELD_INVALID")
    refused(lambda: Event.of("x.y", actor="a", shape=shape), Refused, "FIELD_INVALID")
    refused(lambda: decode_body(body), Damaged, "EVENT_UNREADABLE")


def test_a_built_in_type_has_one_shape() -> None:
    """A producer of this release cannot state another one."""
    refused(lambda: Event.of("start", actor="a", shape=2), Refused, "FIELD_INVALID")
