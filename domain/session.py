"""A session: the fold of its events, and the table that says which events are legal.

Two tables are the whole of it. GATE says which kinds of events a session takes, given whether it is open, completed or
expired; the append function on the server refuses by the same table. ENTERS says which state an event leads to. One
rule stands beside them: while a session is coordinating, an event by any agent but the one that handed off (Muster
itself is none) makes it working first, then the event's own rule applies. A session begins with whatever event comes
first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import Struct

from domain.errors import Damaged
from domain.events import (
    BUILT_IN,
    FORKED,
    LOG_REPAIRED,
    NO_DATA,
    OWN_ACTOR,
    ChangedEntities,
    Event,
    Gist,
    OnlyChange,
    is_identifier,
    is_type,
)

WORKING: Final = "working"
BROKEN: Final = "broken"
COORDINATING: Final = "coordinating"
COMPLETED: Final = "completed"
EXPIRED: Final = "expired"

#: The state an event leads to; any other event leaves the state as it is.
ENTERS: Final[Mapping[str, str]] = {
    "start": WORKING,
    "test_pass": WORKING,
    "broke": BROKEN,
    "handoff": COORDINATING,
    "completed": COMPLETED,
    "expired": EXPIRED,
}

#: The letter by which a producer states the kind of an event to the append function.
KIND: Final[Mapping[str, str]] = {
    "start": "s",
    "left": "l",
    "checkpoint": "k",
    "completed": "c",
    "expired": "x",
    **dict.fromkeys(("joined", "modified", "broke", "test_pass", "handoff", "extended"), "b"),
    # Muster's own, in any state, and no state changes: the append function takes none of this kind.
    LOG_REPAIRED: "r",
    FORKED: "r",
}
DOTTED_KIND: Final = "."

OPEN_GATE: Final = "o"
COMPLETED_GATE: Final = "c"
EXPIRED_GATE: Final = "e"

#: gate → kind → the gate after it; a kind that is not listed is refused.
GATE: Final[Mapping[str, Mapping[str, str]]] = {
    OPEN_GATE: {"s": "o", "l": "o", "k": "o", "b": "o", ".": "o", "c": "c", "x": "e", "r": "o"},
    COMPLETED_GATE: {"s": "o", "l": "c", "k": "c", ".": "c", "x": "e", "r": "c"},
    EXPIRED_GATE: {"s": "o", "r": "e"},
}
_GATE_OF_STATE: Final[Mapping[str, str]] = {COMPLETED: COMPLETED_GATE, EXPIRED: EXPIRED_GATE}

assert set(KIND) == {*BUILT_IN, LOG_REPAIRED, FORKED}


def kind_of(type: str) -> str:
    """The gate's letter for a type of event."""
    return KIND.get(type, DOTTED_KIND)


def kinds_of(events: Iterable[Event]) -> str:
    """One letter an event, in order: what a producer states to the gate."""
    return "".join([KIND.get(event.type, DOTTED_KIND) for event in events])


def gate_after(gate: str, kinds: str) -> tuple[str, int | None]:
    """The gate after these kinds, and the index of the first one it refuses (None if it takes all)."""
    for index, kind in enumerate(kinds):
        after = GATE[gate].get(kind)
        if after is None:
            return gate, index
        gate = after
    return gate, None


#: As what the events of commits that were discarded are counted: no producer's library takes a type like this.
SKIPPED: Final = "muster.skipped"


class Participation(Struct, array_like=True, gc=False):
    """An agent's part in a session: how many events, from which seq to which, and whether it is there now."""

    events: int
    first_seq: int
    last_seq: int
    present: bool


class Origin(Struct, array_like=True, frozen=True, gc=False):
    """Where a fork comes from: all up to its `seq` is a copy of what `session` held there, when its digest was this."""

    session: str
    seq: int
    digest: str


class Session(Struct, array_like=True):
    """The state of a session after its first `seq` events. Mutable: `apply` moves it on by one event.

    `digest` belongs to the last commit that ended; inside a commit it is that of the commit before. Times are the
    server's, in milliseconds since 1970. Field order is the stored order: new fields are appended with defaults.
    """

    session: str
    seq: int = 0
    digest: str = ""
    state: str = WORKING
    agents: dict[str, Participation] = {}
    event_types: dict[str, int] = {}
    entities: set[str] = set()
    first_actor: str | None = None
    last_type: str | None = None
    handed_off_by: str | None = None
    started_at: int = 0
    last_at: int = 0
    forked_from: Origin | None = None

    @property
    def gate(self) -> str:
        """Whether the session is open, completed or expired, as the append function keeps it."""
        return _GATE_OF_STATE.get(self.state, OPEN_GATE)

    def apply(self, event: Event) -> None:
        """Moves the state on by one event.

        Raises Damaged (EVENT_ILLEGAL for one the table refuses, EVENT_UNREADABLE), and changes nothing then.
        """
        gate = self.gate
        if kind_of(event.type) not in GATE[gate]:
            at = self.seq + 1
            raise Damaged("EVENT_ILLEGAL", f"{event.type} at seq {at} is illegal while {self.state}", seq=at)
        self.follow([gist_of(event)])

    def takes(self, gists: Iterable[Gist]) -> bool:
        """Whether these events are lawful here, one after another, at a glance: of types and actors that are known here
        or could be, in a shape that is known, and legal by the table. `broken_law` (domain/invariants.py) says which
        law is broken, if one is.
        """
        gate, agents, types = self.gate, self.agents, self.event_types
        for gist in gists:
            type = gist.type
            if gist.actor not in agents and not is_identifier(gist.actor):
                return False
            if type not in types and not is_type(type):
                return False
            if gist.shape != 1 and type in BUILT_IN:
                return False
            after = GATE[gate].get(KIND.get(type, DOTTED_KIND))
            if after is None:
                return False
            gate = after
        return True

    def follow(self, gists: Sequence[Gist]) -> None:
        """`apply` for events that are known to be lawful."""
        state, seq, agents, types = self.state, self.seq, self.agents, self.event_types
        for gist in gists:
            type, actor = gist.type, gist.actor
            if state == COORDINATING and actor not in (self.handed_off_by, OWN_ACTOR):
                state = WORKING
            state = ENTERS.get(type, state)
            if type == "handoff":
                self.handed_off_by = actor

            seq += 1
            if actor != OWN_ACTOR:
                part = agents.get(actor)
                if part is None:
                    agents[actor] = Participation(1, seq, seq, type != "left")
                else:
                    part.events += 1
                    part.last_seq = seq
                    part.present = type != "left"
            elif type == FORKED:
                self.forked_from = _origin_of(gist, seq - 1)
            types[type] = types.get(type, 0) + 1
            change = gist.data.change if gist.data is not None and type in BUILT_IN else None
            if change is not None and change.entity_ids:
                self.entities.update(change.entity_ids)
            if self.first_actor is None:
                self.first_actor = actor
            self.last_type = type
        self.state, self.seq = state, seq

    def skip(self, count: int) -> None:
        """Passes over `count` events that an operator discarded: they take up seqs, and change nothing else."""
        self.seq += count
        self.event_types[SKIPPED] = self.event_types.get(SKIPPED, 0) + count


def entities_of(event: Event) -> list[str] | None:
    """The entities a built-in event changed. Raises Damaged (EVENT_UNREADABLE) for data no producer's library
    writes.
    """
    if event.type not in BUILT_IN or event.data == NO_DATA:
        return None
    try:
        change = _CHANGES.decode(event.data).change
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(
            "EVENT_UNREADABLE", f"the data of event {event.id} ({event.type}) is unreadable: {error}"
        ) from None
    return change.entity_ids if change is not None else None


def gist_of(event: Event) -> Gist:
    """An event as a fold needs it. Raises as `entities_of`."""
    entities = entities_of(event)
    data = OnlyChange(ChangedEntities(entities)) if entities else None
    if event.type == FORKED:
        # One that a producer made, against the rules, says nothing.
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            data = _CHANGES.decode(event.data)
    return Gist(event.type, event.id, event.actor, data=data, shape=event.shape)


def _origin_of(gist: Gist, seq: int) -> Origin | None:
    """Where the fork comes from whose mark this is; None for a mark that Muster did not make."""
    if gist.data is None:
        return None
    try:
        return Origin(_TEXT.decode(gist.data.parent), seq, _TEXT.decode(gist.data.digest))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


_CHANGES = msgspec.msgpack.Decoder(OnlyChange)
_TEXT = msgspec.msgpack.Decoder(str)
