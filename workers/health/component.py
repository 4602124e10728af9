"""What a look at one part of the whole comes to."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

from msgspec import Struct

from domain.errors import REGISTRY, MusterError
from projections.findings import KINDS
from projections.session_view import rfc3339


class Status(IntEnum):
    """How a part is; the worse the greater. UNKNOWN is no trouble of its own."""

    HEALTHY = 0
    UNKNOWN = 1
    WARNING = 2
    CRITICAL = 3
    DOWN = 4

    @property
    def word(self) -> str:
        return self.name.lower()


#: Every component by name, in the order they are told.
NAMES: Final = (
    *("redis", "memory", "log", "feed", "projections", "verification", "workers", "jobs", "schedule", "migrations"),
    *("spool", "disk", "archive"),
)


class Sample(NamedTuple):
    """A value of a metric of domain/telemetry.py, with its labels: never a session or an agent."""

    metric: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()


class Component(Struct, frozen=True):
    """A part: how it is and why, since when (ms since 1970; None: not known), and what was measured.

    `code` is what `muster explain` says more about; a healthy part has none.
    """

    name: str
    status: Status
    reason: str
    code: str | None = None
    since_ms: int | None = None
    samples: tuple[Sample, ...] = ()
    #: How long the probe took, in seconds.
    took_s: float = 0.0
    #: False: it was not asked, because its probe kept failing; this is what was found last.
    is_asked: bool = True
    #: Whether the probe itself failed: it raised, or was silent.
    is_failure: bool = False

    @property
    def remedy(self) -> str | None:
        """What to do, by the registry."""
        if self.code is None:
            return None
        return REGISTRY[self.code].remedy if self.code in REGISTRY else KINDS[self.code].remedy

    def document(self) -> dict[str, Any]:
        """As commands and HTTP tell it."""
        return {
            "schema": "muster.component/1",
            "component": self.name,
            "status": self.status.word,
            "reason": self.reason,
            "code": self.code,
            "remedy": self.remedy,
            "since": None if self.since_ms is None else rfc3339(self.since_ms),
            "measured": [
                {"metric": one.metric, "value": one.value, **({"labels": dict(one.labels)} if one.labels else {})}
                for one in self.samples
            ],
            "asked": self.is_asked,
            "took_s": round(self.took_s, 4),
        }


def failed(name: str, error: MusterError) -> Component:
    """A part that answers with an error is down."""
    return Component(name, Status.DOWN, error.cause, error.code, is_failure=True)


def overall(components: list[Component]) -> Status:
    """How all is: as the worst part. Where a part is unknown, the one that hides it is worse."""
    worst = max((one.status for one in components), default=Status.HEALTHY)
    return Status.HEALTHY if worst is Status.UNKNOWN else worst


def status_document(components: list[Component]) -> dict[str, Any]:
    """All in short."""
    return {
        "schema": "muster.health/1",
        "status": overall(components).word,
        "components": {one.name: one.status.word for one in components},
    }
