"""What keeps a worker from its work, said once in a while.

An outage passes by itself: it is a warning. What does not, such as a right that the server denies, would otherwise look
like work that goes on and comes to nothing: it is an error, with its code and its remedy, for as long as it lasts.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from domain.errors import Conflict, MusterError, Unavailable
from domain.log.connection import connection_error

#: How often the same hindrance is said, in seconds.
SAY_EVERY_S: Final = 5.0


class Hindrances:
    """Says what hinders one kind of work, in the words of whoever does it."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._say_again: dict[str, float] = {}

    def met(self, action: str, what: str, error: Exception) -> None:
        """Notes that work failed; `what` says which, and that it will be tried again goes without saying."""
        typed = error if isinstance(error, MusterError) else connection_error(error)
        now = time.monotonic()
        if isinstance(typed, Conflict) or now < self._say_again.get(typed.code, 0.0):
            return  # others hold the lease: that is how work is shared
        self._say_again[typed.code] = now + SAY_EVERY_S
        about = {"action": action, "code": typed.code}
        if isinstance(typed, Unavailable):
            self._logger.warning("%s, it will be tried again: %s", what, typed, extra=about)
        else:
            self._logger.error("%s, nor will it be before somebody mends this: %s", what, typed, extra=about)
