"""Counters and histograms, on the OpenTelemetry API: runs, calls, tokens, dollars, seconds."""

from collections.abc import Iterable
from decimal import Decimal

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.util.types import AttributeValue

from holdfast.contracts.calls import CallKind
from holdfast.telemetry import names
from holdfast.telemetry.drops import contained, drops

_meter = metrics.get_meter(names.INSTRUMENTATION)
_runs = _meter.create_counter(names.RUNS, unit="{run}", description="Attempts at runs, by how they ended")
_calls = _meter.create_counter(names.CALLS, unit="{call}", description="Model and tool calls that were sent")
_cost = _meter.create_counter(names.COST, unit="{usd}", description="Dollars spent on models, where the price is known")
_tokens = _meter.create_histogram(names.TOKEN_USAGE, unit="{token}", description="Tokens of one model call")
_duration = _meter.create_histogram(names.OPERATION_DURATION, unit="s", description="Duration of one call")


def _dropped(_: CallbackOptions) -> Iterable[Observation]:
    return [Observation(count, {names.DROP_REASON: reason}) for reason, count in drops.by_reason().items()]


_meter.create_observable_counter(
    names.DROPPED, callbacks=[_dropped], unit="{item}", description="Telemetry that was lost"
)


def count_run(*, graph_name: str, tenant_id: str, status: str) -> None:
    """One attempt at a run has ended with `status`."""
    with contained("metric"):
        _runs.add(1, {names.GRAPH_NAME: graph_name, names.TENANT_ID: tenant_id, names.STATUS: status})


def count_call(
    kind: CallKind, *, attributes: dict[str, AttributeValue], latency_ms: int, error_type: str | None = None
) -> None:
    """One call that was sent has ended."""
    said = {names.CALL_KIND: kind, **attributes, **({names.OTEL_ERROR_TYPE: error_type} if error_type else {})}
    with contained("metric"):
        _calls.add(1, said)
        _duration.record(latency_ms / 1000, said)


def count_usage(
    *, attributes: dict[str, AttributeValue], input_tokens: int, output_tokens: int, cost_usd: Decimal | None
) -> None:
    """What one model call used. A cost that is not known is left out, never counted as zero."""
    with contained("metric"):
        _tokens.record(input_tokens, {**attributes, names.TOKEN_TYPE: "input"})
        _tokens.record(output_tokens, {**attributes, names.TOKEN_TYPE: "output"})
        if cost_usd is not None:
            _cost.add(float(cost_usd), attributes)
