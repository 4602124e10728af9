"""The census: which sessions and agents have keys, and stand in no registry or index.

Everything else finds sessions by the registry and agents by the index; what is missing there would be looked for by
nobody. So this one place reads the names of keys. SCAN goes over them in small steps that keep nobody waiting; it is
used to judge, never to enumerate.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from msgspec import Struct

from projections.store import ProjectionStore, readable_head

#: How many names a step of the scan looks at.
SCAN_STEP: Final = 1000


class Unlisted(Struct):
    """What of a partition is in no list, though it has keys."""

    sessions: set[str]
    agents: set[str]


def census(store: ProjectionStore, partition: int | None = None) -> dict[int, Unlisted]:
    """What is unlisted, by partition; of one partition, or of all."""
    keyspace = store.keyspace
    found = {at: Unlisted(set(), set()) for at in (range(keyspace.count) if partition is None else (partition,))}
    for sessions, heads, agents in _pages(store, partition):
        for at in found:
            keys = store.keys(at)
            named = sessions.get(at, set()) | _begun(store, heads.get(at, set()) - sessions.get(at, set()))
            found[at].sessions |= _not_in(store, keys.sessions, named)
            found[at].agents |= _not_in(store, keys.agents, agents.get(at, set()))
    return found


_Named = dict[int, set[str]]


def _pages(store: ProjectionStore, partition: int | None) -> Iterator[tuple[_Named, _Named, _Named]]:
    """Names by partition as the scan meets them: of sessions by what is theirs, by their heads alone, and of agents."""
    keyspace = store.keyspace
    tag = f"{{{keyspace.environment}:{keyspace.namespace}:{'*' if partition is None else partition}}}"
    pattern = re.compile(
        re.escape(f"{{{keyspace.environment}:{keyspace.namespace}:")
        + r"(\d+)\}:(log|ckpt|view:session|head|view:agent):"
    )
    cursor = 0
    while True:
        cursor, names = store.client.scan(cursor, match=f"{tag}:*", count=SCAN_STEP)
        sessions, heads, agents = _Named(), _Named(), _Named()
        for name in names:
            text = name.decode("utf-8", "replace")
            if (match := pattern.match(text)) and int(match[1]) < keyspace.count:
                kind = {"head": heads, "view:agent": agents}.get(match[2], sessions)
                kind.setdefault(int(match[1]), set()).add(text[match.end() :])
        if names:
            yield sessions, heads, agents
        if not cursor:
            return


def _not_in(store: ProjectionStore, index: str, names: Collection[str]) -> set[str]:
    """Those of the names that an index does not list; none where it is no index at all."""
    asked: Sequence[str] = sorted(names)
    if not asked or store.types([index]) not in ([b"zset"], [b"none"]):
        return set()
    pipe = store.client.pipeline(transaction=False)
    for name in asked:
        pipe.zscore(index, name)
    return {name for name, score in zip(asked, pipe.execute(), strict=True) if score is None}


def _begun(store: ProjectionStore, sessions: Collection[str]) -> set[str]:
    """Those whose head tells of events: one that only holds a policy or a lease may wait for its first commit."""
    asked = sorted(sessions)
    pipe = store.client.pipeline(transaction=False)
    for session in asked:
        pipe.get(store.keyspace.of(session).head(session))
    packed = pipe.execute(raise_on_error=False) if asked else []
    heads = [readable_head(one) if isinstance(one, bytes) else None for one in packed]
    return {name for name, head in zip(asked, heads, strict=True) if head is None or head.seq or head.quarantined}
