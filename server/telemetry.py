"""Sets up OpenTelemetry's SDK and the logs for this process. No other module knows the SDK's providers."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import structlog
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics._internal import _ProxyMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter

from holdfast.server.exporting import Outlets, Pipe, within
from holdfast.server.settings import TelemetrySettings
from holdfast.telemetry.drops import contained
from holdfast.telemetry.spans import capture_content


class _Installed:
    """What this process has installed; OpenTelemetry lets each be set once."""

    outlets: Outlets | None = None
    meters: MeterProvider | None = None


@contextmanager
def telemetry(terms: TelemetrySettings, *, exporters: Sequence[SpanExporter] | None = None) -> Iterator[None]:
    """Telemetry for the block; when it ends, what is queued is handed over within `terms.shutdown_seconds`.

    Spans go to `exporters`; when none are given, over OTLP to where the standard variables say
    (`OTEL_EXPORTER_OTLP_ENDPOINT`), and nowhere without them. Spans have ids in any case. A provider that the
    program has installed itself stays: then its own processors decide where spans go, and how long that takes.
    """
    capture_content(terms.capture_content)
    _log_to_stderr(terms)
    _install_meters()
    outlets = _install_outlets()
    chosen = () if outlets is None else _chosen(exporters)
    pipes = [Pipe(exporter, max_queued=terms.max_queued_spans) for exporter in chosen]
    try:
        with outlets.feeding(pipes) if outlets is not None else nullcontext():
            yield
    finally:
        meters = () if _Installed.meters is None else (_Installed.meters.force_flush,)
        within(terms.shutdown_seconds, *(pipe.drain for pipe in pipes), *meters)
        for pipe in pipes:
            pipe.close()


def _chosen(exporters: Sequence[SpanExporter] | None) -> Sequence[SpanExporter]:
    if exporters is not None:
        return exporters
    if _sent_over_otlp("TRACES"):
        with contained("exporter setup"):
            return [OTLPSpanExporter()]
    return []


def _install_outlets() -> Outlets | None:
    """Our way out of the process; None where the program's own provider stands."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        _Installed.outlets = Outlets()
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(_Installed.outlets)
        trace.set_tracer_provider(provider)
    return _Installed.outlets


def _install_meters() -> None:
    if _sent_over_otlp("METRICS") and isinstance(metrics.get_meter_provider(), _ProxyMeterProvider):
        with contained("exporter setup"):
            reader = PeriodicExportingMetricReader(OTLPMetricExporter())
            _Installed.meters = MeterProvider([reader], resource=_resource(), shutdown_on_exit=False)
            metrics.set_meter_provider(_Installed.meters)


def _sent_over_otlp(signal: str) -> bool:
    """Whether the standard variables say where a signal goes.
    https://opentelemetry.io/docs/specs/otel/protocol/exporter/"""
    if os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp") != "otlp":
        return False
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return any(os.environ.get(name) for name in named)


def _resource() -> Resource:
    return Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "holdfast"})


def _log_to_stderr(terms: TelemetrySettings) -> None:
    """Show our log lines on standard error, unless the program has made arrangements of its own."""
    # An endpoint that is away would fill the screen with each retry; what is lost is counted (`telemetry.drops`).
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    ours = logging.getLogger("holdfast")
    ours.setLevel(terms.log_level.upper())
    if ours.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(terms))
    ours.addHandler(handler)
    ours.propagate = False


def formatter(terms: TelemetrySettings) -> logging.Formatter:
    """How a log line of ours looks."""
    looks: list[structlog.typing.Processor]
    if terms.log_format == "json":
        looks = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        looks = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *looks,
        ],
    )
