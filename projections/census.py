"""The census: which sessions and agents have keys, and stand in no registry or index.

Everything else finds sessions by the registry and agents by the index; what is missing there would be looked for by
nobody. So this one place reads the names of keys. SCAN goes over them in small steps that keep nobody waiting; it is
used to judge, never to enumerate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from projections.store import ProjectionStore, readable_head, unless_of_another_type

#: How many names a step of the scan looks at.
SCAN_STEP: Final = 1000


class Unlisted(Struct):
    """What of a partition is in no list, though it has keys."""

    sessions: set[str]
    agents: set[str]


_Named = set[tuple[int, str]]
"""Names with the partitions they are in."""


def census(store: ProjectionStore, partition: int | None = None) -> dict[int, Unlisted]:
    """What is unlisted, by partition; of one partition, or of all."""
    found = {at: Unlisted(set(), set()) for at in (range(store.keyspace.count) if partition is None else (partition,))}
    for sessions, heads, agents in _pages(store, partition):
        for at, name in _not_listed(store, sessions | _begun(store, heads - sessions), agents=False):
            found[at].sessions.add(name)
        for at, name in _not_listed(store, agents, agents=True):
            found[at].agents.add(name)
    return found


def _pages(store: ProjectionStore, partition: int | None) -> Iterator[tuple[_Named, _Named, _Named]]:
    """Names as the scan meets them: of sessions by what is theirs, by their heads alone, and of agents."""
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
                {"head": heads, "view:agent": agents}.get(match[2], sessions).add((int(match[1]), text[match.end() :]))
        if names:
            yield sessions, heads, agents
        if not cursor:
            return


def _not_listed(store: ProjectionStore, named: _Named, *, agents: bool) -> _Named:
    """Those that their registry, or index of agents, does not list; none where that is no index at all."""
    asked = sorted(named)
    pipe = store.client.pipeline(transaction=False)
    for at, name in asked:
        pipe.zscore(store.keys(at).agents if agents else store.keys(at).sessions, name)
    scores = pipe.execute(raise_on_error=False) if asked else []
    return {one for one, score in zip(asked, scores, strict=True) if unless_of_another_type(score, True) is None}


def _begun(store: ProjectionStore, sessions: _Named) -> _Named:
    """Those whose head tells of events: one that only holds a policy or a lease may wait for its first commit."""
    asked = sorted(sessions)
    pipe = store.client.pipeline(transaction=False)
    for at, session in asked:
        pipe.get(store.keys(at).head(session))
    packed = pipe.execute(raise_on_error=False) if asked else []
    heads = [readable_head(unless_of_another_type(one)) for one in packed]
    return {one for one, head in zip(asked, heads, strict=True) if head is None or head.seq or head.quarantined}
