"""Closes the store for appends by itself while chosen components are critical (`read_only.on_critical`).

Whoever looks says it anew with each look; it lapses `read_only.lapse_s` after the last, so a process that dies locks
nobody out. What a person closed or opened by hand is left alone, though what is critical closes it again.
"""

from __future__ import annotations

import os
import platform
from typing import Final

from domain.log import SessionLog
from domain.log.read_only import ReadOnlyMode
from workers.health.component import Component, Status
from workers.readiness import quick
from workers.reloading import InForce

CODE: Final = "READ_ONLY"


class ClosesOnCritical:
    """What is done about each look at the components. Raises the typed error where the store cannot be told."""

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force
        self._is_closed = False
        self._who = f"serve@{platform.node()}:{os.getpid()}"

    def heed(self, components: list[Component]) -> None:
        """Closes the store, keeps it closed, or opens it again."""
        settings = self._in_force.settings
        chosen = settings.read_only.components
        # That it is closed is no reason to close it.
        critical = [
            one for one in components if one.name in chosen and one.status >= Status.CRITICAL and one.code != CODE
        ]
        if not critical and not self._is_closed:
            return
        with SessionLog.open(quick(settings), environment=settings.environment, namespace=settings.namespace) as log:
            mode = ReadOnlyMode(log)
            if critical:
                why = "; ".join(f"{one.name} is {one.status.word}: {one.reason}" for one in critical)
                mode.close(self._who, why, lapse_ms=int(settings.read_only.lapse_s * 1000))
            else:
                mode.open(self._who, by_itself=True)
        self._is_closed = bool(critical)
