"""Slow commands, as the server remembers them, without their arguments, which are other people's data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from msgspec import Struct

#: How many of them are asked for.
SLOWEST: Final = 128
#: Commands whose first argument says which they are.
_WITH_NAME: Final = frozenset({"FCALL", "FCALL_RO", "CONFIG", "CLIENT", "FUNCTION", "SCRIPT", "XINFO", "XGROUP", "ACL"})


class SlowCommand(Struct, frozen=True):
    """One command: when (Unix seconds), how long it ran, who sent it from where, with how many arguments."""

    command: str
    at: int
    took_us: int
    arguments: int
    client: str


def slow_commands(entries: Iterable[list[Any]]) -> Iterator[SlowCommand]:
    """The entries of a SLOWLOG GET."""
    for _, at, took_us, words, *rest in entries:
        client = rest[0].decode("utf-8", "replace") if rest else ""
        yield SlowCommand(_name(words), int(at), int(took_us), len(words) - 1, client)


def _name(words: list[bytes]) -> str:
    name = words[0].decode("utf-8", "replace").upper() if words else "?"
    if name in _WITH_NAME and len(words) > 1:
        return f"{name} {words[1].decode('utf-8', 'replace')[:64]}"
    return name[:64]
