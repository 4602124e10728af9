"""What is declared of metrics and spans."""

from __future__ import annotations

import re
from pathlib import Path

from domain.telemetry import METRICS, SPANS

PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"


def test_names_are_as_prometheus_wants_them() -> None:
    """Each once; a counter ends in _total, everything else in its unit; none is by session or agent."""
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert re.fullmatch(r"muster_[a-z_]+[a-z]", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not metric.unit or metric.name.endswith(f"_{metric.unit}")
        assert metric.meaning
        assert not {"session", "agent", "entity"} & set(metric.labels)
        assert f"_{metric.teller}_" in metric.name or metric.teller == "serve"


def test_the_page_lists_every_metric_and_every_span() -> None:
    """With its meaning; and none that is not declared."""
    page = PAGE.read_text("utf-8")
    for metric in METRICS:
        labels = ", ".join(metric.labels)
        row = f"| `{metric.name}` | {metric.teller} | {metric.kind} | {labels} | {metric.meaning} |"
        assert row.replace("|  |", "| |") in page
    for span in SPANS:
        assert f"| `{span.name}` | {span.teller} | {span.meaning} |" in page
    assert page.count("| `muster_") == len(METRICS)
    assert page.count("| `muster.") == len(SPANS)
