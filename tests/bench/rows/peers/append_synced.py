"""A producer appends single events, one after another; what is acknowledged is on the disk.

One durable append at a time waits for the disk, whoever waits: nothing much is to be won here.
"""

from tests.bench.peers.eventsourcing_library import EVENTSOURCING, EVENTSOURCING_POSTGRESQL
from tests.bench.peers.google_adk import ADK_SQLITE
from tests.bench.peers.langgraph import LANGGRAPH
from tests.bench.peers.muster import MUSTER_SYNCED
from tests.bench.peers.peer import appending
from tests.bench.peers.umadb import UMADB
from tests.bench.row import Row, ahead_of

DISK = "one durable append at a time is the disk's"
PEERS = [appending(peer, 300) for peer in (EVENTSOURCING, EVENTSOURCING_POSTGRESQL, UMADB, LANGGRAPH, ADK_SQLITE)]

ROW = Row(
    "append one event, acknowledged from the disk (fsync before the reply)",
    "events/s",
    [appending(MUSTER_SYNCED, 300), *PEERS],
    ahead_of(MUSTER_SYNCED.name, PEERS, nothing_to_win=dict.fromkeys((peer.name for peer in PEERS), DISK)),
)
