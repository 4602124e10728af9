"""Projections as users write them, for tests: each kind of state, key and merge there is."""

from __future__ import annotations

import os
from typing import Any

from msgspec import Struct

from domain.upcast import Upcasters
from projections.projection import Definition, Projection, RecordedEvent


class Spent(Struct):
    """What a session spent."""

    calls: int = 0
    tokens: int = 0


class SpentPerSession(Projection):
    """One state a session."""

    name, version, state_type = "spent", 1, Spent

    def initial(self, key: str) -> Spent:
        return Spent()

    def apply(self, state: Spent, event: RecordedEvent) -> Spent:
        state.calls += 1
        state.tokens += event.data.get("tokens", 0)
        return state


class EventsByType(Projection):
    """Sums across sessions, which can be subtracted."""

    name, version, state_type = "by_type", 1, int

    def key(self, event: RecordedEvent) -> str | None:
        return event.type

    def initial(self, key: str) -> int:
        return 0

    def apply(self, state: int, event: RecordedEvent) -> int:
        return state + 1

    def merge(self, one: int, other: int) -> int:
        return one + other

    def subtract(self, total: int, part: int) -> int:
        return total - part


class SumsWithoutSubtract(EventsByType):
    """The same sums, for which each move has to be merged again from what all sessions gave."""

    name = "slow_sums"
    subtract = Projection.subtract


class ActorsByType(Projection):
    """Sets: a merge that loses nothing."""

    name, version, state_type = "actors", 1, set[str]

    def key(self, event: RecordedEvent) -> list[str]:
        return [event.type, "any"]

    def initial(self, key: str) -> set[str]:
        return set()

    def apply(self, state: set[str], event: RecordedEvent) -> set[str]:
        state.add(event.actor)
        return state

    def merge(self, one: set[str], other: set[str]) -> set[str]:
        return one | other


class DoubleByType(EventsByType):
    """The next version of EventsByType, which counts every event twice."""

    version = 2

    def apply(self, state: int, event: RecordedEvent) -> int:
        return state + 2


class ChangedByType(EventsByType):
    """EventsByType as somebody changed it without raising the version."""

    def apply(self, state: int, event: RecordedEvent) -> int:
        return state + (2 if event.type == "start" else 1)


class Fussy(SpentPerSession):
    """Fails at one kind of event, after it changed its state."""

    name = "fussy"

    def apply(self, state: Spent, event: RecordedEvent) -> Spent:
        state.calls += 1
        if event.type == "tool.poison":
            raise ValueError(f"event {event.id} is not to my taste")
        return state


class FussyMended(Fussy):
    """The same version after its code was mended."""

    def apply(self, state: Spent, event: RecordedEvent) -> Spent:
        state.calls += 1
        return state


class FussyByType(EventsByType):
    """Counts by type, and fails at one kind of event."""

    name = "fussy_by_type"

    def apply(self, state: int, event: RecordedEvent) -> int:
        if event.type == "tool.poison":
            raise ValueError("not to my taste")
        return state + 1


class CannotMerge(EventsByType):
    """Merges all but what one kind of event gave."""

    name = "cannot_merge"

    def merge(self, one: int, other: int) -> int:
        if other >= 1000 or one >= 1000:
            raise ArithmeticError("too many")
        return one + other

    def apply(self, state: int, event: RecordedEvent) -> int:
        return 1000 if event.type == "tool.poison" else state + 1


class Deadly(SpentPerSession):
    """Ends the process that folds one kind of event."""

    name = "deadly"

    def apply(self, state: Spent, event: RecordedEvent) -> Spent:
        state.calls += 1
        if event.type == "tool.deadly":
            os._exit(9)
        return state


def tokens_as_numbers(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "tokens": int(data["tokens"])}


def tokens_in_usage(data: dict[str, Any]) -> dict[str, Any]:
    return {"usage": {"tokens": data.pop("tokens")}}


class Usage(SpentPerSession):
    """Reads the third shape of an event, as it is now."""

    name = "usage"
    upcasters = Upcasters({"llm.called": [tokens_as_numbers, tokens_in_usage]})

    def apply(self, state: Spent, event: RecordedEvent) -> Spent:
        state.calls += 1
        if event.type == "llm.called":
            state.tokens += event.data["usage"]["tokens"]
        return state


class UsageOfBefore(Usage):
    """The same projection in the release before, which knows two shapes."""

    upcasters = Upcasters({"llm.called": [tokens_as_numbers]})

    def apply(self, state: Spent, event: RecordedEvent) -> Spent:
        state.calls += 1
        if event.type == "llm.called":
            state.tokens += event.data["tokens"]
        return state


KEYED: tuple[type[Projection], ...] = (EventsByType, SumsWithoutSubtract, ActorsByType)


def spec(kind: type[Projection]) -> str:
    """The class as a setting names it."""
    return f"{kind.__module__}:{kind.__qualname__}"


def expected(definition: Definition, events: dict[str, list[RecordedEvent]]) -> dict[str, Any]:
    """What a projection should give for sessions' events: each key's state, folded and merged in the plainest way."""
    projection, views = definition.projection, dict[str, Any]()
    for recorded in events.values():
        states: dict[str, Any] = {}
        for event in recorded:
            for key in definition.keys_of(event):
                states[key] = projection.apply(states.get(key, projection.initial(key)), event)
        for key, state in states.items():
            views[key] = projection.merge(views[key], state) if key in views else state
    return views
