"""Nothing reopens a run. Where one failed or was cancelled, another goes on for it, with its journal and its spend."""

import operator
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from langgraph.types import interrupt
from offices import Office
from typing_extensions import TypedDict

from holdfast import Limits, RunContext, RunResult, RunStatus, ToolCall, govern, tool
from holdfast.contracts.approvals import ApprovalKind, ApprovalStatus
from holdfast.contracts.errors import (
    AuthError,
    BudgetExceeded,
    Conflict,
    ErrorType,
    HoldfastError,
    PermanentDependency,
    PolicyDenied,
    TimedOut,
)
from holdfast.contracts.events import EventKind
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.testing.scripted import Script, scripted

IN_TIME = 20.0


class State(TypedDict, total=False):
    order: str
    paid: str
    log: Annotated[list[str], operator.add]


class Shop:
    """A graph that plans, pays with a person's leave, and reports. What a payment or a node meets with is set."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.trouble: Callable[[], HoldfastError] | None = None
        """What a payment fails with, once it has arrived."""
        self.keys: list[str] = []
        """The keys of the payments that arrived."""
        self.graph = self._graph()

    def _graph(self) -> Any:
        @tool(effect="external")
        async def pay(order: str, *, call: ToolCall) -> dict[str, str]:
            """Pay an order."""
            self.keys.append(call.idempotency_key)
            if self.trouble is not None:
                raise self.trouble()
            return {"paid": order}

        async def plan(state: State, runtime: NodeRuntime[RunContext]) -> State:
            await runtime.context.models.call(f"plan {state['order']}")
            return {"log": ["plan"]}

        async def settle(state: State, runtime: NodeRuntime[RunContext]) -> State:
            result = await runtime.context.tools.call("pay", {"order": state["order"]})
            if result.status == "error":
                raise PermanentDependency(result.error_message or "it was not paid")
            return {"paid": result.text, "log": ["settle"]}

        async def report(state: State, runtime: NodeRuntime[RunContext]) -> State:
            reply = await runtime.context.models.call(f"report {state['paid']}")
            return {"log": [reply.content]}

        builder = StateGraph(State, context_schema=RunContext)
        builder.add_node("plan", plan).add_node("settle", settle).add_node("report", report)
        builder.add_edge(START, "plan").add_edge("plan", "settle").add_edge("settle", "report").add_edge("report", END)
        return govern(builder.compile(), name="shop", tools=[pay], default_model=self.script.model)

    async def asked(self, runtime: Runtime, **options: Any) -> RunHandle:
        """A run that waits for leave to pay."""
        run = await runtime.start(self.graph, {"order": "A"}, tenant="acme", thread="sale", **options)
        result = await run.result(IN_TIME)
        assert result.status is RunStatus.INTERRUPTED, result.error
        return run

    @staticmethod
    async def decided(runtime: Runtime, run: RunHandle, decision: Any = "approve") -> RunResult:
        [question] = (await run.result(IN_TIME)).approvals
        await runtime.decide(question.id, decision, by="dana")
        return await run.result(IN_TIME)


@pytest.fixture
def shop() -> Iterator[Shop]:
    answers = ["planned", AuthError("the key was refused"), "reported", "more", "and more"]
    with scripted("resumed", *answers) as script:
        yield Shop(script)


@pytest.fixture
def calm_shop() -> Iterator[Shop]:
    with scripted("calm", "planned", "reported") as script:
        yield Shop(script)


async def test_what_returned_stands_and_what_failed_for_good_is_tried_again(office: Office, shop: Shop):
    async with office.open() as runtime:
        run = await shop.asked(runtime)
        failed = await shop.decided(runtime, run)
        assert (failed.status, failed.error.error_type) == (RunStatus.FAILED, ErrorType.AUTH_ERROR)
        resumed = await runtime.resume(run.id, tenant="acme", by="olga")
        result = await resumed.result(IN_TIME)
        report = await runtime.show(resumed.id, tenant="acme")
        logs = [await runtime.events(each.id, tenant="acme") for each in (run, resumed)]
        history = await runtime.history("sale", tenant="acme", by="olga")
        before = await runtime.show(run.id, tenant="acme")
    assert (result.status, result.output["log"]) == (RunStatus.COMPLETED, ["plan", "settle", "reported"])
    assert (len(shop.keys), shop.script.sends) == (1, 3), "nothing that had an answer was sent again"
    assert (resumed.thread_id, resumed.thread) == (run.thread_id, run.thread)
    assert report.run.resumed_from == run.id
    assert (before.run.status, before.run.cause) == (RunStatus.FAILED, failed.error), "nothing reopens a run"
    told = [[e.payload for e in log if e.kind is EventKind.RUN_RESUMED] for log in logs]
    assert told == [[{"from": run.id, "to": resumed.id, "by": "olga"}]] * 2
    assert [entry.run_id for entry in history] == [resumed.id, *[run.id] * 4]
    assert [(call.identity.kind, call.sends, call.last_run_id) for call in report.calls] == [("model", 2, resumed.id)]


async def test_limits_hold_for_what_both_spend_together(office: Office, calm_shop: Shop):
    shop = calm_shop
    async with office.open() as runtime:
        run = await shop.asked(runtime, limits=Limits(max_model_calls=1))
        spent = await shop.decided(runtime, run)
        assert spent.error.error_type is ErrorType.BUDGET_EXCEEDED
        again = await (await runtime.resume(run.id, tenant="acme", by="olga")).result(IN_TIME)
        assert again.error.error_type is ErrorType.BUDGET_EXCEEDED, "a new run brings no new money"
        assert again.usage.model_calls == 1
        with pytest.raises(BudgetExceeded, match="more than the limit max_tool_calls"):
            await runtime.resume(again.run_id, tenant="acme", by="olga", limits=Limits(max_tool_calls=0))
        more = await runtime.resume(again.run_id, tenant="acme", by="olga", limits=Limits(max_model_calls=2))
        result = await more.result(IN_TIME)
        limits = (await runtime.show(more.id, tenant="acme")).run.limits
    assert result.status is RunStatus.COMPLETED, result.error
    assert (result.usage.model_calls, result.usage.tool_calls) == (2, 1), "what the runs before have spent is in it"
    assert (limits.max_model_calls, limits.max_tool_calls) == (2, Limits().max_tool_calls)


async def test_question_that_was_withdrawn_with_its_run_is_asked_anew(office: Office, calm_shop: Shop):
    async with office.open() as runtime:
        run = await calm_shop.asked(runtime)
        await run.cancel(by="dana", reason="not now")
        resumed = await runtime.resume(run.id, tenant="acme", by="olga")
        result = await calm_shop.decided(runtime, resumed)
        asked = await runtime.approvals(tenant="acme", pending_only=False)
    assert result.status is RunStatus.COMPLETED, result.error
    assert [(one.run_id, one.status) for one in asked] == [
        (run.id, ApprovalStatus.WITHDRAWN),
        (resumed.id, ApprovalStatus.APPROVED),
    ]
    assert len(calm_shop.keys) == 1


async def test_grant_that_the_ended_run_used_is_not_used_again(office: Office, calm_shop: Shop):
    shop = calm_shop
    shop.trouble = lambda: PermanentDependency("the bank is closed")
    async with office.open() as runtime:
        run = await shop.asked(runtime)
        failed = await shop.decided(runtime, run)
        assert failed.status is RunStatus.FAILED
        shop.trouble = None
        resumed = await runtime.resume(run.id, tenant="acme", by="olga")
        waiting = await resumed.result(IN_TIME)
        assert (waiting.status, len(shop.keys)) == (RunStatus.INTERRUPTED, 1)
        result = await shop.decided(runtime, resumed)
    assert result.status is RunStatus.COMPLETED, result.error
    assert (len(shop.keys), len(set(shop.keys))) == (2, 1), "it is the same call, with the same key"


async def test_unknown_outcome_of_the_ended_run_is_found_out_before_anything_is_sent(office: Office, calm_shop: Shop):
    shop = calm_shop
    shop.trouble = lambda: TimedOut("the bank did not answer", sent=True)
    async with office.open() as runtime:
        run = await shop.asked(runtime)
        in_doubt = await shop.decided(runtime, run)
        assert in_doubt.approvals[0].kind is ApprovalKind.RECONCILE
        await run.cancel(by="dana")
        shop.trouble = None
        resumed = await runtime.resume(run.id, tenant="acme", by="olga")
        [question] = (await resumed.result(IN_TIME)).approvals
        assert (question.kind, len(shop.keys)) == (ApprovalKind.RECONCILE, 1)
        await runtime.decide(question.id, "approve", by="dana")
        result = await resumed.result(IN_TIME)
    assert result.status is RunStatus.COMPLETED, result.error
    assert (len(shop.keys), len(set(shop.keys))) == (2, 1)


async def test_call_that_was_given_up_without_anyone_knowing_is_not_sent_again(office: Office, calm_shop: Shop):
    shop = calm_shop
    shop.trouble = lambda: TimedOut("the bank did not answer", sent=True)
    async with office.open() as runtime:
        run = await shop.asked(runtime)
        await shop.decided(runtime, run)
        given_up = await shop.decided(runtime, run, "reject")
        assert given_up.status is RunStatus.FAILED
        shop.trouble = None
        result = await (await runtime.resume(run.id, tenant="acme", by="olga")).result(IN_TIME)
    assert result.status is RunStatus.FAILED
    assert len(shop.keys) == 1


async def test_run_that_ended_before_its_first_checkpoint_is_resumed_with_its_input(office: Office, calm_shop: Shop):
    async with office.open(worker=False) as runtime:
        run = await runtime.start(calm_shop.graph, {"order": "A"}, tenant="acme", thread="sale")
        await run.cancel(by="dana")
        once = await runtime.resume(run.id, tenant="acme", by="olga")
        await once.cancel(by="dana")
    async with office.open(graphs=[calm_shop.graph]) as runtime:
        twice = await runtime.resume(once.run_id, tenant="acme", by="olga")
        result = await calm_shop.decided(runtime, twice)
    assert (result.status, result.output["log"]) == (RunStatus.COMPLETED, ["plan", "settle", "reported"])


async def test_only_the_last_run_of_a_thread_that_failed_or_was_cancelled_is_resumed(office: Office, calm_shop: Shop):
    async with office.open() as runtime:
        run = await calm_shop.asked(runtime)
        with pytest.raises(Conflict, match="is interrupted, so it cannot be resumed yet"):
            await runtime.resume(run.id, tenant="acme", by="olga")
        await run.cancel(by="dana")
        with pytest.raises(PolicyDenied, match="role admin or operator"):
            await runtime.resume(run.id, tenant="acme", by="dana")
        resumed = await runtime.resume(run.id, tenant="acme", by="olga")
        with pytest.raises(Conflict, match=f"was followed by run {resumed.id}"):
            await runtime.resume(run.id, tenant="acme", by="olga")
        result = await calm_shop.decided(runtime, resumed)
        assert result.status is RunStatus.COMPLETED
        with pytest.raises(Conflict, match="completed, so nothing is left to resume"):
            await runtime.resume(resumed.id, tenant="acme", by="olga")


class Duet(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


async def test_answer_to_the_ended_run_is_the_resumed_ones_too(office: Office):
    broken = True

    async def ask(state: Duet) -> Duet:
        return {"log": [f"answered {interrupt('which?')}"]}

    async def tell(state: Duet) -> Duet:
        if broken:
            raise PermanentDependency("it is broken")
        return {"log": ["told"]}

    builder = (
        StateGraph(Duet).add_node("ask", ask).add_node("tell", tell).add_edge(START, "ask").add_edge("ask", "tell")
    )
    graph = govern(builder.compile(), name="duet")
    async with office.open(graphs=[graph]) as runtime:
        run = await runtime.start("duet", {"log": []}, tenant="acme")
        [question] = (await run.result(IN_TIME)).approvals
        await runtime.decide(question.id, "respond", value="this", by="dana")
        assert (await run.result(IN_TIME)).status is RunStatus.FAILED
        broken = False
        result = await (await runtime.resume(run.id, tenant="acme", by="olga")).result(IN_TIME)
    assert (result.status, result.output["log"]) == (RunStatus.COMPLETED, ["answered this", "told"])


async def test_answer_that_the_ended_run_never_got_reaches_the_one_that_goes_on(office: Office, calm_shop: Shop):
    async def ask(state: Duet) -> Duet:
        return {"log": [f"answered {interrupt('which?')}"]}

    graph = govern(StateGraph(Duet).add_node("ask", ask).add_edge(START, "ask").compile(), name="asks")
    async with office.open(graphs=[graph]) as runtime:
        run = await runtime.start("asks", {"log": []}, tenant="acme")
        [question] = (await run.result(IN_TIME)).approvals
        sale = await calm_shop.asked(runtime)
        [leave] = (await sale.result(IN_TIME)).approvals
    async with office.open(worker=False, graphs=[graph, calm_shop.graph]) as runtime:
        await runtime.decide(question.id, "respond", value="this", by="dana")
        await runtime.decide(leave.id, "approve", by="dana")
        ended = [await runtime.cancel(each.id, tenant="acme", by="dana") for each in (run, sale)]
        assert [each.status for each in ended] == [RunStatus.CANCELLED] * 2
        resumed = [await runtime.resume(each.run_id, tenant="acme", by="olga") for each in ended]
    async with office.open(graphs=[graph, calm_shop.graph]) as runtime:
        results = [await (await runtime.run(each.id, tenant="acme")).result(IN_TIME) for each in resumed]
    assert [result.status for result in results] == [RunStatus.COMPLETED] * 2
    assert results[0].output["log"] == ["answered this"]
    assert len(calm_shop.keys) == 1, "leave was given to this very call, and had not been used"


async def test_leave_at_a_breakpoint_is_each_runs_own(office: Office):
    async def say(state: Duet) -> Duet:
        return {"log": ["said"]}

    builder = StateGraph(Duet).add_node("say", say).add_edge(START, "say")
    graph = govern(builder.compile(interrupt_before=["say"]), name="careful")
    async with office.open(graphs=[graph]) as runtime:
        run = await runtime.start("careful", {"log": []}, tenant="acme")
        [question] = (await run.result(IN_TIME)).approvals
        await runtime.decide(question.id, "reject", by="dana")
        assert (await run.result(IN_TIME)).status is RunStatus.CANCELLED
        second = await runtime.resume(run.id, tenant="acme", by="olga")
        [question] = (await second.result(IN_TIME)).approvals
        await second.cancel(by="dana")
        third = await runtime.resume(second.id, tenant="acme", by="olga")
        [question] = (await third.result(IN_TIME)).approvals
        await runtime.decide(question.id, "approve", by="dana")
        result = await third.result(IN_TIME)
    assert (result.status, result.output["log"]) == (RunStatus.COMPLETED, ["said"])
