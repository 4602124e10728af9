"""The real logs, and what their sources say must come of them; see README.md beside them."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from domain.log.keys import KeyClass
from tests.conftest import DATA, row_of

K = TypeVar("K")
V = TypeVar("V")

#: `rules` is generated: its refused lines depend on what came before, so it is the one file that is imported once only.
REPEATABLE: Final = ("coding_agents", "incidents", "receipt")
LOGS: Final = (*REPEATABLE, "rules")
#: How the files write a state.
LETTERS: Final = {"working": "w", "broken": "b", "coordinating": "c", "completed": "C", "expired": "e"}


class ExpectedSession(Struct, frozen=True):
    """A session after all its lines; `states` has a letter for each kept event."""

    seq: int
    state: str
    states: str
    actors: list[str]
    types: dict[str, int]
    entities: list[str]
    first_actor: str
    last_type: str
    refused: list[str] = []

    @property
    def facts(self) -> dict[str, Any]:
        """What a row of `muster session ls` must say."""
        names = ("seq", "state", "actors", "types", "entities", "first_actor", "last_type")
        return {name: getattr(self, name) for name in names}


class ExpectedAgent(Struct, frozen=True):
    """An agent over all sessions of a file."""

    events: int
    sessions: int


class Expected(Struct, frozen=True):
    """What must come of one file, or of several."""

    sessions: dict[str, ExpectedSession]
    agents: dict[str, ExpectedAgent]

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        return {session: expected.facts for session, expected in self.sessions.items()}

    @property
    def refused(self) -> list[str]:
        return sorted(event for session in self.sessions.values() for event in session.refused)


def expected(*names: str) -> Expected:
    """What must come of files that are imported into one store."""
    sessions: dict[str, ExpectedSession] = {}
    agents: dict[str, ExpectedAgent] = {}
    for name in names:
        found = msgspec.json.decode(gzip.decompress((DATA / f"{name}.expected.json.gz").read_bytes()), type=Expected)
        assert not sessions.keys() & found.sessions.keys()
        sessions |= found.sessions
        for agent, part in found.agents.items():
            known = agents.get(agent, ExpectedAgent(0, 0))
            agents[agent] = ExpectedAgent(known.events + part.events, known.sessions + part.sessions)
    return Expected(sessions, agents)


def path_of(name: str) -> Path:
    return DATA / f"{name}.ndjson.gz"


def lines_of(name: str) -> list[bytes]:
    """A file's lines, with their line ends."""
    return gzip.decompress(path_of(name).read_bytes()).splitlines(keepends=True)


def facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of `muster session ls` says of the things the files know."""
    return {
        "seq": row["seq"],
        "state": row["state"],
        "actors": sorted(row["agents"]),
        "types": row["event_types"],
        "entities": row["entities"],
        "first_actor": row["first_actor"],
        "last_type": row["last_type"],
    }


def differing(found: Mapping[K, V], expected: Mapping[K, V]) -> dict[K, tuple[V | None, V | None]]:
    """Where two mappings differ, few enough of it to be read: found and expected."""
    differ = {
        key: (found.get(key), expected.get(key))
        for key in found.keys() | expected.keys()
        if found.get(key) != expected.get(key)
    }
    return dict(list(differ.items())[:5])


# -- what is stored --------------------------------------------------------------------------------------------------


def stored(client: Any, *classes: KeyClass) -> dict[str, Any]:
    """The content of all keys of some classes. Leases are left out: they are renewed all the time."""
    keys = [key for key in _keys(client) if _is_of(key, classes)]
    kinds = _all(client, keys, "type")
    reads = {
        b"string": lambda pipe, key: pipe.get(key),
        b"hash": lambda pipe, key: pipe.hgetall(key),
        b"zset": lambda pipe, key: pipe.zrange(key, 0, -1),
        b"stream": lambda pipe, key: pipe.xrange(key),
    }
    with client.pipeline(transaction=False) as pipe:
        for key, kind in zip(keys, kinds, strict=True):
            reads[kind](pipe, key)
        return dict(zip(keys, pipe.execute(), strict=True))


def derived(client: Any) -> dict[str, Any]:
    """Everything that is built from the log; but when a cursor moved last, which is no part of what it says."""
    found = stored(client, KeyClass.DERIVED)
    for key, value in found.items():
        if ":cursor:" in key:
            value.pop(b"at", None)
    return found


def written(client: Any) -> dict[str, Any]:
    """Everything that somebody wrote and that stays."""
    return stored(client, KeyClass.TRUTH, KeyClass.CONTROL, KeyClass.DERIVED)


def _keys(client: Any) -> Iterator[str]:
    return (key.decode() for key in client.scan_iter(count=5000))


def _is_of(key: str, classes: Iterable[KeyClass]) -> bool:
    row = row_of(key)
    assert row is not None, f"no row of KEYS describes {key}"
    return row.key_class in classes and ":owner:" not in row.pattern


def _all(client: Any, keys: Iterable[str], command: str) -> list[Any]:
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            getattr(pipe, command)(key)
        return list(pipe.execute())
