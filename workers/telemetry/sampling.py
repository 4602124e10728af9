"""Which spans are recorded: what a traced commit is part of, always; of all else, a part by chance."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes


def sampler(part: float) -> Sampler:
    """As the parent; where there is none, whatever has a sampled link, and this part of the rest."""
    return ParentBased(_LinkedOr(TraceIdRatioBased(part)))


class _LinkedOr(Sampler):
    """The producer decided whether its trace is told; to break it off at the view would waste what was told."""

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
        is_linked = any(link.context.trace_flags.sampled for link in links or ())
        chosen = ALWAYS_ON if is_linked else self._otherwise
        return chosen.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"linked, or {self._otherwise.get_description()}"
