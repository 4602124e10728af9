"""A producer appends single events, one after another; what is acknowledged is in the server's memory."""

from tests.bench.peers.google_adk import ADK_REDIS
from tests.bench.peers.muster import MUSTER
from tests.bench.peers.openai_agents import OPENAI_AGENTS
from tests.bench.peers.peer import appending
from tests.bench.row import Row, ahead_of

PEERS = [appending(peer, 1_000) for peer in (OPENAI_AGENTS, ADK_REDIS)]

ROW = Row(
    "append one event, acknowledged from memory (fsync every second)",
    "events/s",
    [appending(MUSTER, 5_000), *PEERS],
    ahead_of(MUSTER.name, PEERS),
)
