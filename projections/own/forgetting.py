"""Forgetting what own projections hold of sessions whose logs were taken from here on purpose; their class need not be
known: folds are deleted, and workers merge the views of the partition again from those that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from domain.log.keys import Keyspace
from projections.lease import Leases, held_for_recovery
from projections.own.publishing import Version
from projections.own.store import DONE, VIEWS
from projections.store import Operation, ProjectionStore, unpark

#: How many sessions are forgotten in one step.
STEP_SESSIONS: Final = 256


def forget(
    client: Any, keyspace: Keyspace, version: Version, partition: int, sessions: Sequence[str], who: str
) -> None:
    """Forgets sessions of a partition. Raises Conflict (PARTITION_BUSY, LEASE_TAKEN, CURSOR_MOVED)."""
    store = ProjectionStore(client, keyspace, name=version.name, version=version.version, owned=version.label)
    keys = store.keys(partition)
    if store.cursor(partition).position is None:
        return
    with held_for_recovery(Leases(client, keyspace, who, owned=version.label), partition) as held:
        for at in range(0, len(sessions), STEP_SESSIONS):
            operations: list[Operation] = []
            for session in sessions[at : at + STEP_SESSIONS]:
                operations.append(Operation("DEL", keys.fold(version.label, session)))
                operations.append(unpark(keys, session, owned=version.label))
            if version.is_keyed and client.get(keys.build(version.label)) == DONE.encode():
                operations.append(Operation("SET", keys.build(version.label), (VIEWS,)))
            position = store.cursor(partition).position
            store.step(partition, token=held.token, cursor_from=position, cursor_to=None, operations=operations)
            held.renew()
