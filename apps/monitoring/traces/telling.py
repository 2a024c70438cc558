"""The one place that knows OpenTelemetry. Spans go to Redis, for the portal's own pages; to an OTLP collector too where the environment
names one (OTEL_EXPORTER_OTLP_ENDPOINT and its companions). Both from a thread of their own."""

import threading
from typing import NamedTuple

from django.conf import settings
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from apps.monitoring.traces.store import REQUEST, RedisExporter

REQUEST_ID, ANSWERS, FAILURE = "dsportal.request_id", "dsportal.answers", "dsportal.failure"
DELAY_MS = 400  # a page asked for after so long has the request
QUEUE, BATCH = 20_000, 1000  # spans; what does not fit is dropped rather than waited for

SERVICE = "dsportal"

_propagator, _ids = TraceContextTextMapPropagator(), RandomIdGenerator()
_SCOPE, _UNSET = InstrumentationScope(SERVICE), Status(StatusCode.UNSET)
_lock = threading.Lock()


class Means(NamedTuple):
    provider: TracerProvider
    tracer: Tracer
    processor: SpanProcessor  # of all that is told


_made: Means | None = None


def _means() -> Means:
    """Made when the first span is: a command that answers nobody starts no thread. Kept: to ask the provider for its tracer takes longer than a span."""
    global _made  # noqa: PLW0603 — one a process, as OpenTelemetry has it
    with _lock:
        if _made is None:
            provider, processor = TracerProvider(sampler=ALWAYS_ON, resource=Resource({SERVICE_NAME: SERVICE})), SynchronousMultiSpanProcessor()
            for exporter in _exporters():
                processor.add_span_processor(
                    BatchSpanProcessor(exporter, schedule_delay_millis=DELAY_MS, max_queue_size=QUEUE, max_export_batch_size=BATCH)
                )
            provider.add_span_processor(processor)
            _made = Means(provider, provider.get_tracer(SERVICE), processor)
        return _made


def _exporters() -> list[SpanExporter]:
    exporters: list[SpanExporter] = [RedisExporter()]
    if settings.OTLP_ENDPOINT:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporters.append(OTLPSpanExporter())  # which reads the same environment
    return exporters


def begin(start: int) -> Span:
    """The root of one request, which began at `start` (ns). Whatever trace a client is in, ours is one of its own: nobody can write into another's."""
    return _means().tracer.start_span(REQUEST, context=Context(), kind=SpanKind.SERVER, start_time=start)


def within(span: Span) -> Context:
    return trace.set_span_in_context(span, Context())


def tell(name: str, start: int, end: int, parent: Context, failure: str = "", **about: str | float | bool) -> None:
    """A phase that is over; times in ns since 1970. It never was a span that runs: to begin one and end it takes fifteen times as long."""
    whose, means = trace.get_current_span(parent).get_span_context(), _means()
    own = SpanContext(whose.trace_id, _ids.generate_span_id(), is_remote=False, trace_flags=whose.trace_flags)
    status = Status(StatusCode.ERROR, failure[:200]) if failure else _UNSET
    means.processor.on_end(
        ReadableSpan(
            name, own, whose, means.provider.resource, about, status=status, start_time=start, end_time=end, instrumentation_scope=_SCOPE,
        )
    )  # fmt: skip


def finish(span: Span, end: int, failure: str, facts: dict) -> None:
    span.set_attributes(facts)
    if failure or facts["http.response.status_code"] >= 500:
        span.set_attribute(FAILURE, failure)
        span.set_status(Status(StatusCode.ERROR, failure[:200]))
    span.end(end)


def carrier(span: Span) -> dict[str, str]:
    found: dict[str, str] = {}
    _propagator.inject(found, within(span))
    return found


def taken_up(headers: dict) -> Context | None:
    """The request that a message is a part of; None where it is none's, or nobody follows it."""
    context = _propagator.extract(headers, Context())
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def flush() -> None:
    """Have everything written that was told so far."""
    if _made:
        _made.provider.force_flush()
