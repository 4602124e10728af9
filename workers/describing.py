"""What each setting is for, by the comment at its definition; and the JSON Schema of `muster.toml` made of both.

A comment (`#:`) is about the settings that follow it without another one or an empty line between.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import Struct

from workers.settings import RELOADABLE, SECRETS, Settings

_COMMENT: Final = re.compile(r"    #: (.+)")
_FIELD: Final = re.compile(r"    ([a-z]\w*): ")


@cache
def descriptions() -> Mapping[str, str]:
    """What each setting is for, by its name."""
    found = {}
    for name, about in _comments(Settings).items():
        kind = _section(name)
        if kind is None:
            found[name] = about
        else:
            found |= {f"{name}.{key}": text for key, text in _comments(kind).items()}
    return found


def schema() -> dict[str, Any]:
    """The JSON Schema of `muster.toml`: every key with what it is for, what it may be, and whether it is a secret
    (`writeOnly`) or taken while a process runs (`x-reloadable`).
    """
    made = msgspec.json.schema(Settings)
    made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    made["title"] = "muster.toml"
    for name, about in descriptions().items():
        section, _, key = name.rpartition(".")
        kind = _section(section) if section else Settings
        assert kind is not None
        described = made["$defs"][kind.__name__]["properties"][key]
        described["description"] = about
        described["x-reloadable"] = name in RELOADABLE
        if name in SECRETS:
            described["writeOnly"] = True
    return made


def _section(name: str) -> type[Struct] | None:
    """The struct of a section; None for a setting."""
    kind = next(field.type for field in msgspec.structs.fields(Settings) if field.name == name)
    return kind if isinstance(kind, type) and issubclass(kind, Struct) else None


def _comments(kind: type[Struct]) -> dict[str, str]:
    """The comment of each field, also of those it has from a base; a section's is the docstring of its struct."""
    found: dict[str, str] = {}
    for base in reversed([one for one in kind.__mro__ if issubclass(one, Struct) and one is not Struct]):
        comment: list[str] = []
        is_open = False
        for line in inspect.getsource(base).splitlines():
            if more := _COMMENT.fullmatch(line):
                comment = [*comment, more[1]] if is_open else [more[1]]
                is_open = True
            elif field := _FIELD.match(line):
                found[field[1]] = " ".join(comment)
                is_open = False
            elif not line.strip():
                comment, is_open = [], False
    names = [field.name for field in msgspec.structs.fields(kind)]
    return {name: found.get(name, "") for name in names}
