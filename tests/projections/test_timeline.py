"""What a timeline tells: each event, the state after it, pauses, phases, breaks and repairs, who had it in hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest
from hypothesis import given, settings
from msgspec import structs

from domain import Damaged, Event, MemoryLog
from domain.codec import encode_body
from projections import session_view
from projections.queries import state_at
from projections.stepping import Step, steps
from projections.timeline import Break, Happened, Idle, Item, Phase, Redaction, Turn, redacted, timeline
from tests.projections.world import did, histories, memory_log

S = 1000


class Clocked:
    """A session in memory, whose events come when the test says, in ms."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000
        self.log = MemoryLog(clock_ms=lambda: self.now)

    def append(self, after_s: float, *events: Event) -> None:
        self.now += int(after_s * S)
        self.log.append("s", events)

    def told(self, **options: Any) -> list[Item]:
        return list(timeline(steps(self.log, session_view.initial("s")), **options))


def of(items: Sequence[Item], kind: type[Any]) -> list[Any]:
    return [item for item in items if isinstance(item, kind)]


def broke(actor: str, **impact: Any) -> Event:
    return Event.of("broke", actor=actor, data={"impact": impact})


def handoff(actor: str, to: str | None = None) -> Event:
    return Event.of("handoff", actor=actor, data={} if to is None else {"to": to})


@settings(max_examples=25)
@given(histories())
def test_steps_are_every_event_with_the_state_at_its_seq(commits: list[list[Event]]) -> None:
    """Each seq once, in order, and at each the state that is read there."""
    log = memory_log("s", commits)
    walked = 0
    for step in steps(log, session_view.initial("s")):
        walked += 1
        expected, is_end = state_at(log, session_view.initial("s"), step.seq)
        assert step.seq == walked
        assert session_view.document(step.state, digest=step.digest is not None) == session_view.document(
            expected, digest=is_end
        )
    events = [event for commit in log.read("s") for event in commit.events]
    assert walked == len(events)
    assert [step.event for step in steps(log, session_view.initial("s"))] == events


def test_steps_end_where_they_are_told_to_or_where_a_law_is_broken() -> None:
    """Inside a commit too; before the first commit that breaks a law; and a log that ends early is an error."""
    log = memory_log("s", [[did("start"), did("joined")], [did("left"), did("joined")]])
    assert [step.seq for step in steps(log, session_view.initial("s"), to=3)] == [1, 2, 3]
    assert list(steps(log, session_view.initial("s"), to=0)) == []
    with pytest.raises(Damaged, match="TAIL_LOST"):
        list(steps(log, session_view.initial("s"), to=9))

    commit = log._commits["s"].pop()
    log._commits["s"].append(structs.replace(commit, body=encode_body([did("left")] * 2)))
    seen: list[Step] = []
    with pytest.raises(Damaged, match="LOG_ALTERED"):
        seen.extend(steps(log, session_view.initial("s")))
    assert [step.seq for step in steps_until_damage(log)] == [1, 2]


def steps_until_damage(log: MemoryLog) -> Iterator[Step]:
    try:
        yield from steps(log, session_view.initial("s"))
    except Damaged:
        return


def test_a_discarded_commit_is_told_and_changes_nothing() -> None:
    """Its events take up seqs; the state stands still."""
    log = memory_log("s", [[did("start")], [did("broke"), did("left")], [did("joined", "bob")]])
    _, second, _ = log.read("s")
    log.skip("s", second.last_seq, second.digest)

    told = list(steps(log, session_view.initial("s")))

    assert [step.is_skipped for step in told] == [False, True, True, False]
    assert told[-1].state == state_at(log, session_view.initial("s"), 4)[0]


def test_pauses_phases_and_repairs_are_told() -> None:
    """A pause that is long enough, stretches of one state, and each time it was broken until it was not."""
    clocked = Clocked()
    clocked.append(0, did("start", "ann"))
    clocked.append(10, did("modified", "bob"))
    clocked.append(60, broke("bob", severity="high", tests_failed=["a", "b"]))
    clocked.append(3600, did("modified", "ann"), broke("ann", severity="low"))
    clocked.append(20, did("test_pass", "ann"))
    clocked.append(5, broke("bob"))
    begun = clocked.now

    told = clocked.told(idle_ms=60 * S)

    assert of(told, Idle) == [Idle(3, 3600 * S)]
    assert [(p.state, p.from_seq, p.to_seq, p.events) for p in of(told, Phase)] == [
        ("working", 1, 2, {"ann": 1, "bob": 1}),
        ("broken", 3, 5, {"bob": 1, "ann": 2}),
        ("working", 6, 6, {"ann": 1}),
        ("broken", 7, 7, {"bob": 1}),
    ]
    assert of(told, Break) == [
        Break(3, "bob", begun - 3625 * S, "high", 2, 6, "ann", 3620 * S),
        Break(7, "bob", begun, None, 0),
    ]
    assert [event.seq for event in of(told, Happened)] == list(range(1, 8))
    assert of(clocked.told(idle_ms=10**9), Idle) == []


def test_times_may_be_those_that_producers_claim() -> None:
    """Of a history that came in one instant: its own pauses, never backwards; without a claim no time passes."""
    clocked = Clocked()
    claims = [
        "2026-01-01T00:00:00Z",
        None,
        "2026-01-01T02:00:00+01:00",
        "2026-01-01T00:30:00Z",
        "2026-01-01T01:00:01.5Z",
    ]
    clocked.append(0, *(Event.of("modified", actor="ann", time=claim) for claim in claims))
    clocked.append(0, Event("modified", "x", "ann", "long ago"))

    told = clocked.told(clock="producer")

    offsets = [event.at_ms - of(told, Happened)[0].at_ms for event in of(told, Happened)]
    assert offsets == [0, 0, 3600 * S, 3600 * S, 3601 * S + 500, 3601 * S + 500]
    assert of(told, Idle) == [Idle(2, 3600 * S)]
    assert of(clocked.told(), Idle) == []


def test_who_had_it_in_hand_is_told() -> None:
    """From an agent's first event, or from when it was handed over, until it hands off or leaves; Muster is nobody."""
    clocked = Clocked()
    clocked.append(0, did("start", "ann"), did("modified", "bob"), handoff("ann", "eve"))
    clocked.append(1, did("modified", "bob"), did("left", "bob"), did("left", "eve"))
    clocked.append(1, did("joined", "zoe"), handoff("zoe"))
    clocked.append(1, did("modified", "bob"))

    turns = of(clocked.told(), Turn)

    assert turns == [Turn("ann", 1, 3, "eve"), Turn("eve", 4, 6), Turn("zoe", 7, 8), Turn("bob", 9, 9)]
    forked = MemoryLog(clock_ms=lambda: 1)
    forked.append("p", did("start", "ann"))
    forked.append("p", did("left", "ann"))
    forked.fork("p", 2, "s")
    assert of(list(timeline(steps(forked, session_view.initial("s")))), Turn) == [Turn("ann", 1, 2)]


def raw(type: str, data: dict[str, Any]) -> Event:
    """An event as no library of ours makes it."""
    return Event(type, "1", "a", None, Event.of("x.y", actor="a", data=data).data)


REDACTED: Final[dict[str, tuple[Event, Redaction, dict[str, Any], int]]] = {
    "an own type": (raw("tool.called", {"key": "secret", "more": 1}), "known", {}, 2),
    "everything": (raw("tool.called", {"key": "secret"}), "none", {"key": "secret"}, 0),
    "known fields": (
        raw("modified", {"change": {"entity_ids": ["x"], "mine": 1}, "own": 1}),
        "known",
        {"change": {"entity_ids": ["x"]}},
        1,
    ),
    "metadata": (raw("broke", {"metadata": {"key": "secret"}, "tags": ["t"]}), "known", {"tags": ["t"]}, 1),
    "no data": (Event.of("start", actor="a"), "known", {}, 0),
    "against the rules": (raw("modified", {"change": 7}), "known", {}, 1),
    "of Muster": (raw("muster.forked", {"seq": 7}), "known", {"seq": 7}, 0),
}


@pytest.mark.parametrize("what", REDACTED)
def test_data_is_redacted_by_rule(what: str) -> None:
    """Of built-in types the fields that their rules name, without the free metadata; of own types nothing."""
    event, redaction, shown, hidden = REDACTED[what]

    assert redacted(event, redaction) == (shown, hidden)
