"""The line of a commit gives back the very bytes that were appended, whoever appended them."""

from __future__ import annotations

import json
import random

import hypothesis.strategies as st
from hypothesis import given

from domain import Commit, Event
from domain.codec import encode_body
from domain.log.lines import decode_line, encode_line
from tests.foreign import any_body


def commit_of(body: bytes, traceparent: str | None = None) -> Commit:
    return Commit("s", 3, 4, 1_700_000_000_000, "0" * 20, body, traceparent)


@given(st.integers(0, 2**32))
def test_any_body_comes_back_to_the_byte(seed: int) -> None:
    """Good ones of our library and of others, damaged ones, and noise."""
    commit = commit_of(any_body(random.Random(seed)), "00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    line = encode_line(commit)
    assert b"\n" not in line
    assert decode_line(line) == commit


def test_a_reader_finds_the_events_as_plain_json() -> None:
    """What our library wrote needs no copy of its bytes."""
    event = Event.of("tool.called", actor="a", id="1", data={"tool": "ls", "n": 1.0, "ü": [None, True]})
    line = json.loads(encode_line(commit_of(encode_body([event, event]))))
    told = {"type": "tool.called", "id": "1", "actor": "a", "data": {"tool": "ls", "n": 1.0, "ü": [None, True]}}
    assert line["events"] == [told, told]
    assert "body" not in line
