"""What happened and what it means: events, sessions, agents, and the log that holds them. The producer's library."""

from domain.codec import Commit, Limits
from domain.errors import (
    Conflict,
    Damaged,
    DeadlineExceeded,
    Misconfigured,
    MusterError,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from domain.events import Event
from domain.log import Append, AsyncSessionLog, Delivery, Forked, Head, MemoryLog, Receipt, SessionLog
from domain.session import Session

__all__ = [
    "Append",
    "AsyncSessionLog",
    "Commit",
    "Conflict",
    "Damaged",
    "DeadlineExceeded",
    "Delivery",
    "Event",
    "Forked",
    "Head",
    "Limits",
    "MemoryLog",
    "Misconfigured",
    "MusterError",
    "NotFound",
    "OutcomeUnknown",
    "Receipt",
    "Refused",
    "Session",
    "SessionLog",
    "Unavailable",
]
