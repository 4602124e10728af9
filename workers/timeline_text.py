"""A timeline as lines of text, and as rows of JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from msgspec import structs

from projections.session_view import rfc3339
from projections.timeline import Break, Happened, Idle, Item, Phase, Turn

SCHEMA: Final = "muster.timeline/1"
#: How many entities of an event are named.
_NAMED: Final = 3


def rows(items: Iterable[Item]) -> Iterator[dict[str, Any]]:
    """A row for each; `kind` says what it tells of."""
    for item in items:
        fields = structs.asdict(item)
        for name in ("at_ms", "from_ms", "to_ms"):
            if name in fields:
                fields[name.removesuffix("_ms")] = rfc3339(fields.pop(name))
        yield {"schema": SCHEMA, "kind": _KINDS[type(item)], **fields}


_KINDS: Final = {Happened: "event", Idle: "idle", Phase: "phase", Turn: "turn", Break: "break"}


def lines(items: Iterable[Item]) -> Iterator[str]:
    """The events under the state they lead to, with pauses between; then phases, breaks, and who had it in hand."""
    state, began = "", 0
    told: list[Phase | Turn | Break] = []
    for item in items:
        match item:
            case Idle():
                yield f"          … {duration(item.ms)} without an event"
            case Happened():
                began = began or item.at_ms
                if item.state != state:
                    state = item.state
                    yield f"{rfc3339(item.at_ms)}  {state}"
                offset = "+" + duration(item.at_ms - began)
                yield printable(
                    f"{item.seq:>8}  {offset:<10} {item.type:<16} {item.actor:<16} {details(item)}"
                ).rstrip()
            case _:
                told.append(item)
    yield from _summary(told)


def _summary(told: list[Phase | Turn | Break]) -> Iterator[str]:
    yield "\nphases"
    for item in told:
        if isinstance(item, Phase):
            by = ", ".join(f"{actor} {count}" for actor, count in item.events.items())
            lasted = duration(item.to_ms - item.from_ms)
            yield printable(f"{item.from_seq:>8}..{item.to_seq:<8} {item.state:<13} {lasted:>8}  {by}")
    breaks = [item for item in told if isinstance(item, Break)]
    yield "\nbreaks" if breaks else "\nno breaks"
    for item in breaks:
        how = ", ".join(filter(None, [item.severity, _failed(item.tests_failed)]))
        end = "not repaired"
        if item.repaired_ms is not None:
            end = f"repaired at {item.repaired_seq} by {item.repaired_by} after {duration(item.repaired_ms)}"
        yield printable(f"{item.seq:>8}  by {item.actor}" + (f" ({how})" if how else "") + f": {end}")
    yield "\nin whose hands"
    for item in told:
        if isinstance(item, Turn):
            yield printable(f"{item.from_seq:>8}..{item.to_seq:<8} {item.actor}" + (f" → {item.to}" if item.to else ""))


def details(event: Happened) -> str:
    """What an event's data says, in a line."""
    data = dict(event.data)
    change, impact = data.pop("change", {}), data.pop("impact", {})
    entities = change.get("entity_ids", [])
    told = [change["operation"]] if "operation" in change else []
    if entities:
        more = f" and {len(entities) - _NAMED} more" if len(entities) > _NAMED else ""
        told.append(", ".join(islice(entities, _NAMED)) + more)
    if "severity" in impact:
        told.append(impact["severity"])
    if impact.get("tests_failed"):
        told.append(_failed(len(impact["tests_failed"])))
    told += [f"{name}={value}" for name, value in data.items()]
    if event.hidden:
        told.append(f"({event.hidden} hidden)")
    return "; ".join(map(str, told))


def _failed(tests: int) -> str:
    return f"{tests} test{'' if tests == 1 else 's'} failed" if tests else ""


def duration(ms: int) -> str:
    """A span of time, in its two greatest units."""
    seconds = ms // 1000
    if seconds < 1:
        return f"{ms}ms"
    found: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if seconds >= size or found:
            found.append(f"{seconds // size}{unit}")
            seconds %= size
    return "".join(found[:2])


def printable(text: str) -> str:
    """A text that does nothing to a terminal: what a foreign producer put in may hold controls."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
