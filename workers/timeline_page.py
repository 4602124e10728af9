"""A timeline as one HTML file: no network, no other file, and a scrubber that shows the state at every seq.

The states are those of the fold: each event carries what it changed in the document that `muster session show --at`
prints, and the page only brings these changes in, one after another. What a producer wrote is data in there, escaped so
that it cannot end the block it is in; the page's policy lets no script run but its own.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any, Final, TypeAlias

from domain.errors import Refused
from domain.session import Session
from projections import session_view
from projections.difference import Path as FieldPath
from projections.difference import changes
from projections.stepping import Step
from projections.timeline import IDLE_MS, Break, Clock, Happened, Idle, Phase, Redaction, timeline

#: A page holds at most so many events: a browser has to hold it whole.
MOST_EVENTS: Final = 20_000
#: What an operation does, as the page knows it: to a field, or to the list that is in it.
SET, DELETE, ADD, INSERT, REMOVE = range(5)
Operation: TypeAlias = list[Any]
_TEMPLATE: Final = Path(__file__).with_name("timeline.html")


def page(
    before: Session,
    steps: Iterable[Step],
    *,
    schema: str,
    quarantined: Mapping[str, Any] | None = None,
    redaction: Redaction = "known",
    idle_ms: int = IDLE_MS,
    clock: Clock = "server",
) -> str:
    """The page of the events that follow on the state `before`. Raises Refused (USAGE) for none, or for too many."""
    recording = _Recording(before, schema, quarantined)
    items = list(timeline(recording.of(steps), redaction=redaction, idle_ms=idle_ms, clock=clock))
    events = [item for item in items if isinstance(item, Happened)]
    if not events:
        raise Refused("USAGE", f"session {before.session} has no events after seq {recording.first - 1}")
    told = {
        "first": recording.first,
        "initial": recording.initial,
        "paths": [list(path) for path in recording.paths],
        "changes": recording.operations,
        "events": [
            [event.at_ms, event.type, event.actor, event.id, event.time, _payload(event), event.hidden]
            for event in events
        ],
        "phases": [[item.state, item.from_seq, item.to_seq] for item in items if isinstance(item, Phase)],
        "breaks": [[item.seq, item.repaired_seq] for item in items if isinstance(item, Break)],
        "pauses": {item.after_seq: item.ms for item in items if isinstance(item, Idle)},
        "redaction": redaction,
        "clock": clock,
    }
    return _filled(before.session, told)


def _payload(event: Happened) -> str:
    """The data as text: a number that is too large for the page's language stays what it is."""
    return json.dumps(event.data, ensure_ascii=False, indent=1) if event.data else ""


def _filled(session: str, told: Mapping[str, Any]) -> str:
    template = _TEMPLATE.read_text("utf-8")
    # No text of a producer's can end the block: it holds no `<`, and nothing beyond ASCII.
    data = json.dumps(told, separators=(",", ":")).replace("<", "\\u003c")
    script = template.rpartition("<script>")[2].partition("</script>")[0]
    style = template.partition("<style>")[2].partition("</style>")[0]
    own = f"script-src '{_hash(script)}'; style-src '{_hash(style)}'"
    policy = f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"
    values = {"@@POLICY@@": policy, "@@TITLE@@": escape(f"{session}: timeline"), "@@DATA@@": data}
    # In one pass: a value may look like a place.
    return re.sub("|".join(values), lambda place: values[place[0]], template)


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


class _Recording:
    """What each step changes in the document of the session, as operations on it; paths are told once and numbered."""

    def __init__(self, before: Session, schema: str, quarantined: Mapping[str, Any] | None) -> None:
        self.paths: dict[FieldPath, int] = {}
        self.operations: list[list[Operation]] = []
        self.first = before.seq + 1
        self._schema = schema
        self._quarantined = None if quarantined is None else dict(quarantined)
        self.initial = self._document(before, is_end=True)

    def of(self, steps: Iterable[Step]) -> Iterator[Step]:
        """The steps as they come, recorded."""
        document = self.initial
        for step in steps:
            if len(self.operations) == MOST_EVENTS:
                raise Refused("USAGE", f"a page holds at most {MOST_EVENTS} events: choose some with --from and --to")
            moved = self._document(step.state, is_end=step.digest is not None)
            self.operations.append(list(self._between(document, moved, ())))
            document = moved
            yield step

    def _document(self, state: Session, *, is_end: bool) -> dict[str, Any]:
        found = session_view.document(state, quarantined=self._quarantined, digest=is_end)
        return {"schema": self._schema, **found}

    def _between(self, old: Mapping[str, Any], new: Mapping[str, Any], path: FieldPath) -> Iterator[Operation]:
        for name in [name for name in old if name not in new]:
            yield [DELETE, self._numbered((*path, name))]
        for index, (name, value) in enumerate(new.items()):
            at = (*path, name)
            if name not in old:
                yield [ADD, self._numbered(at), index, value]
            elif old[name] == value:
                continue
            elif isinstance(value, Mapping) and isinstance(old[name], Mapping):
                yield from self._between(old[name], value, at)
            elif isinstance(value, list) and _is_a_set(value) and _is_a_set(old[name]):
                yield from self._members(old[name], value, at)
            else:
                yield [SET, self._numbered(at), value]

    def _members(self, old: list[str], new: list[str], path: FieldPath) -> Iterator[Operation]:
        number, members = self._numbered(path), list(old)
        for change in changes({"": old}, {"": new}):
            member = change.path[-1]
            index = bisect_left(members, member)
            if change.after:
                members.insert(index, member)
                yield [INSERT, number, index, member]
            else:
                del members[index]
                yield [REMOVE, number, index]

    def _numbered(self, path: FieldPath) -> int:
        return self.paths.setdefault(path, len(self.paths))


def _is_a_set(value: Any) -> bool:
    """Whether a list is one of different texts in their order."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value) and value == sorted(set(value))
