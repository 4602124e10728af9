"""How commands print data (stdout) and progress (stderr)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from projections.searching import Page

#: A table's column widths are taken from so many first rows.
_MEASURED_ROWS: Final = 200
_WIDEST: Final = 60
#: How much is asked for at a time.
PAGE: Final = 256


def rows(items: Iterable[Mapping[str, Any]], output: str, *, columns: Sequence[str]) -> int:
    """Prints items as they come, and returns how many there were. `columns` are those of the table."""
    if output == "table":
        return _table(items, columns)
    if output == "json":
        listed = list(items)
        print(json.dumps(listed, ensure_ascii=False))
        return len(listed)
    count = 0
    for item in items:
        print(json.dumps(item, ensure_ascii=False, separators=(",", ":")))
        count += 1
    return count


def pages(
    page_after: Callable[[str | None, int], Page], after: str | None, limit: int | None
) -> Iterator[dict[str, Any]]:
    """What is in the pages, up to a limit; says on stderr where the next one begins."""
    while limit is None or limit > 0:
        page = page_after(after, PAGE if limit is None else min(limit, PAGE))
        yield from page.found
        after = page.cursor
        if after is None:
            return
        limit = None if limit is None else limit - len(page.found)
    say(f"there may be more: --after {after}")


def document(item: Mapping[str, Any], output: str) -> None:
    """Prints one document: a line of JSON, or a field a line."""
    if output == "table":
        width = max(map(len, item), default=0)
        for name, value in item.items():
            print(f"{name:<{width}}  {_cell(value)}")
    else:
        print(json.dumps(item, ensure_ascii=False, separators=(",", ":")))


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Lines of progress, at most one every `every_s`."""

    def __init__(self, every_s: float = 1.0) -> None:
        self._every_s = every_s
        self._next = time.monotonic() + every_s

    def __call__(self, line: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every_s
            say(line)


def _table(items: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> int:
    iterator = iter(items)
    first = [[_cell(item.get(name)) for name in columns] for item in islice(iterator, _MEASURED_ROWS)]
    if not first:
        return 0
    widths = [min(_WIDEST, max(len(name), *(len(row[i]) for row in first))) for i, name in enumerate(columns)]
    print("  ".join(f"{name.upper():<{width}}" for name, width in zip(columns, widths, strict=True)).rstrip())
    count = 0
    rest = ([_cell(item.get(name)) for name in columns] for item in iterator)
    for row in chain(first, rest):
        count += 1
        print("  ".join(f"{cell[:_WIDEST]:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return count


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return str(value)
