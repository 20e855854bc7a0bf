"""What is seen of a run from outside: its spans and its events, and how they belong together."""

from typing import Any

from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from offices import Office
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from typing_extensions import TypedDict

from holdfast import RunContext, RunStatus, Specialist, govern
from holdfast.server.settings import TelemetrySettings
from holdfast.server.telemetry import telemetry
from holdfast.testing.scripted import scripted_by_message

IN_TIME = 20.0


class Work(TypedDict, total=False):
    said: str


def desk(model: str) -> Any:
    async def draft(state: Work, runtime: Runtime[RunContext]) -> Work:
        async def look() -> str:
            return "seen"

        await runtime.context.fan_out([Specialist("eyes", look, budget_share=0.1, deadline_seconds=5)], limit=1)
        return {"said": (await runtime.context.models.call("Write.", agent="writer")).content}

    builder = StateGraph(Work, context_schema=RunContext).add_node("draft", draft).add_edge(START, "draft")
    return govern(builder.compile(), name="seen_desk", default_model=model)


async def test_a_call_is_seen_as_its_agents_and_from_its_checkpoint_and_events_as_their_spans(office: Office) -> None:
    exporter = InMemorySpanExporter()
    with scripted_by_message("seen", {"": "done"}) as script, telemetry(TelemetrySettings(), exporters=[exporter]):
        async with office.open() as runtime:
            run = await runtime.start(desk(script.model), {"said": ""}, tenant="acme")
            assert (await run.result(IN_TIME)).status is RunStatus.COMPLETED
            [call] = (await runtime.show(run.id, tenant="acme")).calls
            events = await run.events()
            known = [each.config["configurable"]["checkpoint_id"] for each in await office.checkpoints(runtime, run.id)]

    [span] = [span for span in exporter.get_finished_spans() if facts(span).get("holdfast.agent_name") == "writer"]
    assert facts(span)["holdfast.checkpoint_id"] == call.identity.site.checkpoint_id
    assert call.identity.site.checkpoint_id in known
    spans = {f"{span.context.span_id:016x}" for span in exporter.get_finished_spans() if span.context}
    for kind in ("run.admitted", "budget.opened", "model.returned"):
        [event] = [event for event in events if event.kind == kind]
        assert event.span_id in spans, kind


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})
