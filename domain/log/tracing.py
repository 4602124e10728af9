"""The trace that a producer is in, by OpenTelemetry's current span, as W3C trace context."""

from __future__ import annotations

from opentelemetry import trace


def current_traceparent() -> str | None:
    """The `traceparent` of the current span; None without one."""
    span = trace.get_current_span()
    if span is trace.INVALID_SPAN or not (context := span.get_span_context()).is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
