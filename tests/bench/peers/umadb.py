"""UmaDB: an event store with a server of its own, which its package brings; a session is a tag.

It writes to its file and syncs it before it replies; appends that come together are synced together.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.bench.arena import Arena, wait_until
from tests.bench.peers.peer import Folding, Peer
from tests.bench.row import Missing
from workers.child_process import start_child
from workers.embedded import free_port


def opened(arena: Arena) -> Folding:
    from umadb import Client, Event, Query, QueryItem

    program = shutil.which("umadb", path=str(Path(sys.executable).parent))
    if program is None:
        raise Missing("the package brings no umadb program")
    address = f"127.0.0.1:{free_port()}"
    command = [program, "--listen", address, "--db-path", str(arena.folder / "uma.db")]
    with (arena.folder / "uma.log").open("ab") as words:
        child = start_child(command, stdout=words, stderr=words)

    def end() -> None:
        child.terminate()
        child.wait()

    arena.at_end(end)

    def answers() -> bool:
        try:
            Client(f"http://{address}").head()
        except Exception:
            if child.poll() is not None:
                raise
            return False
        return True

    wait_until(answers, patience_s=20, every_s=0.05)

    class Store:
        def __init__(self) -> None:
            self._client = arena.keep(Client(f"http://{address}"))

        def append(self, session: str, event: dict[str, Any]) -> None:
            data = json.dumps(event).encode()
            self._client.append([Event(event_type=event["type"], tags=[session], data=data, uuid=uuid4())])

        def read(self, session: str) -> int:
            query = Query(items=[QueryItem(tags=[session])])
            return len([json.loads(found.event.data) for found in self._client.read(query=query)])

        def fold(self, session: str) -> int:
            """By hand: it brings no fold."""
            types: dict[str, int] = {}
            agents: dict[str, int] = {}
            entities: set[str] = set()
            for found in self._client.read(query=Query(items=[QueryItem(tags=[session])])):
                event = json.loads(found.event.data)
                types[event["type"]] = types.get(event["type"], 0) + 1
                agents[event["actor"]] = agents.get(event["actor"], 0) + 1
                entities.update(event["data"].get("change", {}).get("entity_ids", ()))
            return sum(types.values())

    return Store()


UMADB = Peer("UmaDB", opened)
