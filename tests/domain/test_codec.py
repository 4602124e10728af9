"""Bytes to events and back, and the lines that are refused."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain import Commit, Damaged, Event, Limits, Refused
from domain.codec import (
    DIGEST_LENGTH,
    chain,
    decode_body,
    encode_body,
    fingerprint,
    format_line,
    genesis,
    id_of_line,
    parse_line,
    require_id,
)
from domain.invariants import fold
from domain.session import Session, folded_data
from tests.chaos.effort import FULL, seeded
from tests.conftest import DATA
from tests.domain.log.logs import note, refused
from tests.domain.test_events import nested
from tests.foreign import any_body, damaged

NAMES = st.text("abcXYZ019._:@/+-", min_size=1, max_size=20).filter(lambda name: name != "muster")
TYPES = st.sampled_from(["start", "joined", "test_pass", "checkpoint", "tool.called", "a.b_1.c"])
TIMES = st.sampled_from([None, "2026-01-01T00:00:00Z", "1999-12-31T23:59:59.5+02:00"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=12)
)
KEYS = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))
#: Keys that built-in types know get a shape of their own, so the user's own keys begin with another letter.
PAYLOADS = st.dictionaries(KEYS.map(lambda key: "x" + key), VALUES, max_size=4)


@st.composite
def events(draw: st.DrawFn) -> Event:
    """Any legal event with an id."""
    return Event.of(draw(TYPES), actor=draw(NAMES), id=draw(NAMES), time=draw(TIMES), data=draw(PAYLOADS))


# -- lines -----------------------------------------------------------------------------------------------------------


@given(NAMES, events())
@example("s", Event.of("note.made", actor="a", id="1", data=nested(32)))
@example("s", Event.of("note.made", actor="a"))
def test_an_event_survives_its_line(session: str, event: Event) -> None:
    """Formatting and parsing give the same event back, byte by byte."""
    assert parse_line(format_line(session, event)) == (session, event)


@given(NAMES, events(), st.booleans(), st.sampled_from([None, 2]))
def test_a_line_may_be_written_in_any_style(session: str, event: Event, escaped: bool, indent: int | None) -> None:
    """Spaces, escapes and the order of keys change nothing."""
    fields = json.loads(format_line(session, event))
    shuffled = dict(reversed(fields.items()))
    line = json.dumps(shuffled, ensure_ascii=escaped, indent=indent).encode()

    assert parse_line(line) == (session, event)


def line(**fields: Any) -> bytes:
    """A good line, with these fields changed; None leaves one out."""
    whole = {"session": "m-1", "type": "note.made", "actor": "a", "id": "m:1", "data": {}, **fields}
    return json.dumps({name: value for name, value in whole.items() if value is not None}).encode()


#: One line for each way of being wrong: our own, so that this test needs no file.
MALFORMED: list[tuple[str, bytes]] = [
    ("LINE_NOT_JSON", b'{"session":"m-1","type":"modified"'),
    ("LINE_NOT_JSON", b"not json at all"),
    ("LINE_NOT_JSON", b""),
    ("LINE_NOT_JSON", line() + b" trailing"),
    ("LINE_NOT_JSON", line() + line()),
    ("LINE_NOT_JSON", line(actor="a").replace(b'"a"', b"'a'")),
    ("LINE_NOT_JSON", b"\xef\xbb\xbf" + line()),
    ("LINE_NOT_OBJECT", b"[]"),
    ("LINE_NOT_OBJECT", b'"x"'),
    ("LINE_NOT_OBJECT", b"null"),
    ("TEXT_NOT_UNICODE", b"\xff\xfe"),
    ("TEXT_NOT_UNICODE", line(data={"t": "x"}).replace(b'"x"', b'"\xff"')),
    ("TEXT_NOT_UNICODE", line(data={"t": "\ud800"})),
    ("TEXT_NOT_UNICODE", line(data={"\udc00": 1})),
    ("KEY_DUPLICATE", b'{"session":"m-1","session":"m-2","type":"start","actor":"a","id":"m:1"}'),
    ("KEY_DUPLICATE", line().replace(b"{}", b'{"a":{"b":1,"b":1}}')),
    ("NUMBER_INVALID", line().replace(b"{}", b'{"n":NaN}')),
    ("NUMBER_INVALID", line().replace(b"{}", b'{"n":-Infinity}')),
    ("NUMBER_INVALID", line().replace(b"{}", b'{"n":1e999}')),
    ("NUMBER_INVALID", line(data={"n": 2**64})),
    ("NUMBER_INVALID", line(data={"n": 10**400})),
    ("NESTED_TOO_DEEP", line(data=nested(33))),
    ("NESTED_TOO_DEEP", line().replace(b"{}", b"[" * 100_000 + b"]" * 100_000)),
    ("FIELD_UNKNOWN", line(extra=1)),
    ("FIELD_MISSING", line(session=None)),
    ("FIELD_MISSING", line(type=None)),
    ("FIELD_MISSING", line(actor=None)),
    ("FIELD_INVALID", line(data=[])),
    ("FIELD_INVALID", line().replace(b"{}", b"null")),
    ("FIELD_INVALID", line(type="modified", data={"change": {"element_type": "banana"}})),
    ("FIELD_INVALID", line(type="modified", data={"change": {"entity_ids": "x"}})),
    ("FIELD_INVALID", line(type="broke", data={"impact": {"severity": "fatal"}})),
    ("FIELD_INVALID", line(type="extended", data={"ttl_s": 5})),
    ("FIELD_INVALID", line(type="test_pass", data={"transition": {"confidence": 1.5}})),
    ("SESSION_INVALID", line(session="m 1")),
    ("SESSION_INVALID", line(session="m{1}")),
    ("SESSION_INVALID", line(session="s" * 201)),
    ("SESSION_INVALID", line(session=1)),
    ("ACTOR_INVALID", line(actor="")),
    ("ACTOR_INVALID", line(actor="a\x00b")),
    ("ACTOR_RESERVED", line(actor="muster")),
    ("ID_INVALID", line(id="")),
    ("ID_INVALID", line(id=7)),
    ("TYPE_UNKNOWN", line(type="banana")),
    ("TYPE_UNKNOWN", line(type="..")),
    ("TYPE_UNKNOWN", line(type=1)),
    ("TYPE_RESERVED", line(type="muster.x")),
    ("TIME_INVALID", line(time="yesterday")),
    ("EVENT_TOO_LARGE", line(data={"big": "x" * 300_000})),
]


@pytest.mark.parametrize(("code", "bad"), MALFORMED, ids=[f"{n}-{code}" for n, (code, _) in enumerate(MALFORMED)])
def test_a_malformed_line_is_refused(code: str, bad: bytes) -> None:
    """Each way of being wrong has its code, and the cause stays short whatever the line holds."""
    error = refused(lambda: parse_line(bad), Refused, code)

    assert len(error.cause) < 200
    assert error.cause.isprintable()


def test_every_line_of_the_file_of_malformed_lines_is_refused() -> None:
    """All the lines that users sent us as broken are refused; the one without an id because files need it."""
    path = DATA / "malformed.ndjson.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    lines = gzip.decompress(path.read_bytes()).split(b"\n")[:-1]

    def take(text: bytes) -> None:
        require_id(parse_line(text)[1])

    codes = []
    for text in lines:
        with pytest.raises(Refused) as error:
            take(text)
        codes.append(error.value.code)

    assert len(codes) == 29
    assert codes[7] == "FIELD_MISSING"
    assert parse_line(lines[7])[1].id == ""


def test_a_refused_line_is_named_by_its_id_where_it_has_one() -> None:
    """The id is read from a refused line if it is JSON at all."""
    assert id_of_line(line(type="banana")) == "m:1"
    assert id_of_line(line(id=7)) is None
    assert id_of_line(b"[]") is None
    assert id_of_line(b"not json") is None
    assert id_of_line(b"\xff") is None
    assert id_of_line(b"[" * 100_000) is None


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_line_breaks_the_parser(text: bytes) -> None:
    """Whatever bytes come, the answer is an event or a refusal."""
    with suppress(Refused):
        parse_line(text)


@given(VALUES)
def test_no_json_breaks_the_parser(value: Any) -> None:
    """Whatever value stands where an object, its data or an id should, the answer is an event or a refusal."""
    for text in (msgspec.json.encode(value), line(data=value), line(id=value), line(time=value), line(type=value)):
        with suppress(Refused):
            parse_line(text)


def test_limits_may_be_set() -> None:
    """Size and depth of what a line may hold are the caller's to bound."""
    refused(lambda: parse_line(line(data={"a": "x" * 100}), Limits(event_bytes=100)), Refused, "EVENT_TOO_LARGE")
    refused(lambda: parse_line(line(data=nested(3)), Limits(depth=2)), Refused, "NESTED_TOO_DEEP")
    assert parse_line(line(data=nested(3)), Limits(depth=3))[1].payload() == nested(3)


# -- bodies ----------------------------------------------------------------------------------------------------------


@given(st.lists(events(), min_size=1, max_size=5))
def test_events_survive_a_body(commit: list[Event]) -> None:
    """Encoding and decoding give the same events back."""
    assert decode_body(encode_body(commit)) == commit


@given(st.lists(events(), min_size=1, max_size=5))
def test_events_survive_a_json_body(commit: list[Event]) -> None:
    """The body of a producer without MessagePack, its lines without the session, gives the same events."""
    lines = [json.loads(format_line("s", event)) for event in commit]
    for fields in lines:
        del fields["session"]

    assert decode_body(json.dumps(lines).encode()) == commit
    assert decode_body(msgspec.json.encode(lines)) == commit


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[",
        b"[1]",
        b'[{"type":"start"}]',
        b'[{"type":"start","id":"1","actor":"a","extra":1}]',
        b'[{"type":"start","id":"1","actor":"a","data":[]}]',
        b'[{"type":"start","id":"1","actor":"a","data":{"n":99999999999999999999999}}]',
        b'[{"type":"start","id":"\xff","actor":"a"}]',
        b"[" * 100_000,
        b"\x91" * 100_000,
        b"\x91\x01",
        b"\x91\x92\xa5start\xa11",
        b"\xff",
        encode_body([note("1")])[:-1],
        encode_body([note("1")]) + b"\x00",
    ],
)
def test_a_body_that_is_none_is_damage(body: bytes) -> None:
    """Whatever stands where a body should, the answer is a typed error."""
    refused(lambda: decode_body(body), Damaged, "EVENT_UNREADABLE")


@given(st.binary(max_size=80))
def test_no_body_breaks_the_decoder(body: bytes) -> None:
    """Any bytes decode to events or to a typed error."""
    with suppress(Damaged):
        decode_body(body)


def test_a_commit_is_bounded() -> None:
    """Empty commits, too many events, too large ones and too many bytes are refused, each with its code."""
    size = len(encode_body([note("1")])) - 1
    assert decode_body(encode_body([note("1")] * 3, Limits(commit_events=3, commit_bytes=3 * size + 1)))

    refused(lambda: encode_body([]), Refused, "COMMIT_EMPTY")
    refused(lambda: encode_body([note("1")] * 3, Limits(commit_events=2)), Refused, "COMMIT_TOO_LARGE")
    refused(lambda: encode_body([note("1")] * 3, Limits(commit_bytes=3 * size)), Refused, "COMMIT_TOO_LARGE")
    refused(lambda: encode_body([note("1"), note("22")], Limits(event_bytes=size)), Refused, "EVENT_TOO_LARGE")


def test_a_commit_decodes_its_events_once() -> None:
    """The events of a commit are decoded when they are first asked for, and then kept."""
    commit = Commit("s", 1, 1, 0, "", encode_body([note("1")]))

    assert commit.events is commit.events


@given(events())
def test_a_fingerprint_tells_events_apart(event: Event) -> None:
    """Two events with the same content have the same fingerprint, and any change of content changes it."""
    payload = event.payload()
    same = Event.of(event.type, actor=event.actor, id="other", time=event.time, data=dict(reversed(payload.items())))
    assert fingerprint(event) == fingerprint(same)

    for other in (
        Event.of("other.type", actor=event.actor, time=event.time, data=payload),
        Event.of(event.type, actor=event.actor + "x", time=event.time, data=payload),
        Event.of(event.type, actor=event.actor, time="2000-01-01T00:00:00Z", data=payload),
        Event.of(event.type, actor=event.actor, time=event.time, data={**payload, "other": 1}),
    ):
        assert fingerprint(event) != fingerprint(other)


# -- digests ---------------------------------------------------------------------------------------------------------


def test_the_digest_is_the_one_written_down() -> None:
    """The chain's bytes are part of the wire and never change; these values were computed with sha1sum."""
    assert genesis("s-1") == "ae06c6741e21874214df"
    assert chain("ae06c6741e21874214df", "s-1", 1, 2, 1767225600000, b"body") == "5178cc086c8f239a3bf9"


@given(st.integers(0, 5))
def test_the_digest_covers_every_part_of_a_commit(part: int) -> None:
    """Changing any one part changes the digest."""
    parts: list[Any] = [genesis("s"), "s", 1, 1, 1000, b"body"]
    changed = list(parts)
    changed[part] = {0: genesis("t"), 1: "t", 2: 2, 3: 2, 4: 1001, 5: b"bodY"}[part]

    assert len(chain(*parts)) == DIGEST_LENGTH
    assert chain(*parts) != chain(*changed)


# -- bodies of others ------------------------------------------------------------------------------------------------


def test_no_foreign_body_breaks_a_reader() -> None:
    """Whatever a body holds, reading, comparing, printing and folding its events give a value or a typed error."""
    chance = seeded()
    for _ in range(200_000 if FULL else 3000):
        body = any_body(chance)
        try:
            events = decode_body(body)
        except Damaged:
            continue
        for event in events:
            assert fingerprint(event) == fingerprint(event)
            for read in (event.payload, partial(folded_data, event), partial(format_line, "s", event)):
                with suppress(Damaged):
                    read()
        digest = chain(genesis("s"), "s", 1, len(events), 1, body)
        session = Session("s", digest=genesis("s"))
        with suppress(Damaged):
            fold(session, Commit("s", 1, len(events), 1, digest, body))
            assert session.seq == len(events)
            assert decode_body(encode_body(events)) == events


def test_no_damaged_line_breaks_the_parser() -> None:
    """A good line with bytes changed, added, dropped or repeated is parsed or refused, and what is parsed is legal."""
    chance = seeded()
    good = line(data={"change": {"entity_ids": ["x", "ü"]}, "n": 1.5e300}, type="modified", time="2026-01-01T00:00:00Z")
    for _ in range(200_000 if FULL else 3000):
        with suppress(Refused):
            session, event = parse_line(damaged(chance, good))
            assert parse_line(format_line(session, event)) == (session, event)
