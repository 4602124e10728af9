"""What tells one trouble from another, in whichever session it is met."""

from __future__ import annotations

import re
from hashlib import sha1
from typing import Final

#: The code of a session whose commit workers died of.
KILLED: Final = "WORKER_KILLED"
#: Of these the commit is as it was appended, so that an operator may discard it. A damaged log is no matter of one
#: commit: it is quarantined.
DISCARDABLE: Final = frozenset({"EVENT_ILLEGAL", "EVENT_UNREADABLE", "EVENT_NEWER", KILLED})
#: Of these another worker may know more: it tries them again when it takes a partition up.
ANOTHER_MAY_KNOW: Final = frozenset(
    {"EVENT_NEWER", "UPCAST_FAILED", "ARCHIVE_UNREACHABLE", "ARCHIVE_DENIED", "ARCHIVE_NOT_GIVEN"}
)

#: Whole UUIDs first: their parts may be letters only. Then bytes as Python writes them, hex, and numbers, which may
#: stand within a word (`e12`).
_VARYING: Final = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|\\x[0-9a-f]{2}"
    r"|\b(?=[0-9a-f]*[0-9])[0-9a-f]+\b"
    r"|\b[0-9a-f]{8,}\b"
    r"|[0-9]+",
    re.IGNORECASE,
)


def fingerprint(code: str, cause: str, session: str) -> str:
    """12 hex digits that are the same for the same trouble in any session, at any seq.

    What the cause says of this one alone is left out: the session's id, numbers and hex. The id counts as a whole word
    only, since the letters of a short one are in every cause.
    """
    alike = re.sub(rf"(?<!\w){re.escape(session)}(?!\w)", "#", cause) if session else cause
    alike = _VARYING.sub("#", alike)
    return sha1(f"{code}\n{alike}".encode("utf-8", "replace"), usedforsecurity=False).hexdigest()[:12]
