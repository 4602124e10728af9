"""The timeline of a session: what happened, in phases by state, with idle gaps, breaks and their repairs, and turns.

It is told in one pass over the log, so that a long session takes no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct, structs

from domain.errors import Damaged
from domain.events import BUILT_IN, OWN_ACTOR, OWN_TYPE_PREFIX, Event
from domain.session import BROKEN, SKIPPED
from projections.stepping import Step

#: What is shown of events' data: the known fields of built-in types (and of Muster's own), or everything.
Redaction: TypeAlias = Literal["known", "none"]
#: By whose clock: the server's, or the times that producers claim, as far as they claim any.
Clock: TypeAlias = Literal["server", "producer"]
#: Who acts in an event that nobody can read.
UNREADABLE: Final = "-"
#: Actors that have no session in hand.
NOBODY: Final = (OWN_ACTOR, UNREADABLE)
#: Events after which nothing is broken.
REPAIRS: Final = ("start", "test_pass", "completed")
#: A pause longer than this is told of, in ms.
IDLE_MS: Final = 60_000
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


class Idle(Struct, frozen=True):
    """Nothing happened for `ms` after the event `after_seq`."""

    after_seq: int
    ms: int


class Phase(Struct, frozen=True):
    """A stretch in one state; `events` by actor."""

    state: str
    from_seq: int
    to_seq: int
    from_ms: int
    to_ms: int
    events: dict[str, int]


class Turn(Struct, frozen=True):
    """A stretch in which an agent had the session in hand: from its first event after nobody had, or from when it was
    handed over, until it handed off (`to` whom, if it said so) or left. Others may act meanwhile.
    """

    actor: str
    from_seq: int
    to_seq: int
    to: str | None = None


class Break(Struct, frozen=True):
    """Something broke: when, by whom, how badly; and when and by whom it was repaired, which no handoff is."""

    seq: int
    actor: str
    at_ms: int
    severity: str | None
    tests_failed: int
    repaired_seq: int | None = None
    repaired_by: str | None = None
    repaired_ms: int | None = None


class Happened(Struct, frozen=True):
    """An event as it may be shown: `data` is what the redaction leaves of it, `hidden` how many of its keys it takes
    away. `at_ms` is by the clock that was asked for.
    """

    seq: int
    at_ms: int
    type: str
    actor: str
    id: str
    time: str | None
    data: dict[str, Any]
    hidden: int
    state: str
    digest: str | None


Item: TypeAlias = Happened | Idle | Phase | Turn | Break


def timeline(
    steps: Iterable[Step], *, redaction: Redaction = "known", idle_ms: int = IDLE_MS, clock: Clock = "server"
) -> Iterator[Item]:
    """What is told of a session: each event after the pause before it, each stretch when it is known to have ended."""
    stretches = _Stretches()
    before_ms: int | None = None
    for step in steps:
        at_ms = step.at_ms if clock == "server" else _claimed_ms(step, before_ms)
        if before_ms is not None and at_ms - before_ms > idle_ms:
            yield Idle(step.seq - 1, at_ms - before_ms)
        happened = shown(step, at_ms, redaction)
        yield from stretches.before(happened)
        yield happened
        yield from stretches.after(happened)
        before_ms = at_ms
    yield from stretches.ended()


def _claimed_ms(step: Step, before_ms: int | None) -> int:
    """When an event was by its producer's claim, but never before the one before it; then, if it claims nothing."""
    claimed = None
    if step.event is not None and step.event.time is not None:
        with suppress(msgspec.ValidationError):  # of a foreign producer
            claimed = (msgspec.convert(step.event.time, datetime) - _EPOCH) // timedelta(milliseconds=1)
    if claimed is None:
        return step.at_ms if before_ms is None else before_ms
    return claimed if before_ms is None else max(claimed, before_ms)


def shown(step: Step, at_ms: int, redaction: Redaction) -> Happened:
    """A step as it may be shown."""
    event = step.event
    state = step.state.state
    if event is None:
        return Happened(step.seq, at_ms, SKIPPED, UNREADABLE, UNREADABLE, None, {}, 0, state, step.digest)
    data, hidden = redacted(event, redaction)
    return Happened(step.seq, at_ms, event.type, event.actor, event.id, event.time, data, hidden, state, step.digest)


def redacted(event: Event, redaction: Redaction) -> tuple[dict[str, Any], int]:
    """The data of an event that may be shown, and how many of its keys are hidden.

    Of a built-in type the fields that its rules name, but not the free `metadata`; of a type of the user's own nothing.
    """
    try:
        payload = event.payload()
    except Damaged:
        return {}, 1
    if redaction == "none" or event.type.startswith(OWN_TYPE_PREFIX):
        return payload, 0
    if event.type not in BUILT_IN:
        return {}, len(payload)
    try:
        known = msgspec.to_builtins(msgspec.convert(payload, BUILT_IN[event.type]))
    except msgspec.ValidationError:  # of a foreign producer
        return {}, len(payload)
    left = _without_none({name: value for name, value in known.items() if name != "metadata"})
    return left, len(payload.keys() - left.keys())


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None
    }


class _Stretches:
    """The phase, the turn and the break that a session is in."""

    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._break: Break | None = None
        self._turn: Turn | None = None
        #: Whom the session was handed to, before the next event.
        self._heir: str | None = None

    def before(self, event: Happened) -> Iterator[Item]:
        """What ends before an event."""
        broken, phase = self._break, self._phase
        if broken is not None and event.type in REPAIRS:
            self._break = None
            took_ms = event.at_ms - broken.at_ms
            yield structs.replace(broken, repaired_seq=event.seq, repaired_by=event.actor, repaired_ms=took_ms)
        if phase is not None and phase.state != event.state:
            self._phase = None
            yield phase

    def after(self, event: Happened) -> Iterator[Item]:
        """Brings an event in; what ends with it."""
        if self._break is None and event.state == BROKEN:
            impact = event.data.get("impact", {})
            failed = len(impact.get("tests_failed", ()))
            self._break = Break(event.seq, event.actor, event.at_ms, impact.get("severity"), failed)
        phase = self._phase or Phase(event.state, event.seq, event.seq, event.at_ms, event.at_ms, {})
        phase.events[event.actor] = phase.events.get(event.actor, 0) + 1
        self._phase = structs.replace(phase, to_seq=event.seq, to_ms=event.at_ms)
        yield from self._after_turn(event)

    def _after_turn(self, event: Happened) -> Iterator[Item]:
        if self._turn is None:
            holder = self._heir or (event.actor if event.actor not in NOBODY else None)
            self._heir = None
            if holder is None:
                return
            self._turn = Turn(holder, event.seq, event.seq)
        turn = self._turn = structs.replace(self._turn, to_seq=event.seq)
        if event.type == "handoff":
            self._turn, self._heir = None, event.data.get("to")
            yield structs.replace(turn, to=self._heir)
        elif event.type == "left" and event.actor == turn.actor:
            self._turn = None
            yield turn

    def ended(self) -> Iterator[Item]:
        """What is still going on."""
        yield from (one for one in (self._break, self._phase, self._turn) if one is not None)
