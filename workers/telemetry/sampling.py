"""Which spans are recorded in a worker process."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from domain.telemetry import BATCH_SPAN


def sampler(part: float) -> Sampler:
    """As the parent; where there is none, this part of all, but every batch that a span is made for at all."""
    return ParentBased(_BatchesAnd(TraceIdRatioBased(part)))


class _BatchesAnd(Sampler):
    """Of batches it is decided before there is a span (workers/telemetry/batches.py): a tracer takes long to say no."""

    def __init__(self, otherwise: Sampler) -> None:
        self._otherwise = otherwise

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        chosen = ALWAYS_ON if name == BATCH_SPAN.name else self._otherwise
        return chosen.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"batches, and {self._otherwise.get_description()}"
