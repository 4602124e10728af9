"""Which alerts fire. A rule that holds for as long as it says fires once; one that holds no more is resolved once.

What cannot be seen changes nothing: an alert about the feed neither fires nor is resolved because redis is down. It
is kept in this process; one that is started again tells anew what it finds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from projections.session_view import rfc3339
from workers.alerting.rules import Rule
from workers.health.component import Component, Sample

logger = logging.getLogger(__name__)

_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}


class Alert(Struct, frozen=True):
    """News of an alert. Times are ms since 1970, by this host's clock."""

    name: str
    severity: str
    status: Literal["firing", "resolved"]
    reason: str
    since_ms: int
    at_ms: int

    def document(self) -> dict[str, Any]:
        """As it is told to others."""
        return {
            "schema": "muster.alert/1",
            "alert": self.name,
            "severity": self.severity,
            "status": self.status,
            "reason": self.reason,
            "since": rfc3339(self.since_ms),
            "at": rfc3339(self.at_ms),
        }


class _State:
    """One rule, since when it holds (None: it does not), and whether it fires."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.holds_since: tuple[float, int] | None = None
        self.fires = False
        self.reason = ""


class Alerts:
    """Heeds looks at the components, and tells news to `tell`; `monotonic` gives seconds."""

    def __init__(
        self,
        rules: Iterable[Rule],
        tell: Sequence[Callable[[Alert], None]] = (),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._states = [_State(rule) for rule in rules]
        self._tell = tell
        self._monotonic = monotonic

    def heed(self, components: list[Component]) -> None:
        """Takes note of a look."""
        for state in self._states:
            seen = state.rule.judge(components)
            if seen is not None:
                self._note(state, *seen)

    def take(self, rules: Iterable[Rule]) -> None:
        """Judges by other rules from now on; those that stay keep their state, and what fired by others is resolved."""
        before = {state.rule: state for state in self._states}
        self._states = [before[rule] if rule in before else _State(rule) for rule in rules]
        for state in before.values():
            if state.fires and state not in self._states:
                self._note(state, False, "there is no such rule any more")

    def samples(self) -> list[Sample]:
        """Which fire, as a metric."""
        return [
            Sample(
                "muster_alert_active",
                state.fires,
                (("alert", state.rule.name), ("severity", state.rule.severity)),
            )
            for state in self._states
        ]

    def _note(self, state: _State, holds: bool, reason: str) -> None:
        now, now_ms = self._monotonic(), int(time.time() * 1000)
        if not holds:
            before, state.holds_since = state.holds_since, None
            if state.fires and before is not None:
                state.fires = False
                self._news(Alert(state.rule.name, state.rule.severity, "resolved", reason, before[1], now_ms))
            return
        if state.holds_since is None:
            state.holds_since = now, now_ms
        if not state.fires and now - state.holds_since[0] >= state.rule.for_s:
            state.fires = True
            self._news(Alert(state.rule.name, state.rule.severity, "firing", reason, state.holds_since[1], now_ms))

    def _news(self, alert: Alert) -> None:
        level = _LEVELS[alert.severity] if alert.status == "firing" else logging.WARNING
        about = {"action": "worker.alert", "alert": alert.name, "severity": alert.severity, "status": alert.status}
        told = (alert.name, alert.severity, alert.status, alert.reason)
        logger.log(level, "alert %s (%s) is %s: %s", *told, extra=about)
        for tell in self._tell:
            tell(alert)
