"""LangGraph's SQLite checkpointer (WAL, synchronous full): a session is a thread, an event a step with a checkpoint.

A checkpoint holds the whole state, as it does for a graph whose state is a list of messages.
"""

from __future__ import annotations

from typing import Any

from tests.bench.arena import Arena
from tests.bench.peers.peer import Opened, Peer


def opened(arena: Arena) -> Opened:
    from langgraph.checkpoint.base import empty_checkpoint
    from langgraph.checkpoint.base.id import uuid6
    from langgraph.checkpoint.sqlite import SqliteSaver

    class Threads:
        def __init__(self) -> None:
            self._saver = arena.keep(SqliteSaver.from_conn_string(str(arena.folder / "langgraph.db")))
            self._threads: dict[str, tuple[Any, list[Any]]] = {}

        def append(self, session: str, event: dict[str, Any]) -> None:
            begin = {"configurable": {"thread_id": session, "checkpoint_ns": ""}}
            config, events = self._threads.get(session, (begin, []))
            events = [*events, event]
            checkpoint = empty_checkpoint()
            checkpoint["id"] = str(uuid6(clock_seq=len(events)))
            checkpoint["channel_values"] = {"events": events}
            checkpoint["channel_versions"] = {"events": len(events)}
            metadata: Any = {"source": "loop", "step": len(events), "parents": {}}
            config = self._saver.put(config, checkpoint, metadata, {"events": len(events)})
            self._threads[session] = (config, events)

        def read(self, session: str) -> int:
            found = self._saver.get_tuple({"configurable": {"thread_id": session, "checkpoint_ns": ""}})
            return len(found.checkpoint["channel_values"]["events"])

    return Threads()


LANGGRAPH = Peer("LangGraph SqliteSaver", opened)
