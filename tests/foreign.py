"""Bodies as no library of ours writes them: damaged ones, and well-formed ones that break the rules of events."""

from __future__ import annotations

import random
from typing import Any, Final

import msgspec
from msgspec import Raw
from msgspec.msgpack import Ext

from domain import Event
from domain.codec import encode_body, format_line

_TYPES: Final = (
    "start",
    "modified",
    "broke",
    "completed",
    "handoff",
    "note.made",
    "banana",
    "",
    "muster.own",
    "x" * 300,
    "ü\x00",
)
_NAMES: Final = ("a", "", "muster", " ", "x{1}", "\x00\n", "ü", "n" * 5000, "view:session:s")
_MARKS: Final = (0xC0, 0xC1, 0xC7, 0xD6, 0xDF, 0x80, 0x81, 0x91, 0x95, 0xD9, 0xA0, 0xFF, 0xCB, 0xCF, 0x5B, 0x22)


def damaged(chance: random.Random, body: bytes) -> bytes:
    """A body with a few bytes changed, added, dropped or repeated."""
    found = bytearray(body)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(found) + 1)
        to = chance.randrange(at, len(found) + 1)
        match chance.randrange(4):
            case 0:
                found[at:at] = bytes([chance.choice((*_MARKS, chance.randrange(256)))])
            case 1:
                del found[at : at + 1]
            case 2:
                found[at:to] = found[at:to] * 2
            case _:
                found[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(found)


def strange(chance: random.Random) -> bytes:
    """A well-formed body whose types, names and data break the rules."""
    return msgspec.msgpack.encode([_strange_event(chance) for _ in range(chance.randrange(1, 3))])


def any_body(chance: random.Random) -> bytes:
    """A body of any kind, also a good one."""
    events = [_good_event(chance) for _ in range(chance.randrange(1, 4))]
    good = encode_body(events)
    if chance.random() < 0.3:
        good = b"[" + b",".join(format_line("s", event).replace(b'"session":"s",', b"") for event in events) + b"]"
    return chance.choice([good, damaged(chance, good), damaged(chance, good), strange(chance), chance.randbytes(20)])


def _good_event(chance: random.Random) -> Event:
    data: dict[str, Any] = chance.choice(
        [
            {},
            {"change": {"entity_ids": ["x", "yü"]}},
            {"x": [1, {"k": 2.5}], "text": "ü" * 20},
            {"change": None},
            {"impact": {"severity": "high", "perf_delta": -0.1}, "tags": ["a", "ü"], "priority": "low"},
        ]
    )
    type = chance.choice(("start", "modified", "handoff", "note.made", "broke"))
    return Event.of(type, actor="a", id=f"e{chance.randrange(1 << 40)}", data=data)


def _strange_event(chance: random.Random) -> list[Any]:
    try:
        data = Raw(msgspec.msgpack.encode(_strange_value(chance)))
    except (TypeError, ValueError):
        data = Raw(b"\xc0")
    return [chance.choice(_TYPES), chance.choice(_NAMES), chance.choice(_NAMES), chance.choice((None, "", "now")), data]


def _strange_value(chance: random.Random, depth: int = 0) -> Any:
    match chance.randrange(6 if depth < 3 else 3):
        case 0:
            return Ext(chance.choice((-1, 5)), bytes(chance.choice((3, 4, 8, 12))))
        case 1 | 2:
            return chance.choice([1, -1, 2**63, float("nan"), float("-inf"), b"\xff", None, True, "x", "\x00", []])
        case 3:
            return [_strange_value(chance, depth + 1) for _ in range(3)]
        case 4:
            known = chance.choice(("impact", "tags", "priority", "outcome"))
            said = {chance.choice(("severity", "perf_delta")): _strange_value(chance, depth + 1)}
            strange = chance.choice([said, _strange_value(chance, depth + 1), ["high", 1], "high"])
            entities = chance.choice([{"entity_ids": _strange_value(chance, depth + 1)}, 7, []])
            return chance.choice([{"change": entities}, {known: strange}, {known: strange, "change": None}])
        case _:
            return {chance.choice(("k", "", 1, None, b"k", 1.5)): _strange_value(chance, depth + 1) for _ in range(3)}
