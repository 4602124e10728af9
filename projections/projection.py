"""The shape of a projection of the user's own: a class that folds events into states and merges them across sessions.

A projection is a pure function of the log: `apply` reads no clock, draws no chance, asks no server and has no effect on
anything outside its state. It may be run again at any time, from the beginning, in another process, for a rehearsal or
after a crash; a program that acts on events (sends mail, calls a service) is a subscriber, and no projection.

    class TokensByModel(Projection):
        name, version = "tokens_by_model", 1

        def key(self, event):
            return event.data.get("model") if event.type == "llm.called" else None

        def initial(self, key):
            return 0

        def apply(self, state, event):
            return state + event.data["tokens"]

        def merge(self, one, other):
            return one + other

        def subtract(self, total, part):
            return total - part

Without `key` there is one state a session. With it, events are folded per session and key, and what sessions gave for
a key is merged; so `merge` must be associative and commutative, as sessions come in any order. `subtract`, where there
is one, undoes `merge` (`subtract(merge(a, b), b) == a`) and makes moving on as cheap as merging; a merge that loses
nothing (a maximum, a union) needs none. Each of the three may change its first argument and return it, and no other.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, ClassVar, Final

import msgspec
from msgspec import Struct

from domain.codec import genesis
from domain.errors import Damaged, Misconfigured
from domain.events import Event
from domain.session import OPEN_GATE
from domain.upcast import NO_UPCASTERS, Upcasters
from projections.sealed import Seal, seal

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
#: Names of what is built in.
_TAKEN: Final = frozenset({"session", "sessions", "agent", "agents"})
#: A key of a view: any text without controls, as ids of entities are.
_KEY: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,1024}\Z")


class RecordedEvent(Struct, frozen=True):
    """An event as it stands in the log: of which session, at which seq, recorded when (server time, ms since 1970)."""

    session: str
    seq: int
    at_ms: int
    event: Event

    @property
    def type(self) -> str:
        return self.event.type

    @property
    def actor(self) -> str:
        return self.event.actor

    @property
    def id(self) -> str:
        return self.event.id

    @property
    def time(self) -> str | None:
        """The producer's claim of when it happened, RFC 3339."""
        return self.event.time

    @property
    def data(self) -> dict[str, Any]:
        """The event's data, unpacked at each call."""
        return self.event.payload()


class Projection:
    """A projection of the user's own. `version` is raised whenever the same log would give other states.

    States are whatever msgspec can encode: numbers, text, lists, dicts, sets, Structs. `state_type` is the type they
    are decoded to; without it they come back as plain data (a set as a list).
    """

    name: ClassVar[str]
    version: ClassVar[int]
    state_type: ClassVar[Any] = Any
    #: Old shapes of events are brought into the current one before `key` and `apply` see them.
    upcasters: ClassVar[Upcasters] = NO_UPCASTERS

    def key(self, event: RecordedEvent) -> str | Collection[str] | None:
        """Which state, or states, the event is for; None for none. Without this method: one state a session."""
        return event.session

    def initial(self, key: str) -> Any:
        """The state before the first event."""
        raise NotImplementedError

    def apply(self, state: Any, event: RecordedEvent) -> Any:
        """The state after an event. `state` may be changed and returned."""
        raise NotImplementedError

    def merge(self, one: Any, other: Any) -> Any:
        """The states that two sessions, or two sets of sessions, gave for one key, as one."""
        raise NotImplementedError

    def subtract(self, total: Any, part: Any) -> Any:
        """`total` without `part`, which was merged into it before."""
        raise NotImplementedError


class Fold(Struct, array_like=True):
    """What a session's events gave so far: its state for each key. It stands at the end of a commit."""

    session: str
    seq: int
    digest: str
    gate: str
    last_at: int
    states: dict[str, Any]

    #: Nobody is known yet: every actor and type of every commit is looked at.
    agents: ClassVar[frozenset[str]] = frozenset()
    event_types: ClassVar[frozenset[str]] = frozenset()


class Definition:
    """A projection that was checked, with the codecs of its states.

    Raises Misconfigured (PROJECTION_INVALID) for one that cannot work.
    """

    def __init__(self, projection: Projection) -> None:
        kind = type(projection)
        name, version = getattr(projection, "name", None), getattr(projection, "version", None)
        if not isinstance(name, str) or not _NAME.match(name) or name in _TAKEN:
            raise _invalid(kind, f"its name {name!r} is not 1 to 64 of a-z 0-9 _, beginning with a letter, or is taken")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise _invalid(kind, f"its version {version!r} is no whole number from 1 on")
        for method in ("initial", "apply"):
            if getattr(kind, method) is getattr(Projection, method):
                raise _invalid(kind, f"it has no method {method!r}")
        self.projection = projection
        self.name: str = name
        self.version: int = version
        self.is_keyed = kind.key is not Projection.key
        self.subtracts = kind.subtract is not Projection.subtract
        if self.is_keyed and kind.merge is Projection.merge:
            raise _invalid(kind, "it has a method 'key', so that sessions share states, and no method 'merge'")
        state_type: Any = projection.state_type
        states: Any = dict.__class_getitem__((str, state_type))
        self._folds = Seal(version, msgspec.defstruct("Fold", [("states", states)], bases=(Fold,), array_like=True))
        pair: Any = tuple.__class_getitem__((str, state_type))
        self._states = Seal(version, pair)
        try:
            initial = projection.initial("k")
            again = self.decode_state("k", self.encode_state("k", initial))
        except Exception as error:
            raise _invalid(kind, f"its initial state cannot be stored and read again: {error!r}") from error
        if type(again) is not type(initial) or again != initial:
            cause = f"its initial state {initial!r} comes back from the store as {again!r}: set `state_type`"
            raise _invalid(kind, cause)

    @property
    def label(self) -> str:
        """Name and version, as keys and commands write them: `tokens@2`."""
        return f"{self.name}@{self.version}"

    def start(self, session: str) -> Fold:
        """The fold of no events."""
        return Fold(session, 0, genesis(session), OPEN_GATE, 0, {})

    def encode(self, fold: Fold) -> bytes:
        """The stored bytes of a fold."""
        return seal(self.version, (fold.session, fold.seq, fold.digest, fold.gate, fold.last_at, fold.states))

    def decode(self, stored: bytes | None, session: str) -> Fold | None:
        """A session's fold, or None where there is none that can be trusted."""
        try:
            fold: Fold | None = self._folds.open(stored) if stored is not None else None
        except Damaged:
            return None
        return fold if fold is not None and fold.session == session else None

    def encode_state(self, key: str, state: Any) -> bytes:
        """The stored bytes of what sessions gave for a key."""
        return seal(self.version, (key, state))

    def decode_state(self, key: str, stored: bytes) -> Any:
        """The state of a key. Raises Damaged (VIEW_UNREADABLE), also if it is another key's."""
        of, state = self._states.open(stored)
        if of != key:
            raise Damaged("VIEW_UNREADABLE", f"the state is of {of!r}, not of {key!r}")
        return state

    def keys_of(self, event: RecordedEvent) -> Collection[str]:
        """The keys an event is for. Raises ValueError for what is no key."""
        given = self.projection.key(event)
        keys: Collection[Any] = () if given is None else (given,) if isinstance(given, str) else given
        for key in keys:
            if not isinstance(key, str) or not _KEY.match(key):
                raise ValueError(f"the key {ascii(key)[:60]} is not 1 to 1,024 characters without controls")
        return keys


class _Unknown(Projection):
    """A version whose class is not here: its states are read as plain data, and nothing can be folded."""

    def __init__(self, name: str, version: int) -> None:
        self.name, self.version = name, version  # type: ignore[misc]

    def initial(self, key: str) -> Any:
        return None

    def apply(self, state: Any, event: RecordedEvent) -> Any:
        raise NotImplementedError(f"the class of {self.name}@{self.version} is not here")


def without_class(name: str, version: int) -> Definition:
    """Reads the stored states of a version whose class this process has not, as plain data."""
    return Definition(_Unknown(name, version))


def _invalid(kind: type[Projection], cause: str) -> Misconfigured:
    return Misconfigured("PROJECTION_INVALID", f"the projection {kind.__module__}.{kind.__qualname__}: {cause}")
