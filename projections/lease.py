"""The lease of a partition: the exclusive right to write what is derived in it, with a token that fences.

A token is a counter and a random nonce and is compared for equality, so whoever lost the lease, however long ago,
can write nothing any more. Deadlines are server time; a holder whose deadline passed keeps the lease until somebody
else takes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

from domain.errors import Conflict
from domain.log.keys import Keyspace
from projections import session_view

#: Holders whose names begin so are recoveries: workers wait for them, and they do not take leases from each other.
RECOVERY_PREFIX: Final = "recovery:"
#: How long a recovery holds a partition without renewing, in ms.
RECOVERY_TTL_MS: Final = 15_000


class Leases:
    """The partition leases of one projection (`ProjectionStore.owned`), as one holder sees them."""

    def __init__(self, client: Any, keyspace: Keyspace, holder: str, *, owned: str = session_view.NAME) -> None:
        self._client = client
        self._keyspace = keyspace
        self._owned = owned
        self.holder = holder

    def claim(self, partition: int, *, ttl_ms: int, force: bool = False) -> str | None:
        """Takes the lease if it is free, past its deadline or ours already; returns the token, or None if it is
        held.
        """
        nonce = uuid4().hex[:16]
        reply = self._client.fcall(
            "muster_claim_1", 1, self._owner(partition), self.holder, nonce, ttl_ms, "1" if force else "0"
        )
        return reply.decode() if isinstance(reply, bytes) else None

    def renew(self, held: dict[int, str], *, ttl_ms: int) -> set[int]:
        """Moves the deadlines of leases in one round trip; returns the partitions that were lost."""
        pipe = self._client.pipeline(transaction=False)
        for partition, token in held.items():
            pipe.fcall("muster_renew_1", 1, self._owner(partition), token, ttl_ms)
        replies = pipe.execute() if held else []
        return {partition for partition, renewed in zip(held, replies, strict=True) if not renewed}

    def crashes(self, partition: int) -> int:
        """How many holders of a partition died one after another, without giving it back or getting any further."""
        return int(self._client.hget(self._owner(partition), "crashes") or 0)

    def release(self, partition: int, token: str) -> None:
        """Gives a lease back; does nothing if it was taken meanwhile."""
        self._client.fcall("muster_release_1", 1, self._owner(partition), token)

    def owners(self, partitions: Iterable[int] | None = None) -> list[tuple[str, int] | None]:
        """Who holds each partition, or each of these, and until when in server ms; None where nobody ever did or it was
        given back.
        """
        pipe = self._client.pipeline(transaction=False)
        for partition in range(self._keyspace.count) if partitions is None else partitions:
            pipe.hmget(self._owner(partition), "worker", "deadline")
        return [
            None if worker is None or deadline in (None, b"0") else (worker.decode(), int(deadline))
            for worker, deadline in pipe.execute()
        ]

    def _owner(self, partition: int) -> str:
        return self._keyspace.partitions[partition].owner(self._owned)


class Held:
    """A partition held for recovery."""

    def __init__(self, leases: Leases, partition: int, token: str) -> None:
        self._leases = leases
        self.partition = partition
        self.token = token

    def renew(self) -> None:
        """Keeps the partition. Raises Conflict (LEASE_TAKEN) if it was lost."""
        if self._leases.renew({self.partition: self.token}, ttl_ms=RECOVERY_TTL_MS):
            raise Conflict("LEASE_TAKEN", f"the lease of partition {self.partition} was taken from the recovery")


@contextmanager
def held_for_recovery(leases: Leases, partition: int) -> Iterator[Held]:
    """Takes a partition from its worker for the time of the block; appends go on, and so do all other partitions.

    Raises Conflict (PARTITION_BUSY) if another recovery holds it.
    """
    (owner,) = leases.owners([partition])
    force = owner is None or not owner[0].startswith(RECOVERY_PREFIX)
    token = leases.claim(partition, ttl_ms=RECOVERY_TTL_MS, force=force)
    if token is None:
        raise Conflict("PARTITION_BUSY", f"partition {partition} is held by another recovery", partition=partition)
    try:
        yield Held(leases, partition, token)
    finally:
        leases.release(partition, token)
