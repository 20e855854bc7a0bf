"""Spans, metrics and logs: what they say, and that no failure of theirs reaches a run."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal

import pytest
from langgraph.errors import GraphInterrupt
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from holdfast.contracts.errors import BudgetExceeded, ErrorType
from holdfast.contracts.models import ModelResponse
from holdfast.contracts.scope import Scope
from holdfast.contracts.tools import ToolResult
from holdfast.server.settings import TelemetrySettings
from holdfast.server.telemetry import formatter, telemetry
from holdfast.telemetry.drops import drops
from holdfast.telemetry.logs import logger, run_logs
from holdfast.telemetry.spans import (
    admission_span,
    model_span,
    node_span,
    record_model,
    record_tool,
    run_span,
    tool_span,
    trace_ids,
    trace_parent,
)
from holdfast.testing.clock import VirtualClock
from holdfast.testing.memory import MemoryStore
from holdfast.testing.scopes import scope_for

ANSWER = ModelResponse(
    provider="openai",
    model="gpt-5-mini",
    content="the secret answer",
    input_tokens=7,
    output_tokens=5,
    cost_usd=Decimal("0.0012"),
    finish_reason="stop",
)
BOUND_SECONDS = 5.0
"""Far above what anything here takes, far below what a blocked exporter would."""


@pytest.fixture
async def scope() -> Scope:
    clock = VirtualClock()
    return await scope_for(MemoryStore(clock=clock), clock=clock, agent_name="drafter", node="draft")


@contextmanager
def watching(**terms: object) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    with telemetry(TelemetrySettings(**terms), exporters=[exporter]):  # type: ignore[arg-type]
        yield exporter


def named(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    found = [span for span in exporter.get_finished_spans() if span.name == name]
    assert len(found) == 1, [span.name for span in exporter.get_finished_spans()]
    return found[0]


async def test_a_call_is_seen_below_its_node_and_its_run_with_all_the_fields_of_the_specification(scope: Scope) -> None:
    with watching() as exporter, run_span(scope.run, graph_name="desk", attempt=1), node_span(scope):
        with model_span(
            scope, provider="openai", model="gpt-5-mini", prompt_version="draft-3", agent_name="writer"
        ) as span:
            record_model(span, ANSWER, 40)
        with tool_span(scope, tool_name="issue_refund", tool_call_id="t-1") as span:
            record_tool(
                span,
                ToolResult(tool_call_id="t-1", status="error", error_type=ErrorType.TIMEOUT, error_message="late"),
                9,
                tool_name="issue_refund",
            )
    run, node = named(exporter, "invoke_workflow desk"), named(exporter, "node draft")
    model, tool = named(exporter, "chat gpt-5-mini"), named(exporter, "execute_tool issue_refund")
    assert node.parent == run.context
    assert model.parent == tool.parent == node.context

    whose = {
        "holdfast.run_id": scope.run.run_id,
        "holdfast.thread_id": scope.run.thread_id,
        "holdfast.tenant_id": "acme",
        "holdfast.policy_version": scope.run.policy_version,
    }
    where = {"holdfast.agent_name": "drafter", "holdfast.node_name": "draft"}
    assert whose.items() <= dict(run.attributes or {}).items()
    assert (whose | where | {"holdfast.latency_ms": 0}).items() <= dict(node.attributes or {}).items()
    assert (
        whose
        | where
        | {
            "holdfast.agent_name": "writer",
            "holdfast.model": "openai:gpt-5-mini",
            "holdfast.prompt_version": "draft-3",
            "holdfast.cost_usd": 0.0012,
            "holdfast.latency_ms": 40,
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-5-mini",
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 5,
            "gen_ai.conversation.id": scope.run.thread_id,
        }
    ).items() <= dict(model.attributes or {}).items()
    assert (
        whose
        | where
        | {
            "holdfast.tool_name": "issue_refund",
            "holdfast.error_type": "timeout",
            "holdfast.latency_ms": 9,
            "error.type": "timeout",
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "issue_refund",
            "gen_ai.tool.call.id": "t-1",
        }
    ).items() <= dict(tool.attributes or {}).items()


async def test_the_first_attempt_belongs_to_the_trace_of_the_request_and_later_ones_link_to_it(scope: Scope) -> None:
    with watching() as exporter:
        with admission_span(run_id=scope.run.run_id, tenant_id="acme", graph_name="desk"):
            link, asked = trace_parent(), trace_ids()
        for attempt in (1, 2):
            with run_span(scope.run, graph_name="desk", attempt=attempt, link=link):
                pass
    first, second = (span for span in exporter.get_finished_spans() if span.name == "invoke_workflow desk")
    assert first.context is not None
    assert second.context is not None
    assert trace.format_trace_id(first.context.trace_id) == asked[0]
    assert trace.format_trace_id(second.context.trace_id) != asked[0]
    assert [trace.format_trace_id(each.context.trace_id) for each in second.links] == [asked[0]]


@pytest.mark.parametrize("asked", [False, True])
async def test_content_is_in_spans_only_when_it_is_asked_for(scope: Scope, asked: bool) -> None:
    messages = [{"role": "user", "content": "the secret question"}]
    with watching(capture_content=asked) as exporter:
        with model_span(scope, provider="p", model="m", prompt_version=None, messages=messages) as span:
            record_model(span, ANSWER, 1)
        result = ToolResult(tool_call_id="t", status="ok", output={"result": "the secret result"})
        with tool_span(scope, tool_name="t", tool_call_id="t", arguments={"to": "the secret person"}) as span:
            record_tool(span, result, 1, tool_name="t")
        with pytest.raises(BudgetExceeded), node_span(scope):
            raise BudgetExceeded("the secret reason")
    written = "".join(span.to_json() for span in exporter.get_finished_spans())
    secrets = ["question", "answer", "person", "result", "reason"]
    assert [f"the secret {what}" in written for what in secrets] == [asked] * len(secrets)


async def test_a_failure_has_its_error_type_and_an_interrupt_is_no_failure(scope: Scope) -> None:
    with watching() as exporter:
        with pytest.raises(BudgetExceeded), run_span(scope.run, graph_name="failed", attempt=1):
            raise BudgetExceeded("no more calls")
        with pytest.raises(GraphInterrupt), run_span(scope.run, graph_name="asks", attempt=1):
            raise GraphInterrupt
    failed, asks = named(exporter, "invoke_workflow failed"), named(exporter, "invoke_workflow asks")
    assert not failed.status.is_ok
    assert (failed.attributes or {})["holdfast.error_type"] == "budget_exceeded"
    assert asks.status.is_unset
    assert "error.type" not in (asks.attributes or {})


class Unruly(SpanProcessor):
    """Raises wherever OpenTelemetry lets a processor raise, while it is armed."""

    armed = False

    def on_start(self, span: object, parent_context: object = None) -> None:
        self._raise()

    def on_end(self, span: ReadableSpan) -> None:
        self._raise()

    def _raise(self) -> None:
        if self.armed:
            raise RuntimeError("a processor of somebody else's")


async def test_a_processor_that_raises_does_not_reach_the_run_and_is_counted(scope: Scope) -> None:
    with watching():
        unruly = Unruly()
        trace.get_tracer_provider().add_span_processor(unruly)  # type: ignore[attr-defined]
        before = drops.by_reason()
        unruly.armed = True
        with run_span(scope.run, graph_name="g", attempt=1):
            unruly.armed = False
            with node_span(scope):
                unruly.armed = True
            reached = True
        unruly.armed = False
    after = drops.by_reason()
    assert reached
    assert after["span start"] == before.get("span start", 0) + 1
    assert after["span end"] == before.get("span end", 0) + 1


class Raising(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise RuntimeError("no room")


async def test_an_exporter_that_raises_costs_its_spans_and_nothing_else(scope: Scope) -> None:
    before = drops.by_reason().get("span export failed", 0)
    with telemetry(TelemetrySettings(), exporters=[Raising()]):
        for _ in range(3):
            with run_span(scope.run, graph_name="g", attempt=1):
                pass
    assert drops.by_reason()["span export failed"] == before + 3


class Blocked(SpanExporter):
    """Takes a batch and never comes back, until the test is over."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.released.wait()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.released.wait()


async def test_an_exporter_that_blocks_forever_delays_neither_a_run_nor_the_end_of_the_process(scope: Scope) -> None:
    exporter, before = Blocked(), drops.by_reason()
    started = time.monotonic()
    with telemetry(TelemetrySettings(max_queued_spans=4, shutdown_seconds=0.1), exporters=[exporter]):
        with run_span(scope.run, graph_name="g", attempt=1):
            pass
        assert exporter.entered.wait(BOUND_SECONDS)
        for _ in range(10):
            with run_span(scope.run, graph_name="g", attempt=1):
                pass
    took = time.monotonic() - started
    exporter.released.set()
    after = drops.by_reason()
    assert took < BOUND_SECONDS
    assert after["span queue full"] == before.get("span queue full", 0) + 6
    left = "span not exported before shutdown"
    assert after[left] == before.get(left, 0) + 5  # four in the queue, and the one that was being exported


async def test_the_bound_holds_for_all_exporters_together() -> None:
    exporters, started = [Blocked(), Blocked(), Blocked()], time.monotonic()
    with telemetry(TelemetrySettings(shutdown_seconds=1.0), exporters=exporters):
        pass
    took = time.monotonic() - started
    for exporter in exporters:
        exporter.released.set()
    assert took < 2.0


async def test_an_endpoint_that_nobody_answers_at_loses_spans_within_the_bound(
    scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    before, started = drops.total(), time.monotonic()
    with telemetry(TelemetrySettings(shutdown_seconds=0.2)), run_span(scope.run, graph_name="g", attempt=1):
        pass
    assert time.monotonic() - started < BOUND_SECONDS
    assert drops.total() == before + 1


async def test_log_lines_say_which_run_thread_tenant_and_span_they_are_about(
    scope: Scope, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="holdfast")
    caplog.handler.setFormatter(formatter(TelemetrySettings(log_format="json")))
    with watching(log_level="info"), run_logs(scope.run), run_span(scope.run, graph_name="g", attempt=1):
        logger("holdfast.tested").info("claimed", worker="w-1")
        ids = trace_ids()
    line = json.loads(caplog.text.splitlines()[-1])
    assert line["event"] == "claimed"
    assert line["worker"] == "w-1"
    assert (line["run_id"], line["thread_id"], line["tenant_id"]) == (
        scope.run.run_id,
        scope.run.thread_id,
        "acme",
    )
    assert (line["trace_id"], line["span_id"]) == ids


THEIR_OWN = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from holdfast.server.settings import TelemetrySettings
from holdfast.server.telemetry import telemetry
theirs = TracerProvider()
trace.set_tracer_provider(theirs)
with telemetry(TelemetrySettings()):
    assert trace.get_tracer_provider() is theirs
"""


def test_a_provider_that_the_program_installed_itself_stays() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", THEIR_OWN], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
