"""Sealed values: what is stored of a derived value, and that no altered byte of it is ever believed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.agent import Totals
from domain.errors import Damaged
from domain.session import Participation, Session
from projections import agent_view, session_view
from projections.sealed import Seal, seal

NAMES = st.text(max_size=12)
VALUES = st.dictionaries(NAMES, st.one_of(st.integers(-5, 5), st.lists(NAMES, max_size=3)), max_size=8)


def damage_of(call: Any, *arguments: Any) -> str:
    with pytest.raises(Damaged) as raised:
        call(*arguments)
    return raised.value.code


@given(value=VALUES)
def test_a_sealed_value_comes_back(value: dict[str, Any]) -> None:
    """What was sealed is what is opened."""
    assert Seal(3, dict[str, Any]).open(seal(3, value)) == value


@given(value=VALUES, at=st.integers(0), bit=st.integers(0, 7))
def test_any_altered_byte_is_noticed(value: dict[str, Any], at: int, bit: int) -> None:
    """One flipped bit anywhere, in the checksum, the version or the value, makes the bytes unreadable."""
    stored = bytearray(seal(1, value))
    stored[at % len(stored)] ^= 1 << bit

    assert damage_of(Seal(1, dict[str, Any]).open, bytes(stored)) == "VIEW_UNREADABLE"


@given(value=VALUES, cut=st.integers(0))
def test_a_cut_or_lengthened_value_is_noticed(value: dict[str, Any], cut: int) -> None:
    """Neither a prefix of the bytes nor more than they is believed."""
    stored = seal(1, value)
    for wrong in (stored[: cut % len(stored)], stored + b"\x00"):
        assert damage_of(Seal(1, dict[str, Any]).open, wrong) == "VIEW_UNREADABLE"


@given(pairs=st.lists(st.tuples(NAMES, st.integers(-5, 5)), unique_by=lambda pair: pair[0], max_size=8), data=st.data())
def test_equal_values_have_equal_bytes(pairs: list[tuple[str, int]], data: st.DataObject) -> None:
    """Whatever order a map or a set was filled in, its bytes are the same."""
    shuffled = data.draw(st.permutations(pairs))

    assert seal(1, (dict(pairs), {name for name, _ in pairs})) == seal(1, (dict(shuffled), {n for n, _ in shuffled}))


def test_equal_views_have_equal_bytes() -> None:
    """Two sessions in which agents and entities came in another order, but with the same result, are stored alike."""
    part = Participation(1, 1, 1, True)
    first = Session("s", agents={"ann": part, "bob": part}, entities={"a", "b"}, event_types={"x.y": 1, "start": 2})
    second = Session("s", agents={"bob": part, "ann": part}, entities={"b", "a"}, event_types={"start": 2, "x.y": 1})

    assert session_view.encode(first) == session_view.encode(second)


def test_another_version_is_not_read() -> None:
    """Bytes of another version of a projection are unreadable to this one, and so are bytes of another shape."""
    assert damage_of(Seal(2, int).open, seal(1, 7)) == "VIEW_UNREADABLE"
    assert damage_of(Seal(1, int).open, seal(1, "seven")) == "VIEW_UNREADABLE"


def test_another_agents_totals_are_not_read() -> None:
    """The totals of one agent, put under the name of another, are not taken for its own."""
    stored = agent_view.encode("ann", Totals(1, 1, 1))

    assert agent_view.decode("ann", stored) == Totals(1, 1, 1)
    assert damage_of(agent_view.decode, "bob", stored) == "VIEW_UNREADABLE"


def test_another_sessions_view_is_not_read() -> None:
    """The view of one session, put under the name of another, is not taken for its own."""
    stored = session_view.encode(session_view.initial("s-1"))

    assert session_view.readable(stored, "s-1") == session_view.initial("s-1")
    assert session_view.readable(stored, "s-2") is None
    assert session_view.readable(b"", "s-1") is None
    assert session_view.readable(None, "s-1") is None
