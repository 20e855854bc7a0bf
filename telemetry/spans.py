"""Spans of runs, nodes, model calls and tool calls, on the OpenTelemetry API.

No span can fail what it watches: what a processor raises is contained and counted. No prompt, answer, argument or
exception message is written unless `capture_content(True)` was said.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, NonRecordingSpan, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from holdfast.contracts.canonical import canonical
from holdfast.contracts.classification import is_signal, type_of
from holdfast.contracts.errors import ErrorType
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.limits import Usage
from holdfast.contracts.models import Message, ModelResponse
from holdfast.contracts.runs import RunIdentity
from holdfast.contracts.scope import Scope
from holdfast.contracts.tools import ToolResult
from holdfast.telemetry import metrics, names
from holdfast.telemetry.drops import contained

_Attributes = dict[str, AttributeValue]

_tracer = trace.get_tracer(names.INSTRUMENTATION)
_w3c = TraceContextTextMapPropagator()
_content = {"captured": False}


def capture_content(captured: bool) -> None:
    """Whether prompts, answers, arguments and exception messages may be written into spans. Said once, by the
    composition root; the default is no."""
    _content["captured"] = captured


@contextmanager
def admission_span(*, run_id: str, tenant_id: str, graph_name: str) -> Iterator[Span]:
    """The asking for a run. `trace_parent()` inside it is what the run's attempts belong and link to."""
    attributes: _Attributes = {
        names.RUN_ID: run_id,
        names.TENANT_ID: tenant_id,
        names.GRAPH_NAME: graph_name,
    }
    with _span(f"start_run {graph_name}", SpanKind.PRODUCER, attributes) as span:
        yield span


@contextmanager
def run_span(run: RunIdentity, *, graph_name: str, attempt: int, link: str | None = None) -> Iterator[Span]:
    """One attempt at a run. The first belongs to the trace of `link` (a W3C traceparent); a later one, days after
    perhaps, is a trace of its own that links to it."""
    attributes: _Attributes = {
        **_run_facts(run),
        names.GRAPH_NAME: graph_name,
        names.ATTEMPT: attempt,
        names.OPERATION: "invoke_workflow",
        names.WORKFLOW_NAME: graph_name,
    }
    origin = _remote(link)
    if run.deadline_ms is not None:
        attributes[names.DEADLINE_MS] = run.deadline_ms
    parent = origin if origin is not None and attempt <= 1 else Context()
    links = [Link(trace.get_current_span(origin).get_span_context())] if origin is not None and attempt > 1 else []
    with _span(f"invoke_workflow {graph_name}", SpanKind.CONSUMER, attributes, parent=parent, links=links) as span:
        yield span


@contextmanager
def node_span(scope: Scope) -> Iterator[Span]:
    """One execution of a node, with its latency."""
    clock = scope.deadline.clock
    started = clock.monotonic()
    attributes = {**_scope_facts(scope), names.GRAPH_NAME: scope.graph_name}
    with _span(f"node {scope.node}", SpanKind.INTERNAL, attributes) as span:
        try:
            yield span
        finally:
            _set(span, {names.LATENCY_MS: round((clock.monotonic() - started) * 1000)})


@contextmanager
def model_span(
    scope: Scope,
    *,
    provider: str,
    model: str,
    prompt_version: str | None,
    agent_name: str | None = None,
    messages: Sequence[Message] = (),
) -> Iterator[Span]:
    """One model call, of the scope's agent unless another is named. `messages` are written only when content is
    captured."""
    attributes: _Attributes = {
        **_scope_facts(scope, agent_name),
        names.MODEL: f"{provider}:{model}",
        names.OPERATION: "chat",
        names.PROVIDER: provider,
        names.REQUEST_MODEL: model,
    }
    if prompt_version is not None:
        attributes[names.PROMPT_VERSION] = prompt_version
    with _span(f"chat {model}", SpanKind.CLIENT, attributes) as span:
        _set_content(span, names.INPUT_MESSAGES, messages)
        yield span


@contextmanager
def tool_span(
    scope: Scope,
    *,
    tool_name: str,
    tool_call_id: str,
    agent_name: str | None = None,
    arguments: Mapping[str, object] | None = None,
) -> Iterator[Span]:
    """One tool call, of the scope's agent unless another is named. `arguments` are written only when content is
    captured."""
    attributes: _Attributes = {
        **_scope_facts(scope, agent_name),
        names.TOOL_NAME: tool_name,
        names.OPERATION: "execute_tool",
        names.GEN_AI_TOOL_NAME: tool_name,
        names.TOOL_CALL_ID: tool_call_id,
    }
    with _span(f"execute_tool {tool_name}", SpanKind.INTERNAL, attributes) as span:
        _set_content(span, names.TOOL_ARGUMENTS, arguments)
        yield span


def record_run(
    span: Span,
    run: RunIdentity,
    *,
    graph_name: str,
    status: str,
    usage: Usage | None = None,
    latency_ms: int | None = None,
) -> None:
    """How an attempt ended; counts it too."""
    said: _Attributes = {names.STATUS: status}
    if usage is not None:
        said |= {
            names.MODEL_CALLS: usage.model_calls,
            names.TOOL_CALLS: usage.tool_calls,
            names.TOKENS_USED: usage.tokens_used,
        }
        if usage.cost_usd is not None:
            said[names.COST_USD] = float(usage.cost_usd)
    if latency_ms is not None:
        said[names.LATENCY_MS] = latency_ms
    _set(span, said)
    metrics.count_run(graph_name=graph_name, tenant_id=run.tenant_id, status=status)


def record_model(span: Span, response: ModelResponse, latency_ms: int) -> None:
    """What a model answered; counts the call, its tokens and its cost, unless the journal answered."""
    said: _Attributes = {
        names.RESPONSE_MODEL: response.model,
        names.INPUT_TOKENS: response.input_tokens,
        names.OUTPUT_TOKENS: response.output_tokens,
        names.LATENCY_MS: latency_ms,
        names.REPLAYED: response.replayed,
    }
    if response.cost_usd is not None:
        said[names.COST_USD] = float(response.cost_usd)
    if response.finish_reason is not None:
        said[names.FINISH_REASONS] = [response.finish_reason]
    _set(span, said)
    _set_content(span, names.OUTPUT_MESSAGES, [{"role": "assistant", "content": response.content}])
    if not response.replayed:
        about: _Attributes = {
            names.OPERATION: "chat",
            names.PROVIDER: response.provider,
            names.RESPONSE_MODEL: response.model,
        }
        metrics.count_call("model", attributes=about, latency_ms=latency_ms)
        metrics.count_usage(
            attributes=about,
            input_tokens=response.input_tokens,
            output_tokens=response.output_tokens,
            cost_usd=response.cost_usd,
        )


def record_tool(span: Span, result: ToolResult, latency_ms: int, *, tool_name: str) -> None:
    """What a tool answered; counts the call, unless the journal answered."""
    error_type = result.error_type.value if result.error_type is not None else None
    _set(
        span,
        {names.STATUS: result.status, names.LATENCY_MS: latency_ms, names.REPLAYED: result.replayed},
    )
    _set_content(span, names.TOOL_RESULT, result.output)
    if error_type is not None:
        _mark_failed(span, error_type, result.error_message)
    if not result.replayed:
        about: _Attributes = {names.OPERATION: "execute_tool", names.GEN_AI_TOOL_NAME: tool_name}
        metrics.count_call("tool", attributes=about, latency_ms=latency_ms, error_type=error_type)


def record_failure(span: Span, error: BaseException) -> None:
    """Why what the span watches failed: the error type and the class; the message only when content is captured.
    LangGraph's signals are not failures."""
    if is_signal(error):
        _set(span, {names.INTERRUPTED: True})
        return
    _set(span, {names.EXCEPTION_TYPE: f"{type(error).__module__}.{type(error).__qualname__}"})
    _mark_failed(span, type_of(error).value, str(error))


def trace_ids() -> tuple[str, str] | tuple[None, None]:
    """The trace id and span id of the current span, in hexadecimal; Nones outside any span."""
    here = trace.get_current_span().get_span_context()
    if not here.is_valid:
        return None, None
    return trace.format_trace_id(here.trace_id), trace.format_span_id(here.span_id)


def traced_event(
    kind: EventKind,
    payload: Mapping[str, Any],
    *,
    node: str | None = None,
    task_id: str | None = None,
    call_id: str | None = None,
) -> EventDraft:
    """An event that says in which span it happened, where there is one."""
    trace_id, span_id = trace_ids()
    return EventDraft(
        kind=kind, node=node, task_id=task_id, call_id=call_id, trace_id=trace_id, span_id=span_id, payload=payload
    )


def trace_parent() -> str | None:
    """The current span as a W3C traceparent, for a run that starts here; None outside any span."""
    here = trace.get_current_span().get_span_context()
    if not here.is_valid:
        return None
    ids = f"{trace.format_trace_id(here.trace_id)}-{trace.format_span_id(here.span_id)}"
    return f"00-{ids}-{here.trace_flags:02x}"


@contextmanager
def _span(
    name: str,
    kind: SpanKind,
    attributes: Mapping[str, AttributeValue],
    *,
    parent: Context | None = None,
    links: Sequence[Link] = (),
) -> Iterator[Span]:
    span = _started(name, kind, attributes, parent, links)
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        yield span
    except BaseException as error:
        record_failure(span, error)
        raise
    finally:
        otel_context.detach(token)
        with contained("span end"):
            span.end()


def _started(
    name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue], parent: Context | None, links: Sequence[Link]
) -> Span:
    with contained("span start"):
        return _tracer.start_span(
            name,
            context=parent,
            kind=kind,
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        )
    # Whoever is below still belongs to the trace above, though this span is lost.
    above = trace.get_current_span(parent).get_span_context()
    return NonRecordingSpan(above) if above.is_valid else INVALID_SPAN


def _remote(traceparent: str | None) -> Context | None:
    if traceparent is None:
        return None
    with contained("trace parent"):
        context = _w3c.extract({"traceparent": traceparent}, context=Context())
        return context if trace.get_current_span(context).get_span_context().is_valid else None
    return None


def _set(span: Span, attributes: Mapping[str, AttributeValue]) -> None:
    with contained("span attributes"):
        span.set_attributes(attributes)


def _set_content(span: Span, name: str, content: object) -> None:
    if _content["captured"] and content:
        with contained("span content"):
            span.set_attribute(name, canonical(content).decode())


def _mark_failed(span: Span, error_type: str, message: str | None) -> None:
    said: _Attributes = {names.ERROR_TYPE: error_type, names.OTEL_ERROR_TYPE: error_type}
    shown = message if _content["captured"] else None
    if shown:
        said[names.EXCEPTION_MESSAGE] = shown
    _set(span, said)
    if error_type != ErrorType.CANCELLATION:
        with contained("span status"):
            span.set_status(Status(StatusCode.ERROR, shown))


def _run_facts(run: RunIdentity) -> _Attributes:
    return {
        names.RUN_ID: run.run_id,
        names.THREAD_ID: run.thread_id,
        names.TENANT_ID: run.tenant_id,
        names.POLICY_VERSION: run.policy_version,
        names.CONVERSATION_ID: run.thread_id,
    }


def _scope_facts(scope: Scope, agent_name: str | None = None) -> _Attributes:
    agent = agent_name or scope.agent_name
    facts: _Attributes = {
        **_run_facts(scope.run),
        names.NODE_NAME: scope.node,
        names.AGENT_NAME: agent,
        names.GEN_AI_AGENT_NAME: agent,
        names.ATTEMPT: scope.owner.attempt,
    }
    with contained("call site"):
        site = scope.locate()
        facts[names.TASK_ID] = site.task_id
        if site.checkpoint_id is not None:
            facts[names.CHECKPOINT_ID] = site.checkpoint_id
    return facts
