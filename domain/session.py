"""A session: the fold of its events, and the table that says which events are legal.

Two tables are the whole of it. GATE says which kinds of events a session takes, given whether it is open, completed or
expired; the append function on the server refuses by the same table. ENTERS says which state an event leads to. One
rule stands beside them: while a session is coordinating, an event by any agent but the one that handed off (Muster
itself is none) makes it working first, then the event's own rule applies. A session begins with whatever event comes
first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from domain.errors import Damaged
from domain.events import (
    AGENT_GONE,
    BUILT_IN,
    EXPIRING,
    FORKED,
    LOG_REPAIRED,
    NO_DATA,
    OWN_ACTOR,
    Event,
    FoldedData,
    Gist,
    is_identifier,
    is_type,
)
from domain.impact import Impacts

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
#: What closes an open session.
_CLOSING: Final = frozenset(type for type, kind in KIND.items() if GATE[OPEN_GATE][kind] != OPEN_GATE)

_MARKS: Final = frozenset({*ENTERS, "checkpoint", "extended"})
_SAYS_MORE: Final = _MARKS | {AGENT_GONE, EXPIRING, FORKED}

assert set(KIND) == {*BUILT_IN, LOG_REPAIRED, FORKED}
assert set(GATE[OPEN_GATE]) == {*KIND.values(), DOTTED_KIND}


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


#: More events than these are looked at in columns, and not one by one. Both say the same
#: (tests/projections/test_stretches.py); the one is quicker for many, the other for the one or two of a live session.
FEW: Final = 8

#: As what the events of commits that were discarded are counted: no producer's library takes a type like this.
SKIPPED: Final = "muster.skipped"


PRIORITIES: Final = ("low", "normal", "high")
#: A session keeps so many tags, the first ones …
MAX_TAGS: Final = 64
#: … of at most so many characters; of an outcome it keeps so many.
MAX_LABEL_LENGTH: Final = 200
#: Of the breaks that are open a session keeps the newest ones.
MAX_OPEN_BREAKS: Final = 32
#: A time that is the end of a commit which has not ended: `dated` says when.
_UNDATED: Final = -1


class Participation(Struct, array_like=True, gc=False):
    """An agent's part in a session: how many events, from which seq to which, whether it is there now, and what it said
    of impacts, if anything.
    """

    events: int
    first_seq: int
    last_seq: int
    present: bool
    impacts: Impacts | None = None


class Origin(Struct, array_like=True, frozen=True, gc=False):
    """Where a fork comes from: all up to its `seq` is a copy of what `session` held there, when its digest was this."""

    session: str
    seq: int
    digest: str


class Session(Struct, array_like=True):
    """The state of a session after its first `seq` events. Mutable: `apply` moves it on by one event.

    `digest` belongs to the last commit that ended; inside a commit it is that of the commit before. Times are the
    server's, in milliseconds since 1970. Field order is the stored order: new fields are appended with defaults.

    `transitions` counts changes of the state ("working>broken"), `type_pairs` the events that lead to a state with the
    one before ("test_pass>broke"; ENTERS, whatever came between). `outcome` and `completed_at` are those of the last
    completion, until the session is reopened. `open_breaks` are the seqs of `broke` since the last event that leads to
    working or completed; `last_handoff` and `last_checkpoint` are seqs too, 0 for none.

    `ttl_s` is how long the session may idle, as the last `extended` had it (0: as long as any), `active_at` the time of
    the last commit that was not Muster's own, `expiring_at` when it expires unless something comes (0: not said).
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
    tags: set[str] = set()
    priority: str | None = None
    outcome: str | None = None
    completed_at: int = 0
    transitions: dict[str, int] = {}
    type_pairs: dict[str, int] = {}
    last_entering: str | None = None
    open_breaks: list[int] = []
    last_handoff: int = 0
    last_checkpoint: int = 0
    forked_from: Origin | None = None
    ttl_s: int = 0
    active_at: int = 0
    expiring_at: int = 0

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

    def takes(self, gists: Sequence[Gist]) -> bool:
        """Whether these events are lawful here, one after another, at a glance: of types and actors that are known here
        or could be, in a shape that is known, and legal by the table. `broken_law` (domain/invariants.py) says which
        law is broken, if one is.
        """
        if len(gists) > FEW:
            return self._takes_all(gists)
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

    def _takes_all(self, gists: Sequence[Gist]) -> bool:
        """`takes`, of many at a stroke."""
        types = [gist.type for gist in gists]
        if not all(map(is_identifier, {gist.actor for gist in gists} - self.agents.keys())):
            return False
        kinds = set(types)
        if not all(map(is_type, kinds - self.event_types.keys())):
            return False
        if {gist.shape for gist in gists} != {1} and any(gist.shape != 1 and gist.type in BUILT_IN for gist in gists):
            return False
        gate = self.gate
        if gate == OPEN_GATE and kinds.isdisjoint(_CLOSING):
            return True  # nothing closes it, and an open one takes all there is
        return gate_after(gate, "".join([KIND.get(type, DOTTED_KIND) for type in types]))[1] is None

    def follow(self, gists: Sequence[Gist]) -> None:
        """`apply` for events that are known to be lawful."""
        state, seq, agents, types = self.state, self.seq, self.agents, self.event_types
        is_active = False
        for gist in gists:
            type, actor, data, before = gist.type, gist.actor, gist.data, state
            if state == COORDINATING and actor not in (self.handed_off_by, OWN_ACTOR):
                state = WORKING
            state = ENTERS.get(type, state)
            if state != before and seq:
                pair = f"{before}>{state}"
                self.transitions[pair] = self.transitions.get(pair, 0) + 1

            seq += 1
            if type in _MARKS:
                self._mark(type, actor, seq, data)
            if actor != OWN_ACTOR:
                is_active = True
                part = agents.get(actor)
                if part is None:
                    agents[actor] = Participation(1, seq, seq, type != "left")
                else:
                    part.events += 1
                    part.last_seq = seq
                    part.present = type != "left"
            elif type == AGENT_GONE and data is not None:
                gone = agents.get(_label(data.gone) or "")
                if gone is not None:
                    gone.present = False
            elif type == EXPIRING and data is not None:
                if is_active:
                    self.active_at, is_active = _UNDATED, False
                self.expiring_at = _whole(data.expires_at_ms)
            elif type == FORKED:
                self.forked_from = _origin_of(data, seq - 1)
            types[type] = types.get(type, 0) + 1
            if data is not None and type in BUILT_IN:
                change = data.change
                if change is not None and change.entity_ids:
                    self.entities.update(change.entity_ids)
                if data.impact or data.tags or data.priority:
                    self._note(actor, data)
            if self.first_actor is None:
                self.first_actor = actor
            self.last_type = type
        self.state, self.seq = state, seq
        if is_active:
            self.active_at, self.expiring_at = _UNDATED, 0

    def count(self, gists: Sequence[Gist]) -> None:
        """`follow`, for events of which none `says_more`: at a stroke, where there are many."""
        if len(gists) <= FEW or self.state == COORDINATING:
            self.follow(gists)
            return
        types, actors = [gist.type for gist in gists], [gist.actor for gist in gists]
        begin, self.seq = self.seq + 1, self.seq + len(gists)
        last_at = dict(zip(actors, range(len(actors)), strict=True))
        for actor, events in Counter(actors).items():
            last = last_at[actor]
            part = self.agents.get(actor)
            if part is None:
                part = self.agents[actor] = Participation(0, begin + actors.index(actor), 0, True)
            part.events += events
            part.last_seq = begin + last
            part.present = types[last] != "left"
        for type, count in Counter(types).items():
            self.event_types[type] = self.event_types.get(type, 0) + count
        for gist in gists:
            if gist.data is not None and gist.type in BUILT_IN:
                change = gist.data.change
                if change is not None and change.entity_ids:
                    self.entities.update(change.entity_ids)
        if self.first_actor is None:
            self.first_actor = actors[0]
        self.last_type = types[-1]
        self.active_at, self.expiring_at = _UNDATED, 0

    def _mark(self, type: str, actor: str, seq: int, data: FoldedData | None) -> None:
        """What an event that leads to a state does beside leading there; and a checkpoint."""
        if type == "checkpoint":
            self.last_checkpoint = seq
            return
        if type == "extended":
            self.ttl_s = (_whole(data.ttl_s) if data is not None else 0) or self.ttl_s
            return
        if type == "handoff":
            self.handed_off_by, self.last_handoff = actor, seq
        elif type == "broke":
            self.open_breaks = [*self.open_breaks, seq][-MAX_OPEN_BREAKS:]
        elif type != "expired" and self.open_breaks:
            self.open_breaks = []
        if type == "start":
            self.completed_at, self.outcome = 0, None
        elif type == "completed":
            self.completed_at, self.outcome = _UNDATED, _label(data.outcome) if data is not None else None
        previous = self.last_entering
        if previous is not None:
            pair, pairs = f"{previous}>{type}", self.type_pairs
            pairs[pair] = pairs.get(pair, 0) + 1
        self.last_entering = type

    def _note(self, actor: str, data: FoldedData) -> None:
        """Takes in what few events say of a session. What has another shape than it should counts as not said."""
        tags, priority, impact = _plain(data.tags), _plain(data.priority), _plain(data.impact)
        if isinstance(tags, list):
            for tag in tags:
                if isinstance(tag, str) and len(tag) <= MAX_LABEL_LENGTH and len(self.tags) < MAX_TAGS:
                    self.tags.add(tag)
        if priority in PRIORITIES:
            self.priority = priority
        part = self.agents.get(actor)
        if isinstance(impact, dict) and part is not None:
            part.impacts = part.impacts or Impacts()
            part.impacts.add(impact)

    def dated(self, at_ms: int) -> None:
        """Says when the commit that ends here was appended."""
        self.started_at = self.started_at or at_ms
        self.last_at = at_ms
        if self.completed_at == _UNDATED:
            self.completed_at = at_ms
        if self.active_at == _UNDATED:
            self.active_at = at_ms

    def skip(self, count: int) -> None:
        """Passes over `count` events that an operator discarded: they take up seqs, and change nothing else."""
        self.seq += count
        self.event_types[SKIPPED] = self.event_types.get(SKIPPED, 0) + count


def says_more(gists: Iterable[Gist]) -> bool:
    """Whether one of these events does more to a session than being counted, and naming entities; Muster's own may."""
    for gist in gists:
        if gist.type in _SAYS_MORE or gist.actor == OWN_ACTOR:
            return True
        data = gist.data
        if data is not None and (data.impact or data.tags or data.priority):
            return True
    return False


def folded_data(event: Event) -> FoldedData | None:
    """What a fold looks for in the data of a built-in event. Raises Damaged (EVENT_UNREADABLE) for data no producer's
    library writes.
    """
    if event.data == NO_DATA or not (event.type in BUILT_IN or event.type in (AGENT_GONE, EXPIRING, FORKED)):
        return None
    try:
        return _DATA.decode(event.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(
            "EVENT_UNREADABLE", f"the data of event {event.id} ({event.type}) is unreadable: {error}"
        ) from None


def gist_of(event: Event) -> Gist:
    """An event as a fold needs it. Raises as `folded_data`."""
    return Gist(event.type, event.id, event.actor, data=folded_data(event), shape=event.shape)


def _plain(encoded: Raw) -> Any:
    """The value, None where there is none that can be read."""
    if not encoded:
        return None
    try:
        return msgspec.msgpack.decode(encoded)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
        return None


def _label(encoded: Raw) -> str | None:
    value = _plain(encoded)
    return value[:MAX_LABEL_LENGTH] if isinstance(value, str) else None


def _whole(encoded: Raw) -> int:
    """A whole number of 53 bits; 0 for anything else."""
    value = _plain(encoded)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53 else 0


def _origin_of(data: FoldedData | None, seq: int) -> Origin | None:
    """Where the fork comes from whose mark this is; None for a mark that Muster did not make."""
    parent, digest = (_plain(data.parent), _plain(data.digest)) if data is not None else (None, None)
    return Origin(parent, seq, digest) if isinstance(parent, str) and isinstance(digest, str) else None


_DATA = msgspec.msgpack.Decoder(FoldedData)
