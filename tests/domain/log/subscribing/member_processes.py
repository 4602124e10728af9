"""Members of a durable subscription in processes of their own, as tests start, hear and kill them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from domain import NotFound, SessionLog
from domain.log.subscribing.durable import DurableSubscriptions
from workers.child_process import start_child

ROOT = Path(__file__).parents[4]


class MemberProcess:
    """A member in a process of its own, and what it said so far."""

    def __init__(self, url: str, namespace: str, name: str, every: int, output: Path) -> None:
        command = [sys.executable, "-m", "tests.domain.log.subscribing.member_process"]
        self._output = output
        with output.open("wb") as stdout:
            self.process = start_child([*command, url, namespace, name, str(every)], stdout=stdout, cwd=ROOT)

    def said(self) -> list[str]:
        """The lines that it said, whole."""
        return [line[:-1] for line in self._output.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def acknowledged(self) -> list[str]:
        """Deliveries that it acknowledged, by its own word."""
        acknowledged: list[str] = []
        pending: list[str] = []
        for line in self.said():
            word, *sessions = line.split()
            if word in ("ack", "lost"):
                acknowledged += [one for one in pending if one.split()[0] not in sessions]
                pending.clear()
            else:
                pending.append(line)
        return acknowledged

    def given(self) -> list[str]:
        return [line for line in self.said() if line.split()[0] not in ("ack", "lost")]

    @property
    def has_lost(self) -> bool:
        """Whether it was told that a part of what it took is another member's."""
        return any(line.startswith("lost") for line in self.said())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def is_acknowledged(log: SessionLog, name: str) -> bool:
    """Whether a durable subscription has everything behind it, by the places the store keeps."""
    try:
        places = log.drive(DurableSubscriptions(log.keyspace).show(name)).places
    except NotFound:
        return False  # none of its members has begun
    totals = [int(cast("bytes", log.client.hget(keys.meta, "total"))) for keys in log.keyspace.partitions]
    return all(place is not None and place.total == totals[at] for at, place in places.items())
