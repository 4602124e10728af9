"""A session of 100,000 events whose view is gone: built again from its checkpoint, against from its first event."""

from __future__ import annotations

import time

from projections.lease import Leases, held_for_recovery
from projections.rebuild import Rebuild
from tests.bench.arena import Arena
from tests.bench.events import event
from tests.bench.history import History
from tests.bench.row import Contestant, Measure, Ratio, Row

#: What a session of this size takes is the row; it is not made shorter for a quick run.
LENGTH = 100_000


def recovering(name: str, *, is_short: bool) -> Contestant:
    def prepare(arena: Arena) -> Measure:
        made = History.of(arena, "long", sessions=1, length=arena.whole(LENGTH, smoke=2_000), commit=100)
        (session,) = made.sessions
        head = made.log.head(session)
        if head is not None and head.seq == made.events:
            made.log.append(session, event())  # one that no checkpoint holds yet
            made.rebuild()
        partition = made.log.keyspace.partition_of(session)
        view = made.log.keyspace.of(session).session_view(session)
        right = made.store.client.get(view)
        leases = Leases(made.log.client, made.log.keyspace, "recovery:bench")

        def measure() -> float:
            with held_for_recovery(leases, partition) as held:
                rebuild = Rebuild(
                    made.store,
                    made.log,
                    partition,
                    held.token,
                    who="recovery:bench",
                    quarantine=False,
                    renew=held.renew,
                )
                made.store.client.delete(view)
                began = time.perf_counter()
                list(rebuild.sessions([session], [session] if is_short else []))
                taken = time.perf_counter() - began
            assert made.store.client.get(view) == right
            return 1 / taken

        return measure

    return Contestant(name, prepare)


ROW = Row(
    f"a session of {LENGTH:,} events is built again",
    "times/s",
    [recovering("from its checkpoint", is_short=True), recovering("from zero", is_short=False)],
    [Ratio("from its checkpoint", "from zero", at_least=50)],
)
