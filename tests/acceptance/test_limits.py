"""Limits as a user meets them: defaults, permissions, zeroes, steps, deadlines, and branches that share."""

import asyncio
import operator
import time
from typing import Annotated, Any

import drill
import pytest
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from langgraph.types import Send, interrupt
from offices import Office
from typing_extensions import TypedDict

from holdfast import Limits, RunContext, RunResult, RunStatus, govern, tool
from holdfast.contracts.errors import ErrorType, InvalidRequest, NotFound, PolicyDenied, TooLarge
from holdfast.contracts.events import EventKind
from holdfast.contracts.tenancy import Tenant
from holdfast.testing.scripted import Script, scripted_by_message

IN_TIME = 20.0
UNLIMITED = Limits(**dict.fromkeys(Limits.model_fields))


class Work(TypedDict, total=False):
    items: list[str]
    log: Annotated[list[str], operator.add]


@pytest.fixture
def model():
    with scripted_by_message("worker", {"": "done"}) as script:
        yield script


def asking(model: Script) -> Any:
    async def ask(state: Work, runtime: NodeRuntime[RunContext]) -> Work:
        return {"log": [(await runtime.context.models.call(item)).content for item in state["items"]]}

    builder = StateGraph(Work, context_schema=RunContext).add_node("ask", ask).add_edge(START, "ask")
    return govern(builder.compile(), name="asking", default_model=model.model)


async def done(office: Office, graph: Any, value: Any, limits: Limits | None = None, **settings: Any) -> RunResult:
    async with office.open(**settings) as runtime:
        run = await runtime.start(graph, value, tenant="acme", limits=limits)
        return await run.result(IN_TIME)


def failure(result: RunResult) -> tuple[ErrorType, str]:
    assert result.status is RunStatus.FAILED
    assert result.error is not None
    return result.error.error_type, result.error.step_name


async def test_run_that_names_no_limits_has_finite_ones_and_they_can_be_seen(office: Office, model: Script):
    acme = Tenant(tenant_id="acme", defaults=Limits(max_model_calls=3))
    async with office.open(tenants=(acme,), limits=Limits(max_tool_calls=4)) as runtime:
        graph = asking(model)
        plain = await runtime.start(graph, {"items": []}, tenant="acme")
        own = await runtime.start(graph, {"items": []}, tenant="acme", limits=Limits(max_steps=9, max_model_calls=8))
        limits = [(await runtime.show(run.id, tenant="acme")).run.limits for run in (plain, own)]
    assert [(each.max_model_calls, each.max_tool_calls, each.max_steps) for each in limits] == [(3, 4, 100), (8, 4, 9)]
    assert not any(each.unlimited for each in limits)


async def test_unlimited_is_written_out_and_needs_the_tenants_permission(office: Office, model: Script):
    with pytest.raises(PolicyDenied, match="max_model_calls is None"):
        await done(office, asking(model), {"items": []}, Limits(max_model_calls=None))
    free = Tenant(tenant_id="acme", may_be_unlimited=True)
    async with office.open(tenants=(free,)) as runtime:
        run = await runtime.start(asking(model), {"items": ["a", "b"]}, tenant="acme", limits=UNLIMITED)
        assert (await run.result(IN_TIME)).status is RunStatus.COMPLETED
        assert len((await runtime.show(run.id, tenant="acme")).run.limits.unlimited) == len(Limits.model_fields)


async def test_zero_budget_admits_a_run_that_may_do_nothing(office: Office, model: Script):
    for limits in (Limits(max_model_calls=0), Limits(max_tokens=0)):
        result = await done(office, asking(model), {"items": ["a"]}, limits)
        assert failure(result) == (ErrorType.BUDGET_EXCEEDED, "ask")
    assert failure(await done(office, asking(model), {"items": ["a"]}, Limits(max_steps=0)))[0] == "budget_exceeded"
    assert model.sends == 0


async def test_tenants_budget_holds_for_all_its_runs_together(office: Office, model: Script):
    acme = Tenant(tenant_id="acme", budget=Limits(max_model_calls=3))
    async with office.open(tenants=(acme,)) as runtime:
        graph = asking(model)
        runs = [await runtime.start(graph, {"items": ["a", "b"]}, tenant="acme") for _ in range(2)]
        results = [await run.result(IN_TIME) for run in runs]
    assert sorted(result.status for result in results) == [RunStatus.COMPLETED, RunStatus.FAILED]
    assert model.sends == 3


async def test_deadline_of_zero_ends_the_run_before_its_first_node(office: Office, model: Script):
    result = await done(office, asking(model), {"items": ["a"]}, Limits(deadline_seconds=0))
    assert failure(result)[0] is ErrorType.TIMEOUT
    assert model.sends == 0


async def test_deadline_that_passes_in_the_queue_counts(office: Office, model: Script):
    async with office.open(worker=False) as runtime:
        run = await runtime.start(asking(model), {"items": ["a"]}, tenant="acme")
    await office.alter("update runs set deadline_at = deadline_at - interval '1 hour'")
    async with office.open(graphs=[asking(model)]) as runtime:
        result = await (await runtime.run(run.id, tenant="acme")).result(IN_TIME)
    assert failure(result)[0] is ErrorType.TIMEOUT
    assert model.sends == 0


async def test_deadline_stops_a_node_at_work_and_keeps_the_state(office: Office):
    async def first(state: Work) -> Work:
        return {"log": ["first"]}

    async def hang(state: Work) -> Work:
        await asyncio.Event().wait()
        return {}

    builder = StateGraph(Work).add_node("first", first).add_node("hang", hang)
    graph = govern(builder.add_edge(START, "first").add_edge("first", "hang").compile(), name="hanging")
    result = await done(office, graph, {"items": []}, Limits(deadline_seconds=1.0))
    assert failure(result) == (ErrorType.TIMEOUT, "hang")
    assert result.output == {"items": [], "log": ["first"]}


def patient() -> Any:
    def ask(state: Work) -> Work:
        return {"log": [interrupt("go on?")]}

    def after(state: Work) -> Work:
        return {"log": ["after"]}

    builder = StateGraph(Work).add_node("ask", ask).add_node("after", after)
    return govern(builder.add_edge(START, "ask").add_edge("ask", "after").compile(), name="patient")


async def test_clock_stands_still_while_a_person_is_asked_and_runs_on_afterwards(office: Office):
    async with office.open() as runtime:
        run = await runtime.start(patient(), {"items": []}, tenant="acme", limits=Limits(deadline_seconds=30))
        [question] = (await run.result(IN_TIME)).approvals
        parked = (await runtime.show(run.id, tenant="acme")).run.remaining_seconds
    await office.alter("update runs set created_at = created_at - interval '1 day', remaining_ms = remaining_ms - 9000")
    async with office.open(worker=False) as runtime:
        waiting = (await runtime.show(run.id, tenant="acme")).run.remaining_seconds
        assert parked is not None
        assert waiting == pytest.approx(parked - 9, abs=0.01)
        await runtime.decide(question.id, "respond", by="dana", value="yes")
        queued = (await runtime.show(run.id, tenant="acme")).run.remaining_seconds
        assert waiting - 5 < queued < waiting
    async with office.open(graphs=[patient()]) as runtime:
        result = await runtime.wait(run.id, tenant="acme", timeout=IN_TIME)
    assert (result.status, result.output["log"]) == (RunStatus.COMPLETED, ["yes", "after"])


async def test_steps_are_limited_over_resumes_and_a_task_that_runs_again_is_the_same_step(office: Office):
    for most, status in ((1, RunStatus.FAILED), (2, RunStatus.COMPLETED)):
        async with office.open() as runtime:
            run = await runtime.start(patient(), {"items": []}, tenant="acme", limits=Limits(max_steps=most))
            [question] = (await run.result(IN_TIME)).approvals
            await runtime.decide(question.id, "respond", by="dana", value="yes")
            result = await run.result(IN_TIME)
        assert (result.status, result.usage.steps) == (status, most)
        if status is RunStatus.FAILED:
            assert failure(result) == (ErrorType.BUDGET_EXCEEDED, "after")
            assert result.output["log"] == ["yes"]


@pytest.mark.parametrize("days", [30, -30])
async def test_jump_of_the_workers_wall_clock_changes_nothing(
    office: Office, model: Script, monkeypatch: pytest.MonkeyPatch, days: int
):
    now = time.time

    @tool(effect="external")
    async def act() -> str:
        """Act."""
        return "acted"

    async def jump(state: Work) -> Work:
        monkeypatch.setattr(time, "time", lambda: now() + days * 86_400)
        return {"log": ["jumped"]}

    async def work(state: Work, runtime: NodeRuntime[RunContext]) -> Work:
        reply = await runtime.context.models.call("work")
        result = await runtime.context.tools.call("act", {})
        assert 0 < runtime.context.deadline.remaining_seconds() < 60
        return {"log": [reply.content, result.text]}

    builder = StateGraph(Work, context_schema=RunContext).add_node("jump", jump).add_node("work", work)
    builder.add_edge(START, "jump").add_edge("jump", "work")
    graph = govern(builder.compile(), name="jumping", default_model=model.model, tools=[act])
    async with office.open() as runtime:
        run = await runtime.start(graph, {"items": []}, tenant="acme", limits=Limits(deadline_seconds=60))
        [question] = (await run.result(IN_TIME)).approvals
        await runtime.decide(question.id, "approve", by="dana")
        result = await run.result(IN_TIME)
        attempts = [event for event in await run.events() if event.kind is EventKind.RUN_CLAIMED]
    assert result.status is RunStatus.COMPLETED, (result.error, result.approvals)
    assert result.output["log"] == ["jumped", "done", "acted"]
    assert len(attempts) == 2


async def test_parallel_branches_share_one_budget(office: Office, model: Script):
    def fan(state: Work) -> list[Send]:
        return [Send("ask", {"items": [str(number)]}) for number in range(20)]

    async def ask(state: Work, runtime: NodeRuntime[RunContext]) -> Work:
        return {"log": [(await runtime.context.models.call(state["items"][0])).content]}

    builder = StateGraph(Work, context_schema=RunContext).add_node("ask", ask)
    graph = govern(builder.add_conditional_edges(START, fan, ["ask"]).compile(), name="wide", default_model=model.model)
    async with office.open() as runtime:
        run = await runtime.start(graph, {"items": []}, tenant="acme", limits=Limits(max_model_calls=7))
        result = await run.result(IN_TIME)
        report = await runtime.show(run.id, tenant="acme")
    assert failure(result) == (ErrorType.BUDGET_EXCEEDED, "ask")
    assert len(report.calls) <= 7
    assert model.sends <= 7
    assert result.usage.model_calls == len(report.calls)
    assert report.budget.reserved.model_calls == 0


async def test_state_may_begin_empty_but_an_input_schema_says_what_must_be_there(office: Office):
    class Order(TypedDict):
        items: list[str]

    def see(state: Work) -> Work:
        return {"log": [str(len(state.get("items", [])))]}

    def graph(name: str, **schemas: Any) -> Any:
        return govern(StateGraph(Work, **schemas).add_node("see", see).add_edge(START, "see").compile(), name=name)

    result = await done(office, graph("loose"), {})
    assert (result.status, result.output) == (RunStatus.COMPLETED, {"log": ["0"]})
    with pytest.raises(InvalidRequest, match="the input lacks items"):
        await done(office, graph("strict", input_schema=Order), {})


async def test_input_that_does_not_fit_is_refused_before_a_run_exists(office: Office, model: Script):
    async with office.open(max_input_bytes=1000) as runtime:
        graph = asking(model)
        for value, words in (
            ({"items": "one"}, "items"),
            ({"itmes": []}, "itmes"),
            ("text", "mapping"),
            ({"items": [object()]}, "items"),
        ):
            with pytest.raises(InvalidRequest, match=words):
                await runtime.start(graph, value, tenant="acme")
        with pytest.raises(TooLarge, match="limit is 1000"):
            await runtime.start(graph, {"items": ["x" * 2000]}, tenant="acme")
        with pytest.raises(NotFound, match="unknown"):
            await runtime.start(graph, {"items": []}, tenant="unknown")
        with pytest.raises(NotFound, match="nowhere"):
            await runtime.start("nowhere", {"items": []}, tenant="acme")
        assert not await runtime.runs(tenant="acme")


async def test_nobody_is_asked_about_a_call_that_the_budget_has_no_room_for(office):
    async with office.open(graphs=[drill.TRANSFERS]) as runtime:
        run = await runtime.start(drill.TRANSFERS, {"order": "A"}, tenant="acme", limits=Limits(max_tool_calls=0))
        result = await run.result()
        asked = await runtime.approvals(tenant="acme", pending_only=False)

    assert result.status is RunStatus.FAILED
    assert result.error is not None
    assert result.error.error_type is ErrorType.BUDGET_EXCEEDED
    assert list(asked) == []
