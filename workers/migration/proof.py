"""How sure a seal is: the strongest durability that a server can prove, and the proof that was given.

A seal that a crash takes back would leave two writers, so nothing is opened before it is confirmed. What a server can
prove it says itself: its settings, its replicas, whether it knows WAITAOF. The questions travel behind the seals, on
the same connection, so they are about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from domain.errors import MusterError
from domain.log.durability import Durability
from domain.log.protocol import Command
from domain.log.store import parse_info
from workers.migration.ends import End

#: How long replicas and disk are waited for at a time, each, in ms.
WAIT_MS: Final = 2_000


class Proof:
    """What one server is asked, right behind writes, so that it proves them; and what it proved."""

    def __init__(self, end: End) -> None:
        self._end = end
        #: Shorter than the connection waits for both answers.
        self._wait_ms = int(min(WAIT_MS, 400 * end.log.connecting.timeout_s))
        info, settings = end.ask([["INFO", "replication"], ["CONFIG", "GET", "appendonly"]])
        fields = {} if isinstance(info, MusterError) else parse_info(info)
        self._replicas = int(fields.get("connected_slaves", 0))
        has_file = not isinstance(settings, MusterError) and b"yes" in settings
        (waited,) = end.ask([["WAITAOF", 0, 0, 1]]) if has_file else [None]
        self._has_waitaof = has_file and not isinstance(waited, MusterError)
        self._local = Durability("local") if has_file else None
        self.wanted = self._words(is_local=has_file and self._is_always(), is_synced=True, replicas=self._replicas)

    def commands(self) -> list[Command]:
        """What to send behind the writes: something that is written for certain, and the questions."""
        end = self._end
        touch: Command = ["FCALL", "muster_touch_1", 1, end.keyspace.partitions[0].meta, end.log.identity.store]
        asked = [touch, *(self._local.after(0) if self._local else [])]
        if self._replicas:
            asked.append(["WAIT", self._replicas, self._wait_ms])
        if self._has_waitaof:
            asked.append(["WAITAOF", 1, 0, self._wait_ms])
        return asked

    def proved(self, replies: Sequence[Any]) -> str:
        """What the replies to `commands` prove."""
        left = list(replies[1:])
        is_local = False
        if self._local is not None:
            is_local = self._local.proved([left.pop(0), left.pop(0)]) == "local"
        replicas = left.pop(0) if self._replicas else 0
        synced = left.pop(0) if self._has_waitaof else None
        is_synced = isinstance(synced, list) and int(synced[0]) >= 1
        return self._words(is_local=is_local, is_synced=is_synced, replicas=replicas)

    def _words(self, *, is_local: bool, is_synced: bool, replicas: Any) -> str:
        words = ["local"] if is_local else ["aof"] if is_synced and self._has_waitaof else []
        if isinstance(replicas, int) and replicas:
            words.append(f"replicated({replicas})")
        return "+".join(words) or "memory"

    def _is_always(self) -> bool:
        assert self._local is not None
        return self._local.proved(self._end.ask(self._local.after(0))) == "local"

    def is_enough(self, word: str) -> bool:
        """Whether what was proved is what the server can prove."""
        if self.wanted == word:
            return True
        have = set(word.split("+"))
        return all(part in have or (part == "aof" and "local" in have) for part in self.wanted.split("+"))
