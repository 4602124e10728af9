"""What an alert is about, as text: `NAME: WHAT [for SECONDSs] [as SEVERITY]`, several separated by `;`.

    redis is critical                        a component is as bad as that, or worse: warning, critical, down
    muster_projection_lag_seconds > 30       a metric of workers/metrics.py, with any of its labels: > >= < <=

A rule says of a look whether it holds, or that it cannot be seen; it keeps no state.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from msgspec import Struct

from domain.errors import Misconfigured
from domain.telemetry import METRICS
from workers.health.component import NAMES, Component, Sample, Status
from workers.metrics import samples

SEVERITIES: Final = ("info", "warning", "critical")
#: From which state on a component may be alerted about.
_SERVED: Final = frozenset(metric.name for metric in METRICS if metric.teller == "serve")
_BAD: Final = {one.word: one for one in (Status.WARNING, Status.CRITICAL, Status.DOWN)}
_COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_RULE: Final = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9_-]{0,63}):\s+"
    r"(?:(?P<component>\w+)\s+is\s+(?P<status>\w+)|(?P<metric>\w+)\s*(?P<sign>>=|<=|>|<)\s*(?P<number>\S+))"
    r"(?:\s+for\s+(?P<for_s>\d+(?:\.\d+)?)s)?(?:\s+as\s+(?P<severity>\w+))?"
)


class Rule(Struct, frozen=True):
    """One rule. `status` of a component, or `sign` and `number` of a metric."""

    name: str
    about: str
    status: Status | None
    sign: str
    number: float
    for_s: float
    severity: str

    def judge(self, components: Iterable[Component]) -> tuple[bool, str] | None:
        """Whether it holds, and what was seen; None if that cannot be seen now."""
        return self._of_component(components) if self.status is not None else self._of_metric(components)

    def _of_component(self, components: Iterable[Component]) -> tuple[bool, str] | None:
        found = next((one for one in components if one.name == self.about), None)
        if found is None or found.status is Status.UNKNOWN:
            return None
        assert self.status is not None
        return found.status >= self.status, f"{found.name} is {found.status.word}: {found.reason}"

    def _of_metric(self, components: Iterable[Component]) -> tuple[bool, str] | None:
        found = [sample for sample in samples(components) if sample.metric == self.about]
        if not found:
            return None
        compare = _COMPARISONS[self.sign]
        worst = (max if self.sign.startswith(">") else min)(found, key=lambda sample: sample.value)
        return compare(worst.value, self.number), f"{_named(worst)} is {worst.value:g}"


def parsed(text: str) -> list[Rule]:
    """The rules of a text. Raises Misconfigured (SETTING_INVALID) that names what is wrong, and what there is."""
    rules = [_rule(part.strip()) for part in text.split(";") if part.strip()]
    names = [rule.name for rule in rules]
    if twice := [name for name in names if names.count(name) > 1]:
        raise _invalid(f"two rules are named {twice[0]!r}")
    return rules


def _rule(text: str) -> Rule:
    found = _RULE.fullmatch(text)
    if found is None:
        raise _invalid(
            f"{text[:100]!r} is no rule, which is NAME: COMPONENT is STATUS, or NAME: METRIC > NUMBER, "
            "then `for 60s`, then `as warning`"
        )
    severity = found["severity"] or "warning"
    if severity not in SEVERITIES:
        raise _invalid(f"rule {found['name']!r}: {severity!r} is no severity; there are: {', '.join(SEVERITIES)}")
    if found["component"] is not None:
        return _about_component(found, severity)
    return _about_metric(found, severity)


def _about_component(found: re.Match[str], severity: str) -> Rule:
    if found["component"] not in NAMES:
        raise _invalid(f"rule {found['name']!r}: there are the components {', '.join(NAMES)}")
    if found["status"] not in _BAD:
        raise _invalid(f"rule {found['name']!r}: a component is {', '.join(_BAD)}")
    return Rule(found["name"], found["component"], _BAD[found["status"]], "", 0.0, float(found["for_s"] or 0), severity)


def _about_metric(found: re.Match[str], severity: str) -> Rule:
    if found["metric"] not in _SERVED:
        raise _invalid(f"rule {found['name']!r}: there is no metric {found['metric']!r}; see docs/telemetry.md")
    try:
        number = float(found["number"])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _invalid(f"rule {found['name']!r}: {found['number'][:30]!r} is no number")
    return Rule(found["name"], found["metric"], None, found["sign"], number, float(found["for_s"] or 0), severity)


def _named(sample: Sample) -> str:
    labels = ", ".join(f"{name} {value}" for name, value in sample.labels)
    return f"{sample.metric} ({labels})" if labels else sample.metric


def _invalid(why: str) -> Misconfigured:
    return Misconfigured("SETTING_INVALID", f"alerts.rules: {why}")
