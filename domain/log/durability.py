"""How durable a commit is when its receipt is given: what is asked of the server along with it, and what that proves.

Theory of operation. The questions travel in the same write as the append, on the same connection, so that they are
about that append:

- `local` asks for the server's settings before and after. With `appendfsync always` the server syncs its file before it
  replies; any other setting promises nothing by the time of the reply, WAITAOF included (with everysec it was seen to
  answer before the sync).
- `replicated(k)` waits until k replicas have what this connection wrote. A connection that wrote nothing waits for
nothing
  and is told so at once; so an append that turned out to be a repeat is followed by a real write before the wait.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from domain.errors import Misconfigured
from domain.log.protocol import Command

_REPLICATED: Final = re.compile(r"replicated\(([1-9]\d{0,2})\)\Z")
_SETTINGS: Final = ["CONFIG", "GET", "appendonly", "appendfsync", "no-appendfsync-on-rewrite"]
_PERSISTENCE: Final = ["INFO", "persistence"]
_SYNCED: Final = {b"appendonly": b"yes", b"appendfsync": b"always", b"no-appendfsync-on-rewrite": b"no"}


class Durability(Struct, frozen=True):
    """What every commit must have reached when its receipt is given; `replicas` is the k of `replicated(k)`."""

    level: Literal["memory", "local", "replicated"] = "memory"
    replicas: int = 0

    @property
    def word(self) -> str:
        """As it is written in settings and receipts."""
        return f"replicated({self.replicas})" if self.level == "replicated" else self.level

    def before(self) -> list[Command]:
        """What to ask right before the append."""
        return [_SETTINGS] if self.level == "local" else []

    def after(self, wait_ms: int) -> list[Command]:
        """What to ask right after it; waiting ends after `wait_ms`."""
        match self.level:
            case "memory":
                return []
            case "local":
                return [_SETTINGS, _PERSISTENCE]
            case "replicated":
                return [["WAIT", self.replicas, wait_ms]]

    def proved(self, replies: Sequence[Any]) -> str:
        """What the replies to these questions prove, as a word for the receipt: never a better one than the truth."""
        match self.level:
            case "local" if all(_is_synced(reply) for reply in replies):
                return "local"
            case "replicated" if isinstance(replies[-1], int) and replies[-1] > 0:
                return f"replicated({replies[-1]})"
        return "memory"

    def is_reached(self, word: str) -> bool:
        """Whether a receipt with this word has what is wanted."""
        if self.level == "replicated":
            found = _REPLICATED.match(word)
            return found is not None and int(found[1]) >= self.replicas
        return self.level in ("memory", word)


def parse_durability(word: str) -> Durability:
    """`memory`, `local` or `replicated(k)`. Raises Misconfigured (SETTING_INVALID)."""
    found = _REPLICATED.match(word)
    if found is not None:
        return Durability("replicated", int(found[1]))
    if word == "memory":
        return Durability("memory")
    if word == "local":
        return Durability("local")
    raise Misconfigured("SETTING_INVALID", f"durability {word!r} is none of memory, local, replicated(1), …")


def _is_synced(reply: Any) -> bool:
    """Whether one reply fits a server that syncs every write before it answers."""
    if isinstance(reply, list):
        settings = dict(zip(reply[::2], reply[1::2], strict=True))
        return all(settings.get(name) == value for name, value in _SYNCED.items())
    if isinstance(reply, bytes):
        # A file that was only just switched on counts from the end of its first rewrite; which rewrite this is, the
        # server does not tell.
        info = dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
        waits = info.get("aof_rewrite_in_progress") == "1" or info.get("aof_rewrite_scheduled") == "1"
        return info.get("aof_enabled") == "1" and info.get("aof_last_write_status") == "ok" and not waits
    return False
