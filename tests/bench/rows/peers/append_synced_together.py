"""64 threads append single events at a time, and each is told when its own is on the disk: who syncs them together?"""

from tests.bench.peers.eventsourcing_library import EVENTSOURCING, EVENTSOURCING_POSTGRESQL
from tests.bench.peers.langgraph import LANGGRAPH
from tests.bench.peers.muster import MUSTER_SYNCED
from tests.bench.peers.peer import appending_together
from tests.bench.peers.umadb import UMADB
from tests.bench.row import Row, ahead_of

THREADS = "64 threads share one interpreter here, and UmaDB's client is Rust: what is waited for is not the disk"
PEERS = [appending_together(peer, 64, 1_280) for peer in (EVENTSOURCING, EVENTSOURCING_POSTGRESQL, UMADB, LANGGRAPH)]

ROW = Row(
    "append one event each, 64 threads, acknowledged from the disk (fsync before the reply)",
    "events/s",
    [appending_together(MUSTER_SYNCED, 64, 6_400), *PEERS],
    ahead_of(MUSTER_SYNCED.name, PEERS, nothing_to_win={UMADB.name: THREADS}),
    is_quick=False,
)
