"""Sessions of 200 events, written one at a time, are read back whole, every event with its data."""

from tests.bench.peers.eventsourcing_library import EVENTSOURCING, EVENTSOURCING_POSTGRESQL
from tests.bench.peers.google_adk import ADK_REDIS, ADK_SQLITE
from tests.bench.peers.langgraph import LANGGRAPH
from tests.bench.peers.muster import MUSTER
from tests.bench.peers.openai_agents import OPENAI_AGENTS
from tests.bench.peers.peer import reading
from tests.bench.peers.umadb import UMADB
from tests.bench.row import Row, ahead_of

PEERS = [
    reading(peer)
    for peer in (OPENAI_AGENTS, ADK_REDIS, EVENTSOURCING, EVENTSOURCING_POSTGRESQL, UMADB, LANGGRAPH, ADK_SQLITE)
]

SNAPSHOT = {LANGGRAPH.name: "it writes the whole session with every event, and reads that one value"}

ROW = Row(
    "read a session back", "events/s", [reading(MUSTER), *PEERS], ahead_of(MUSTER.name, PEERS, nothing_to_win=SNAPSHOT)
)
