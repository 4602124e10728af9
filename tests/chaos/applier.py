"""A worker's work on one batch, as a process to be killed.

    python -m tests.chaos.applier URL ENVIRONMENT NAMESPACE PARTITION

It claims the partition, reads its feed from the cursor on, applies what it read as one batch, gives the partition back
and ends. All in one thread, so that its requests come in the same order in every life.
"""

from __future__ import annotations

import sys
from typing import Final

from domain import SessionLog
from domain.log import Connecting
from projections import catchup
from projections.lease import Leases
from projections.store import ProjectionStore
from workers.feed import batch_of
from workers.partitions import HeldPartition

#: Longer than any test runs: whoever comes after a dead one takes the partition by force.
LEASE_TTL_MS: Final = 600_000


def main(url: str, environment: str, namespace: str, partition: int) -> None:
    with SessionLog.open(Connecting(url), environment=environment, namespace=namespace) as log:
        store = ProjectionStore(log.client, log.keyspace)
        leases = Leases(log.client, log.keyspace, "applier")
        token = leases.claim(partition, ttl_ms=LEASE_TTL_MS)
        assert token is not None, "the partition is held"
        position = store.cursor(partition).position
        assert position is not None, "there is no cursor to go on from"
        batch = batch_of(partition, HeldPartition(token, position), store.feed_after(partition, position))
        catchup.apply(store, log, batch)
        leases.release(partition, token)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
