"""Which skips an operator wrote: those that the audit stream tells of, written in one step with them.

A skip that nobody is known to have written hides a commit from every fold. It cannot be honoured by some and not by
others, so it is found, and recovery takes it away: the commit was never gone, and counts again.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from domain.log.keys import PartitionKeys
from domain.log.skips import Skip, decode_skips

#: How many entries of the audit stream are read at a time.
AUDIT_PAGE: Final = 500
#: What the audit stream calls it.
DISCARDED: Final = "commit discarded"


class Forged(Struct, frozen=True):
    """Skips of a session that nobody is known to have written, and what is left without them.

    `first` is None where what is stored cannot be read at all.
    """

    first: Skip | None
    kept: list[Skip]


class AuditedSkips:
    """What the audit stream of a partition tells of skips, read as far as it goes when it is asked."""

    def __init__(self, client: Any, keys: PartitionKeys) -> None:
        self._client = client
        self._audit = keys.audit
        self._read_up_to = "-"
        self._known: set[tuple[str, int, int, str]] = set()

    def forged(self, session: str, stored: bytes | None) -> Forged | None:
        """What of a session's skips is forged; None if nothing is. `stored` was read before this is asked."""
        if stored is None:
            return None
        self._read_on()
        try:
            skips = decode_skips(stored)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return Forged(None, [])
        kept = [skip for skip in skips if (session, skip.from_seq, skip.to_seq, skip.digest) in self._known]
        return Forged(next(skip for skip in skips if skip not in kept), kept) if len(kept) < len(skips) else None

    def _read_on(self) -> None:
        while page := self._client.xrange(self._audit, self._read_up_to, "+", count=AUDIT_PAGE):
            for _, entry in page:
                told = {name.decode(): value.decode("utf-8", "replace") for name, value in entry.items()}
                if told.get("what") == DISCARDED:
                    names = told.get("session", ""), told.get("seq", ""), told.get("to_seq", ""), told.get("digest", "")
                    if names[1].isdigit() and names[2].isdigit():
                        self._known.add((names[0], int(names[1]), int(names[2]), names[3]))
            self._read_up_to = "(" + page[-1][0].decode()
