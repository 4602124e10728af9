"""The stop of the whole fleet, as the store knows it: asked for once, seen by every worker, until it is taken back.

A worker sees it on its beat: it claims nothing more, finishes what is in flight, gives leases and jobs back, says so
here and ends with `HALTED_EXIT`. Whoever keeps workers alive does not start such a one again before the stop is taken
back; one that is started meanwhile ends at once, having touched nothing.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from domain.errors import NotFound, Unavailable
from domain.log.keys import Keyspace
from projections.session_view import rfc3339

#: How a worker process ends that found the fleet stopped; none of the commands' own codes.
HALTED_EXIT: Final = 75
#: What workers say of themselves.
DRAINING: Final = "draining"
STOPPED: Final = "stopped"
#: Ended past its deadline: what it had in flight is read again by whoever comes next.
FORCED: Final = "forced"
#: How long that can be read, in ms.
NOTES_KEPT_MS: Final = 24 * 3_600_000


class Halt(Struct, frozen=True):
    """Who stopped the fleet, why, and when (server ms)."""

    who: str
    why: str
    at_ms: int

    @property
    def told(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"the fleet is stopped by {self.who} since {rfc3339(self.at_ms)}{why}"

    def error(self) -> Unavailable:
        """What a worker ends with that is started meanwhile."""
        return Unavailable("FLEET_STOPPED", self.told)


class Halting:
    """The stop of a store's fleet."""

    def __init__(self, client: Any, keyspace: Keyspace) -> None:
        self._client = client
        self._keyspace = keyspace

    def standing(self) -> Halt | None:
        """The stop that stands, if one does."""
        return halt_of(self._client.hmget(self._keyspace.halt, *FIELDS))

    def order(self, who: str, why: str) -> Halt:
        """Stops the fleet. One that is stopped stays so by the word of who was first."""
        if (halt := self.standing()) is not None:
            return halt
        halt = Halt(who, why, self._now())
        pipe = self._client.pipeline(transaction=True)
        pipe.hset(self._keyspace.halt, mapping={"who": who, "why": why, "at": halt.at_ms})
        pipe.delete(self._keyspace.halted)
        pipe.xadd(self._keyspace.audit, {"who": who, "what": "fleet stopped", "why": why})
        pipe.execute()
        return halt

    def lift(self, who: str) -> Halt:
        """Takes the stop back; returns what stood. Raises NotFound (NOT_STOPPED)."""
        halt = self.standing()
        if halt is None:
            raise NotFound("NOT_STOPPED", "nobody stopped the fleet")
        pipe = self._client.pipeline(transaction=True)
        pipe.delete(self._keyspace.halt, self._keyspace.halted)
        pipe.xadd(self._keyspace.audit, {"who": who, "what": "stop of the fleet taken back"})
        pipe.execute()
        return halt

    def note(self, worker: str, phase: str) -> None:
        """A worker says how far it is."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hset(self._keyspace.halted, worker, phase)
        pipe.pexpire(self._keyspace.halted, NOTES_KEPT_MS)
        pipe.execute()

    def notes(self) -> dict[str, str]:
        """What workers said of themselves since the stop."""
        return {
            worker.decode(): phase.decode() for worker, phase in self._client.hgetall(self._keyspace.halted).items()
        }

    def _now(self) -> int:
        seconds, micros = self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000


#: The fields of the key, in the order `halt_of` takes them.
FIELDS: Final = ("who", "why", "at")


def halt_of(fields: list[bytes | None]) -> Halt | None:
    """The stop that these fields tell of."""
    who, why, at = fields
    return None if who is None else Halt(who.decode(), (why or b"").decode(), int(at or 0))
