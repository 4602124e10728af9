"""A primary and its replica: either may be killed, and they change places without losing what was answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis

from tests.own_server import OwnServer
from tests.waiting import wait_until

_DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0")


class Pair:
    """Two servers, each with what it was told on its own disk."""

    def __init__(self, directory: Path) -> None:
        self.primary = OwnServer(directory / "one", *_DURABLE, kind="valkey")
        self._replica = OwnServer(directory / "two", *_DURABLE, kind="valkey")

    def start(self) -> None:
        self.primary.start()
        self._follow()

    def stop(self) -> None:
        self.primary.stop()
        self._replica.stop()

    def restart(self) -> None:
        """Kills the primary, and starts it again."""
        self.primary.kill()
        self.primary.start()

    def fail_over(self) -> None:
        """Kills the primary; its replica takes its place, and it follows. Nobody may write meanwhile."""
        wait_until(self._is_replicated, timeout_s=60, message="the replica has everything")
        self.primary.kill()
        with self._replica.client() as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
        self.primary, self._replica = self._replica, self.primary
        self._follow()

    def _follow(self) -> None:
        self._replica.start("--replicaof", "127.0.0.1", str(self.primary.port))

    def _is_replicated(self) -> bool:
        with self.primary.client() as primary, self._replica.client() as replica:
            try:
                written: Any = primary.info("replication")
                read: Any = replica.info("replication")
            except (redis.RedisError, OSError):
                return False
        is_up = read.get("master_link_status") == "up"
        return is_up and bool(read["slave_repl_offset"] >= written["master_repl_offset"])
