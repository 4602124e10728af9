"""What differs between two documents, field by field: two states of a session, or one of each of two sessions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from msgspec import Struct

#: Where in a document: names of fields, then the key in a map or the member of a list.
Path: TypeAlias = tuple[str, ...]


class Change(Struct, frozen=True):
    """One field that differs. A list is a set of members here, each there (True) or not; what a map lacks is None."""

    path: Path
    before: Any
    after: Any

    @property
    def field(self) -> str:
        """The path as people read it."""
        return ".".join(self.path)


def changes(before: Mapping[str, Any], after: Mapping[str, Any], path: Path = ()) -> Iterator[Change]:
    """What differs, in the order of the fields of `after`; what only `before` has comes last."""
    for name in dict.fromkeys([*after, *before]):
        at, old, new = (*path, name), before.get(name), after.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changes(old, new, at)
        elif isinstance(old, list) and isinstance(new, list):
            yield from _members(old, new, at)
        else:
            yield Change(at, old, new)


def _members(old: list[Any], new: list[Any], path: Path) -> Iterator[Change]:
    were, are = set(map(str, old)), set(map(str, new))
    for member in sorted(were ^ are):
        yield Change((*path, member), member in were, member in are)
