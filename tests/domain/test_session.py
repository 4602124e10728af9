"""The fold of a session, given / when / then; its table in full; real logs against what others computed."""

from __future__ import annotations

import gzip
import json
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import Damaged, Event, Refused, Session
from domain.agent import Totals, contributions, difference, merge
from domain.codec import parse_line, require_id
from domain.events import BUILT_IN
from domain.session import GATE, gate_after, kind_of, kinds_of
from tests.conftest import DATA
from tests.domain.log.logs import refused

TYPES: Final = [*BUILT_IN, "tool.called"]
LETTER: Final = {"working": "w", "broken": "b", "coordinating": "c", "completed": "C", "expired": "e"}


def event(story: str, **data: Any) -> Event:
    """`broke` by agent a, or `broke:b` by agent b."""
    type, _, actor = story.partition(":")
    return Event.of(type, actor=actor or "a", data=data)


def given_(*story: str) -> Session:
    """A session in which this happened."""
    session = Session("s")
    for word in story:
        session.apply(event(word))
    return session


# -- the table -------------------------------------------------------------------------------------------------------

#: given, when, then: the table of the design's section 7, written down once more and by hand. `!` stands for refused.
TABLE: Final[list[tuple[tuple[str, ...], str, str]]] = [
    # a session begins with whatever event comes first
    *[((), type, "working") for type in TYPES if type not in ("broke", "handoff", "completed", "expired")],
    ((), "broke", "broken"),
    ((), "handoff", "coordinating"),
    ((), "completed", "completed"),
    ((), "expired", "expired"),
    # working and broken
    *[(("broke",), type, "broken") for type in ("joined", "left", "modified", "checkpoint", "extended", "tool.called")],
    *[
        (("start",), type, "working")
        for type in ("joined", "left", "modified", "checkpoint", "extended", "tool.called")
    ],
    (("broke",), "start", "working"),
    (("broke",), "test_pass", "working"),
    (("broke",), "handoff", "coordinating"),
    (("start",), "broke", "broken"),
    # coordinating, by the agent that handed off
    *[
        (("handoff",), t, "coordinating")
        for t in ("joined", "left", "modified", "checkpoint", "extended", "tool.called")
    ],
    (("handoff",), "handoff", "coordinating"),
    (("handoff",), "broke", "broken"),
    (("handoff",), "test_pass", "working"),
    (("handoff",), "start", "working"),
    (("handoff",), "completed", "completed"),
    # coordinating, by any other: working first, then the event's own rule
    *[
        (("handoff",), f"{t}:b", "working")
        for t in ("joined", "left", "modified", "checkpoint", "extended", "tool.called")
    ],
    (("handoff",), "broke:b", "broken"),
    (("handoff",), "completed:b", "completed"),
    (("handoff",), "handoff:b", "coordinating"),
    (("handoff", "handoff:b"), "modified:a", "working"),
    (("handoff", "handoff:b"), "modified:b", "coordinating"),
    (("handoff", "joined:b"), "modified:a", "working"),
    # completed
    *[(("completed",), type, "completed") for type in ("left", "checkpoint", "tool.called", "tool.called:b")],
    (("completed",), "expired", "expired"),
    (("completed",), "start", "working"),
    *[(("completed",), type, "!") for type in ("joined", "modified", "broke", "test_pass", "handoff", "completed")],
    (("completed",), "extended", "!"),
    (("completed", "start"), "modified", "working"),
    # expired
    (("expired",), "start", "working"),
    *[(("expired",), type, "!") for type in TYPES if type != "start"],
    (("completed", "expired"), "start", "working"),
    (("completed", "expired"), "left", "!"),
    (("expired", "start", "broke"), "modified", "broken"),
]


@pytest.mark.parametrize(("given", "when", "then"), TABLE, ids=[f"{'+'.join(g)}-{w}" for g, w, _ in TABLE])
def test_an_event_leads_to_the_state_the_table_says(given: tuple[str, ...], when: str, then: str) -> None:
    """Given what happened, when this happens, then the session is in that state; or the event is illegal."""
    session = given_(*given)
    before = given_(*given)

    if then == "!":
        error = refused(lambda: session.apply(event(when)), Damaged, "EVENT_ILLEGAL")
        assert error.facts["seq"] == len(given) + 1
        assert session == before
    else:
        session.apply(event(when))
        assert session.state == then
        assert session.seq == len(given) + 1


def test_the_table_above_covers_every_gate_and_type() -> None:
    """For each gate and each type the table has a row, so that nothing new goes untested."""
    told = {(given_(*given).gate, when.partition(":")[0]) for given, when, _ in TABLE}

    assert told == set(product(GATE, TYPES))


@given(st.lists(st.sampled_from([f"{type}:{actor}" for type in TYPES for actor in "ab"]), max_size=12))
def test_the_gate_refuses_exactly_what_the_fold_refuses(story: list[str]) -> None:
    """The server's gate, which knows kinds alone, and the fold, which knows states, agree on every history."""
    session, gate = Session("s"), "o"
    for word in story:
        happening = event(word)
        after, refused_at = gate_after(gate, kinds_of([happening]))
        try:
            session.apply(happening)
        except Damaged:
            assert refused_at == 0
        else:
            assert refused_at is None
            gate = after
        assert session.gate == gate


def test_the_gate_follows_a_commit_event_by_event() -> None:
    """The index of the first refused event is told, and the gate right before it."""
    assert gate_after("o", "bcl.") == ("c", None)
    assert gate_after("o", "bcb") == ("c", 2)
    assert gate_after("c", "sbx") == ("e", None)
    assert gate_after("e", "") == ("e", None)
    assert kind_of("anything.else") == "."


# -- what else a session knows ---------------------------------------------------------------------------------------


def test_a_session_knows_its_agents() -> None:
    """Each agent's events, first and last seq, and whether it is present: acting joins, `left` leaves."""
    session = given_("start:a", "modified:b", "left:a", "tool.called:b", "left:c", "joined:a", "left:b")

    parts = {name: (p.events, p.first_seq, p.last_seq, p.present) for name, p in session.agents.items()}
    assert parts == {"a": (3, 1, 6, True), "b": (3, 2, 7, False), "c": (1, 5, 5, False)}
    assert (session.first_actor, session.last_type) == ("a", "left")
    assert session.event_types == {"start": 1, "modified": 1, "left": 3, "tool.called": 1, "joined": 1}


def test_muster_itself_is_no_agent() -> None:
    """What Muster appends counts as an event of the session and of no agent."""
    session = given_("start")
    session.apply(Event("expired", "1", "muster"))

    assert (session.state, session.seq, list(session.agents)) == ("expired", 2, ["a"])


def test_entities_are_those_of_built_in_changes() -> None:
    """`change.entity_ids` of built-in events are collected; the same key in a dotted event is the user's own."""
    session = Session("s")
    session.apply(event("modified", change={"entity_ids": ["f", "g"]}))
    session.apply(event("broke", change={"entity_ids": ["g", "h"]}, own=1))
    session.apply(event("note.made", change={"entity_ids": ["x"]}))
    session.apply(event("modified", change={"operation": "added"}))
    session.apply(event("modified", change=None))

    assert session.entities == {"f", "g", "h"}


def test_data_no_library_writes_is_damage() -> None:
    """A foreign producer's built-in event with a `change` of another shape is a typed error."""
    foreign = Event("modified", "1", "a", None, Event.of("x.y", actor="a", data={"change": "of mind"}).data)

    refused(lambda: Session("s").apply(foreign), Damaged, "EVENT_UNREADABLE")


# -- agents ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([f"{type}:{actor}" for type in TYPES for actor in "abc"]), max_size=10), st.data())
def test_differences_add_up_to_the_whole(story: list[str], data: st.DataObject) -> None:
    """Totals moved step by step, in steps of any size, equal the contributions of the end; nothing is counted twice."""
    session, before, totals = Session("s"), dict[str, Totals](), dict[str, Totals]()
    for word in story:
        try:
            session.apply(event(word))
        except Damaged:
            continue
        if data.draw(st.booleans()):
            after = contributions(session)
            merge(totals, difference(before, after))
            before = after
    merge(totals, difference(before, contributions(session)))

    assert totals == contributions(session)
    assert difference(totals, totals) == {}
    assert sum(total.events for total in totals.values()) == session.seq


def test_an_agent_is_counted_present_where_it_did_not_leave() -> None:
    """A session adds to an agent's totals its events, itself once, and itself once more while the agent is there."""
    session = given_("start:a", "joined:b", "left:a", "handoff:b")

    assert contributions(session) == {"a": Totals(2, 1, 0), "b": Totals(2, 1, 1)}


def test_totals_are_added_in_any_order() -> None:
    """Addition is commutative and associative, and subtraction undoes it."""
    a, b, c = Totals(1, 2, 3), Totals(5, 1, 0), Totals(0, 7, 2)

    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert (a + b) - b == a


# -- real logs -------------------------------------------------------------------------------------------------------


def unpacked(path: Path) -> bytes:
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    return gzip.decompress(path.read_bytes())


@pytest.mark.parametrize("name", ["coding_agents", "incidents", "receipt", "rules"])
def test_real_logs_fold_to_what_others_computed(name: str) -> None:
    """Every state after every event, agents, types, entities and refusals equal those computed apart from Muster."""
    expected = json.loads(unpacked(DATA / f"{name}.expected.json.gz"))
    sessions: dict[str, Session] = {}
    states: dict[str, list[str]] = {}
    refusals: dict[str, list[str]] = {}
    for line in unpacked(DATA / f"{name}.ndjson.gz").splitlines():
        try:
            id, happening = parse_line(line)
            require_id(happening)
        except Refused as error:
            pytest.fail(f"{error}: {line!r}")
        session = sessions.setdefault(id, Session(id))
        try:
            session.apply(happening)
            states.setdefault(id, []).append(LETTER[session.state])
        except Damaged:
            refusals.setdefault(id, []).append(happening.id)

    found = {
        id: {
            "seq": session.seq,
            "state": session.state,
            "states": "".join(states[id]),
            "actors": sorted(session.agents),
            "types": session.event_types,
            "entities": sorted(session.entities),
            "first_actor": session.first_actor,
            "last_type": session.last_type,
            "refused": refusals.get(id, []),
        }
        for id, session in sessions.items()
    }
    for wanted in expected["sessions"].values():
        wanted.setdefault("refused", [])
    assert found == expected["sessions"]

    totals: dict[str, Totals] = {}
    for session in sessions.values():
        merge(totals, contributions(session))
    agents = {agent: {"events": t.events, "sessions": t.sessions} for agent, t in totals.items()}
    assert agents == expected["agents"]


# -- what queries ask for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("story", "transitions", "type_pairs"),
    [
        (("broke",), {}, {}),
        (("start", "modified", "broke"), {"working>broken": 1}, {"start>broke": 1}),
        (
            ("test_pass", "tool.called", "broke", "broke"),
            {"working>broken": 1},
            {"test_pass>broke": 1, "broke>broke": 1},
        ),
        (("handoff", "modified:b"), {"coordinating>working": 1}, {}),
        (("handoff", "broke:b"), {"coordinating>broken": 1}, {"handoff>broke": 1}),
        (("handoff", "modified"), {}, {}),
        (("completed", "start"), {"completed>working": 1}, {"completed>start": 1}),
    ],
)
def test_transitions_are_counted(
    story: tuple[str, ...], transitions: dict[str, int], type_pairs: dict[str, int]
) -> None:
    """Of states where they change, of events where they lead to a state, whatever came between; none into the first."""
    session = given_(*story)
    assert (session.transitions, session.type_pairs) == (transitions, type_pairs)


@pytest.mark.parametrize(
    ("story", "open_breaks"),
    [
        (("broke", "modified", "broke"), [1, 3]),
        (("broke", "handoff", "joined:b"), [1]),
        (("broke", "test_pass"), []),
        (("broke", "completed"), []),
        (("broke", "expired"), [1]),
        (("broke", "expired", "start", "broke"), [4]),
        (("broke",) * 40, list(range(9, 41))),
    ],
)
def test_breaks_are_open_until_something_works_again(story: tuple[str, ...], open_breaks: list[int]) -> None:
    """A handoff closes none, nor does expiry; the newest are kept."""
    assert given_(*story).open_breaks == open_breaks


def test_an_outcome_is_that_of_the_completion_that_holds() -> None:
    """Reopening takes it back; it is bounded."""
    session = given_("start")
    session.apply(event("completed", outcome="m" * 300))
    session.dated(7)
    assert (session.outcome, session.completed_at) == ("m" * 200, 7)
    session.apply(event("start"))
    assert (session.outcome, session.completed_at) == (None, 0)
    session.apply(event("completed"))
    session.dated(9)
    assert (session.outcome, session.completed_at) == (None, 9)


def test_tags_priority_and_marks_are_kept() -> None:
    """The first tags, the last priority, the seqs of the last handoff and checkpoint."""
    session = given_("start")
    session.apply(event("modified", tags=["a", "b"], priority="low"))
    session.apply(event("checkpoint", tags=["b", "x" * 201], priority="high"))
    session.apply(event("handoff"))
    session.apply(event("tool.called", tags=["free"], priority="low"))
    assert (session.tags, session.priority) == ({"a", "b"}, "high")
    assert (session.last_checkpoint, session.last_handoff) == (3, 4)
    session.apply(event("modified:b", tags=[f"t{number}" for number in range(100)]))
    assert len(session.tags) == 64


def test_impacts_are_those_of_the_agent_that_said_them() -> None:
    """A session's contributions to its agents' totals hold them."""
    session = given_("start")
    session.apply(event("broke", impact={"severity": "high", "perf_delta": -0.5}))
    session.apply(event("broke:b", impact={"severity": "low"}))
    session.apply(event("modified:b", impact={"perf_delta": 0.25}))
    totals = contributions(session)
    assert (totals["a"].high, totals["a"].perf_delta) == (1, -500_000)
    assert (totals["b"].low, totals["b"].perf_delta) == (1, 250_000)
