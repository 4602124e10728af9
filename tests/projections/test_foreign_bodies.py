"""Bodies of producers without our library: what cannot be folded parks its own session, and nothing else stops."""

from __future__ import annotations

import msgspec
import pytest

from domain import Damaged, Event
from domain.codec import decode_body
from tests.chaos.effort import FULL, seeded
from tests.foreign import any_body
from tests.projections.world import World, did, foreign_append, only

BODIES = 2000 if FULL else 150


@pytest.mark.parametrize(
    "data", [b"\x81\xa6change\x81\xaaentity_ids\x91\xa1\xff", b"\x81\xa6change\x81\xaaentity_ids\x91\xa1\xc3"]
)
def test_entities_that_are_no_text_park_their_session_alone(world: World, data: bytes) -> None:
    """A body may be well-formed around text that is no UTF-8: that is found when the event is folded."""
    names = world.sessions(12)
    body = msgspec.msgpack.encode([["modified", "1", "ann", None, msgspec.Raw(data)]])
    assert foreign_append(world.store, names[0], "b", body)[0] == "APPENDED"
    for name in names[1:]:
        world.log.append(name, did("tool.called"))

    world.project()

    assert world.is_caught_up()
    assert only(world.verify(), "EVENT_UNREADABLE").session == names[0]
    assert {view["session"]: view["seq"] for view in world.views.sessions()} == {
        names[0]: 3,
        **dict.fromkeys(names[1:], 4),
    }


@pytest.mark.parametrize(("type", "actor"), [("Banana!", "ann"), ("", "ann"), ("note.made", ""), ("note.made", "x{1}")])
def test_a_type_or_an_actor_that_is_none_parks_its_session_alone(world: World, type: str, actor: str) -> None:
    """The function cannot see them; the fold does, before a name that is none becomes a part of a key."""
    names = world.sessions(12)
    body = msgspec.msgpack.encode([[type, "1", actor, None, {}]])
    assert foreign_append(world.store, names[0], ".", body)[0] == "APPENDED"

    world.project()

    assert world.is_caught_up()
    assert only(world.verify(), "EVENT_UNREADABLE").session == names[0]
    assert world.views.session(names[0])["seq"] == 3


def test_what_follows_an_illegal_event_may_be_of_any_kind(world: World) -> None:
    """The first damage is the finding, whatever stands behind it in the same page."""
    (name,) = world.sessions(1)
    world.log.append(name, did("completed"))
    illegal = msgspec.msgpack.encode([["modified", "1", "ann", None, {}]])
    for body in (illegal, b"\xc1", b"[", b"\x91\x01"):
        assert foreign_append(world.store, name, ".", body)[0] == "APPENDED"

    world.project()

    assert only(world.verify(), "EVENT_ILLEGAL").first_bad_seq == 5


def test_whatever_foreign_producers_send_all_other_sessions_go_on(world: World) -> None:
    """Any body at all, behind kinds that the gate takes: it is folded, or parks its session, and is found as such."""
    chance = seeded()
    foreign, good = [f"f-{n}" for n in range(BODIES)], [f"g-{n}" for n in range(20)]
    for name in foreign:
        body = any_body(chance)
        try:
            count = len(decode_body(body))
        except Damaged:
            count = 1
        foreign_append(world.store, name, "." * max(count, 1), body)
    for name in good:
        world.log.append(name, did("modified"))

    world.project()

    assert world.is_caught_up()
    findings = world.verify()
    assert {finding.code for finding in findings} <= {"EVENT_UNREADABLE", "EVENT_ILLEGAL", "EVENT_NEWER"}
    assert not {finding.session for finding in findings} & set(good)
    seqs = {view["session"]: view["seq"] for view in world.views.sessions()}
    assert {seqs[name] for name in good} == {1}
    list(world.views.agents())
    assert world.recover() == findings, "recovery repairs nothing that is as it was appended"
    assert world.log.append(good[0], Event.of("modified", actor="a")).first_seq == 2


def test_a_session_with_foreign_data_still_recognises_what_it_holds(world: World) -> None:
    """A deduplicated append to a session compares by content where it can be read, and by bytes where it cannot."""
    chance = seeded()
    for number in range(BODIES):
        session, body = f"d-{number}", any_body(chance)
        try:
            events = decode_body(body)
        except Damaged:
            continue
        if not events:
            continue
        foreign_append(world.store, session, "." * len(events), body)
        assert world.log.append(session, did("tool.called", id="mine"), dedupe=True).appended == 1
        assert world.log.append(session, did("tool.called", id="mine"), dedupe=True).appended == 0
        ours = {event.id for event in events} - {""}
        if ours and len({event.id for event in events}) == len(events):
            again = world.log.append(session, [event for event in events if event.id], dedupe=True)
            assert (again.appended, again.duplicates) == (0, len(ours))
