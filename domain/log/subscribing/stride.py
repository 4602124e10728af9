"""How much a subscriber reads at a time. Does no I/O.

A connection may break before a page has come: because the line is bad, or slow, or somebody on the way closes what
lives long. Asking for the same again would then fail for ever. So each failure halves what is asked for next, whatever
it is (partitions side by side, entries of a feed, names, commits), down to one of each.

It grows again as TCP's window does: each success doubles it up to half of what failed first, because what came after
that first failure may have failed for a server that was away; from there on each adds an eighth.
"""

from __future__ import annotations

from typing import Final

#: The least share that is read: one of whatever there is most of in a page.
LEAST: Final = 2.0**-10
_LONGER: Final = 1.125


class Stride:
    """The share of what may be read at a time that is read."""

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self._doubled_to = share
        self._has_failed = False

    def of(self, most: int) -> int:
        """So many of at most `most`; one at least."""
        return max(1, int(most * self._share))

    def shorten(self) -> None:
        """A page did not come."""
        self._share = max(LEAST, self._share / 2)
        if not self._has_failed:
            self._doubled_to = self._share
        self._has_failed = True

    def lengthen(self) -> None:
        """A page came."""
        self._has_failed = False
        self._share = max(min(self._share * 2, self._doubled_to), min(self._share * _LONGER, 1.0))
