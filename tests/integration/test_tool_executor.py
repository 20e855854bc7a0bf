"""The tool executor over the memory store: real journal, ledger, events, inbox and policies; the tools are small."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import BaseTool
from langchain_core.tools import tool as langchain_tool
from langgraph.errors import GraphInterrupt
from lapsing import lapsing_at_the_door
from stores import postgres_store

from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalRequest, ApprovalStatus, Question
from holdfast.contracts.calls import CallRecord
from holdfast.contracts.deadline import Clock, Deadline
from holdfast.contracts.errors import (
    BudgetExceeded,
    ErrorType,
    LeaseLost,
    NotGoverned,
    PermanentDependency,
    RateLimited,
    TransientDependency,
)
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.limits import Limits
from holdfast.contracts.ports import Dice, Store
from holdfast.contracts.scope import Scope
from holdfast.contracts.tenancy import Principal, TenantContext
from holdfast.contracts.tools import Effect, ToolRequest, ToolResult
from holdfast.contracts.verdicts import Autonomy
from holdfast.gateway.tools import ToolExecutor
from holdfast.gateway.toolset import GovernedTool, ToolCall, Toolset, tool
from holdfast.policies.permissions import CedarPolicy, default_text
from holdfast.policies.retry import RetryTerms
from holdfast.policies.rulings import granted_digest, recorded_decision, ruling_of
from holdfast.runtime.clock import SystemClock
from holdfast.runtime.entropy import SystemIds
from holdfast.testing.clock import FixedDice, VirtualClock
from holdfast.testing.memory import MemoryStore
from holdfast.testing.scopes import rerun, scope_for

DANA = Principal(user_id="dana", tenants=("acme",), roles=("approver",))
QUICK = RetryTerms(attempts=3, base_seconds=0.001, cap_seconds=0.002)
PAY = {"order_id": "A-1", "amount_usd": "12.00"}


class Killed(GeneratorExit):
    """Ends the process, as far as the code above it is concerned: nothing catches it, nothing is written after it."""


@dataclass
class Sent:
    """What reached the outside world, in order; `answers` are what it does at each send: return, raise, or run."""

    answers: list[Any] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def arrive(self, key: str, args: dict[str, Any]) -> Any:
        self.calls.append((key, args))
        self.arrived.set()
        answer = self.answers.pop(0) if self.answers else {"done": len(self.calls)}
        if callable(answer):
            answer = await answer()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def tool(self, **terms: Any) -> GovernedTool:
        @tool(name="pay", **terms)
        async def pay(order_id: str, amount_usd: str = "5.00", *, call: ToolCall) -> Any:
            """Pay an order back."""
            return await self.arrive(call.idempotency_key, {"order_id": order_id, "amount_usd": amount_usd})

        return pay


@dataclass
class Desk:
    """An executor, what stands behind it, and the scope in front of it."""

    store: Store
    scope: Scope
    tools: Toolset
    executor: ToolExecutor

    def request(self, args: dict[str, Any] | None = None, name: str = "pay", **changes: Any) -> ToolRequest:
        standard = {
            "run_id": self.scope.run.run_id,
            "tool_call_id": "call-1",
            "tool_name": name,
            "input": dict(PAY if args is None else args),
            "deadline": self.scope.deadline,
        }
        return ToolRequest(**(standard | changes))

    async def call(
        self,
        args: dict[str, Any] | None = None,
        name: str = "pay",
        *,
        scope: Scope | None = None,
        **changes: Any,
    ) -> ToolResult | Question:
        """One call as a node makes it, answered from the inbox where somebody has decided."""
        scope = scope or self.scope
        request = self.request(args, name, **changes)
        identity = self.executor.identify(request, scope=scope)
        asked = await self.store.approvals.find(scope.owner.tenant_id, pending_only=False)
        mine = [approval for approval in asked if approval.identity_key == identity.key]
        approval = mine[-1] if mine else None
        answer = await self.executor.perform(request, identity, scope=scope, toolset=self.tools, approval=approval)
        if isinstance(answer, Question):
            await self.ask(answer, identity.key)
        return answer

    async def again(self, args: dict[str, Any] | None = None, name: str = "pay") -> ToolResult | Question:
        """The same call when the node is run again from its first line."""
        return await self.call(args, name, scope=rerun(self.scope))

    async def ask(self, question: Question, key: str) -> Approval:
        about = question.model_dump(include={"kind", "allowed", "args", "args_digest", "policy_version", "call_id"})
        request = ApprovalRequest(
            **about,
            interrupt_id=SystemIds().new(),
            node="work",
            task_id="task-1",
            payload={"action_requests": [{"name": question.tool_name, "args": question.args}]},
            tool_name=question.tool_name,
            rule=question.rule,
            identity_key=key,
        )
        return await self.store.approvals.ask(
            self.scope.owner, request, event=EventDraft(kind=EventKind.APPROVAL_ASKED)
        )

    async def decide(self, decision: Any, **how: Any) -> Approval:
        [approval] = await self.store.approvals.find("acme", run_id=self.scope.run.run_id)
        facts = {"args": None, "message": None, "value": None} | how
        ruling = ruling_of(decision, **facts)
        return await self.store.approvals.decide(
            DANA,
            "acme",
            approval.id,
            ruling,
            decision=recorded_decision(approval, ruling),
            granted_digest=granted_digest(approval, ruling),
            event=EventDraft(kind=EventKind.APPROVAL_DECIDED),
        )

    async def records(self) -> list[CallRecord]:
        return list(await self.store.journal.of_run("acme", self.scope.run.run_id))

    async def record(self) -> CallRecord:
        [record] = await self.records()
        return record

    async def events(self) -> list[str]:
        """The kinds of events since the run began, those that nobody waited for included."""
        await self.store.events.append(self.scope.owner, [])
        events = await self.store.events.read("acme", self.scope.run.run_id)
        return [event.kind.value for event in events if not event.kind.startswith("run.")]

    async def tool_calls_spent(self) -> int:
        return (await self.store.ledger.state("acme", self.scope.budgets[0])).spent.tool_calls


MakeDesk = Callable[..., Any]


@pytest.fixture(params=["memory", "postgres"])
def desk(request) -> MakeDesk:
    """Makes a desk over each store."""
    clock = SystemClock()
    if request.param == "memory":
        return desk_over(MemoryStore(clock=clock), clock)
    return desk_over(postgres_store(request.getfixturevalue("database")), clock)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def timed_desk(clock) -> MakeDesk:
    """Makes a desk whose time is `clock`'s."""
    return desk_over(MemoryStore(clock=clock), clock)


def desk_over(store: Store, clock: Clock) -> MakeDesk:
    async def make(*tools: Any, **about: Any) -> Desk:
        standard = {"autonomy": Autonomy.AUTONOMOUS}
        scope = await scope_for(store, clock=clock, **(standard | about))
        return Desk(store=store, scope=scope, tools=Toolset.of(tools), executor=executor(store))

    return make


def executor(store: Store, *policies: str, dice: Dice | None = None) -> ToolExecutor:
    return ToolExecutor(
        journal=store.journal,
        ledger=store.ledger,
        events=store.events,
        policy=CedarPolicy([default_text(), *policies]),
        ids=SystemIds(),
        dice=dice or FixedDice(),
        retry=QUICK,
        grace_seconds=0.01,
    )


async def forever() -> Any:
    await asyncio.Event().wait()


def effect(name: str) -> dict[str, Any]:
    """Terms by the way of repeating: what only reads, what may be repeated, what may not."""
    return {
        "read": {"effect": "read"},
        "idempotent": {"effect": "external", "idempotent": True},
        "once": {"effect": "external"},
    }[name]


# A call that is made


async def test_a_call_is_recorded_before_and_after_and_the_tool_is_told_its_key(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="external"))
    result = await d.call()
    record = await d.record()
    assert (result.status, result.output, result.replayed) == ("ok", {"done": 1}, False)
    assert sent.calls == [(record.identity.key, PAY)]
    assert (record.status, record.request["input"], record.effect) == ("returned", PAY, Effect.EXTERNAL)
    assert await d.events() == ["tool.intended", "tool.returned"]
    assert await d.tool_calls_spent() == 1


@pytest.mark.parametrize("terms", ["read", "idempotent", "once"])
async def test_a_node_that_runs_again_is_answered_from_the_journal(desk, terms):
    sent = Sent()
    d = await desk(sent.tool(**effect(terms)))
    first, second = await d.call(), await d.again()
    assert (second.output, second.replayed) == (first.output, True)
    assert len(sent.calls) == 1
    assert await d.tool_calls_spent() == 1
    assert (await d.events())[-1] == "tool.replayed"


async def test_the_same_call_made_twice_in_a_node_is_two_calls_with_two_keys(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="write"))
    await d.call()
    await d.call()
    assert len({key for key, _ in sent.calls}) == 2


async def test_a_recorded_call_is_replayed_whatever_policy_says_now(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="external"))
    await d.call()
    d.scope.autonomy = Autonomy.OBSERVE
    assert (await d.again()).replayed
    examined = rerun(d.scope)
    identity = d.executor.identify(d.request(), scope=examined)
    assert await d.executor.examine(d.request(), identity, scope=examined, toolset=d.tools) is None


# A call that is refused


@pytest.mark.parametrize(
    ("about", "name", "args", "error_type", "told"),
    [
        ({}, "fly", {}, ErrorType.VALIDATION_ERROR, "the tools here are: pay"),
        ({}, "pay", {"order_id": 7}, ErrorType.VALIDATION_ERROR, "argument 'order_id' of pay"),
        ({}, "pay", {"order_id": "A\x00"}, ErrorType.VALIDATION_ERROR, "NUL"),
        ({}, "pay", {"order_id": "A", "to": "me"}, ErrorType.VALIDATION_ERROR, "'to' was unexpected"),
        ({"autonomy": Autonomy.OBSERVE}, "pay", PAY, ErrorType.POLICY_DENIED, "may only observe"),
        ({"tenant": TenantContext(tenant_id="acme", user_id="eve")}, "pay", PAY, ErrorType.POLICY_DENIED, "payments"),
    ],
)
async def test_a_refusal_is_typed_recorded_and_told_so_that_a_model_can_act(desk, about, name, args, error_type, told):
    sent = Sent()
    standard = {"tenant": TenantContext(tenant_id="acme", user_id="dana", data_scopes=("payments",))}
    d = await desk(sent.tool(effect="external", permissions=("payments",)), **(standard | about))
    result = await d.call(args, name)
    assert (result.status, result.error_type) == ("error", error_type)
    assert told in result.text
    assert (sent.calls, await d.records(), await d.events()) == ([], [], ["tool.refused"])


async def test_after_the_deadline_nothing_is_sent(timed_desk, clock):
    sent = Sent()
    d = await timed_desk(sent.tool(effect="read"), limits=Limits(deadline_seconds=10))
    clock.advance(10)
    result = await d.call()
    assert (result.status, result.error_type) == ("error", ErrorType.TIMEOUT)
    assert (sent.calls, await d.events()) == ([], ["tool.refused"])


async def test_the_requests_own_deadline_holds_too(timed_desk, clock):
    sent = Sent()
    d = await timed_desk(sent.tool(effect="read"))
    early = Deadline.after_seconds(1, clock=clock)
    clock.advance(1)
    assert (await d.call(deadline=early)).error_type == ErrorType.TIMEOUT


async def test_a_call_after_its_node_ended_is_refused(desk):
    d = await desk(Sent().tool(effect="read"))
    d.scope.closed = True
    with pytest.raises(NotGoverned, match="had ended"):
        await d.call()


async def test_a_call_for_another_run_is_refused(desk):
    d = await desk(Sent().tool(effect="read"))
    with pytest.raises(NotGoverned, match="inside run"):
        await d.call(run_id=SystemIds().new())


async def test_a_worker_that_lost_its_lease_sends_nothing_and_leaves_no_trace(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="external"), still_ours=lambda: False)
    with pytest.raises(LeaseLost):
        await d.call()
    assert (sent.calls, await d.records()) == ([], [])


def bodies(done: list[str]) -> dict[str, Any]:
    """Tools whose body begins in a task or in a thread of its own, some time after the executor has let it go."""

    @tool(name="pay", effect="external")
    async def ours(order_id: str, amount_usd: str) -> None:
        """Pay an order back."""
        done.append(order_id)

    @tool(name="pay", effect="external")
    def ours_in_a_thread(order_id: str, amount_usd: str) -> None:
        """Pay an order back."""
        done.append(order_id)

    @langchain_tool("pay")
    def langchains(order_id: str, amount_usd: str) -> None:
        """Pay an order back."""
        done.append(order_id)

    class Own(BaseTool):
        name: str = "pay"
        description: str = "Pay an order back."

        def _run(self, order_id: str, amount_usd: str) -> None:
            done.append(order_id)

    class OwnOnTheLoop(Own):
        async def _arun(self, order_id: str, amount_usd: str) -> None:
            done.append(order_id)

    return {
        "ours": ours,
        "ours in a thread": ours_in_a_thread,
        "LangChain's": langchains,
        "a class": Own(),
        "a class on the loop": OwnOnTheLoop(),
    }


@pytest.mark.parametrize("body", bodies([]))
async def test_a_body_that_begins_after_the_lease_has_run_out_does_nothing_and_leaves_the_intent_to_the_next(
    desk, body
):
    done: list[str] = []
    d = await desk(bodies(done)[body])
    with lapsing_at_the_door() as d.scope.still_ours, pytest.raises(LeaseLost):
        await d.call()
    assert done == []
    [record] = await d.records()
    assert (record.status, record.error_type) == ("open", None)
    await d.call({**PAY, "order_id": "A-2"}, scope=replace(d.scope, still_ours=lambda: True))
    assert done == ["A-2"], "with its lease it acts"


@pytest.mark.parametrize("ended", [{"closed": True}, {"still_ours": lambda: False}])
async def test_a_retry_is_not_sent_after_the_node_or_the_lease_ended(desk, ended):
    async def busy() -> RateLimited:
        for name, value in ended.items():
            setattr(d.scope, name, value)
        return RateLimited("later")

    sent = Sent([busy])
    d = await desk(sent.tool(effect="read"))
    with pytest.raises((NotGoverned, LeaseLost)):
        await d.call()
    assert len(sent.calls) == 1


# Budget


async def test_calls_in_parallel_never_pass_the_limit_of_tool_calls(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="write"), limits=Limits(max_tool_calls=3))
    answers = await asyncio.gather(*(d.call() for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(answer, ToolResult) for answer in answers) == 3
    assert sum(isinstance(answer, BudgetExceeded) for answer in answers) == 5
    assert len(sent.calls) == await d.tool_calls_spent() == 3
    assert (await d.events()).count("budget.refused") == 5


async def test_a_budget_that_is_refused_inside_a_tool_ends_the_node(desk):
    d = await desk(Sent([BudgetExceeded("the specialist's tokens are used up")]).tool(effect="write"))
    with pytest.raises(BudgetExceeded):
        await d.call()
    assert (await d.record()).error_type == ErrorType.BUDGET_EXCEEDED


# A person's approval


async def test_a_question_shows_everything_that_will_be_used_and_nothing_is_sent(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED)
    question = await d.call({"order_id": "A-1"})
    assert isinstance(question, Question)
    assert (question.kind, question.rule) == (ApprovalKind.TOOL, "external")
    assert question.args == {"order_id": "A-1", "amount_usd": "5.00"}
    assert (sent.calls, await d.records()) == ([], [])


async def test_examine_asks_the_same_question(desk):
    d = await desk(Sent().tool(effect="external"), autonomy=Autonomy.SUPERVISED)
    identity = d.executor.identify(d.request(), scope=d.scope)
    examined = await d.executor.examine(d.request(), identity, scope=d.scope, toolset=d.tools)
    assert examined == await d.again()


@pytest.mark.parametrize("args", [PAY, {"order_id": "A-1"}])
async def test_what_was_approved_is_sent_once_and_answered_from_the_journal_afterwards(desk, args):
    sent = Sent()
    d = await desk(sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED)
    await d.call(args)
    approval = await d.decide("approve")
    result, replay = await d.again(args), await d.again(args)
    assert (result.status, replay.replayed, len(sent.calls)) == ("ok", True, 1)
    assert (await d.store.approvals.get("acme", approval.id)).used_at is not None
    assert "approval.used" in await d.events()


async def test_an_edited_call_is_sent_with_the_edited_arguments(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED)
    await d.call()
    await d.decide("edit", args={"order_id": "A-2"})
    assert (await d.again()).status == "ok"
    assert [args for _, args in sent.calls] == [{"order_id": "A-2", "amount_usd": "5.00"}]
    assert (await d.record()).request["input"]["order_id"] == "A-2"


async def test_edited_arguments_are_checked_like_any_others(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED)
    await d.call()
    await d.decide("edit", args={"order": "A-2"})
    assert (await d.again()).error_type == ErrorType.VALIDATION_ERROR
    assert sent.calls == []


@pytest.mark.parametrize(
    ("decision", "how", "told"),
    [
        ("reject", {"message": "too much"}, "human_required: pay was not called. too much"),
        ("respond", {"message": "paid by hand"}, "paid by hand"),
        ("respond", {"value": {"refund": "R-9"}}, '{"refund":"R-9"}'),
    ],
)
async def test_a_no_or_an_answer_in_the_tools_place_is_told_and_nothing_is_sent(desk, decision, how, told):
    sent = Sent()
    d = await desk(sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED)
    await d.call()
    await d.decide(decision, **how)
    result = await d.again()
    assert (result.status, result.text, sent.calls) == ("rejected", told, [])


async def test_an_approval_nobody_gave_in_time_is_a_no(timed_desk, clock):
    sent = Sent()
    d = await timed_desk(
        sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED, limits=Limits(deadline_seconds=1e6)
    )
    await d.call()
    clock.advance(604_800)
    await d.store.approvals.expire(principal=Principal(user_id="worker", tenants=None))
    result = await d.again()
    assert (result.status, sent.calls) == ("rejected", [])
    assert "Nobody decided in time" in result.text


async def test_a_grant_that_has_expired_is_refused_at_dispatch(timed_desk, clock):
    sent = Sent()
    d = await timed_desk(
        sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED, limits=Limits(deadline_seconds=1e6)
    )
    await d.call()
    await d.decide("approve")
    clock.advance(604_801)
    result = await d.again()
    assert (result.error_type, sent.calls) == (ErrorType.POLICY_DENIED, [])


async def test_a_denial_since_the_approval_wins(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED)
    await d.call()
    await d.decide("approve")
    d.scope.autonomy = Autonomy.OBSERVE
    assert (await d.again()).error_type == ErrorType.POLICY_DENIED
    assert sent.calls == []


async def test_an_approval_under_another_policy_is_none_and_the_question_is_asked_again(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED)
    first = await d.call()
    await d.decide("approve")
    d.executor = executor(d.store, '@id("other") permit (principal, action == Action::"call_model", resource);')
    second = await d.again()
    assert isinstance(second, Question)
    assert second.args_digest != first.args_digest
    assert sent.calls == []


async def test_the_approval_of_one_call_is_no_grant_for_another(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED)
    await d.call()
    approval = await d.decide("approve")
    request = d.request()  # the same arguments, asked for once more in the same node
    twin = d.executor.identify(request, scope=d.scope)
    result = await d.executor.perform(request, twin, scope=d.scope, toolset=d.tools, approval=approval)
    assert (result.error_type, sent.calls) == (ErrorType.POLICY_DENIED, [])


async def test_an_approval_of_other_arguments_is_none(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED)
    await d.call()
    approval = await d.decide("approve")
    request = d.request({"order_id": "A-1", "amount_usd": "999.00"})
    identity = d.executor.identify(request, scope=d.scope)
    answer = await d.executor.perform(request, identity, scope=d.scope, toolset=d.tools, approval=approval)
    assert isinstance(answer, Question)
    assert sent.calls == []


async def test_before_the_irreversible_a_person_is_shown_what_would_happen(desk):
    async def preview(order_id: str, amount_usd: str) -> str:
        return f"{amount_usd} dollars leave the account for {order_id}"

    d = await desk(Sent().tool(effect="destructive", preview=preview))
    question = await d.call()
    assert question.preview == "12.00 dollars leave the account for A-1"


async def test_a_preview_that_fails_says_so_and_the_question_is_asked_all_the_same(desk):
    def preview(**args: Any) -> str:
        raise ValueError("no such order")

    question = await (await desk(Sent().tool(effect="destructive", preview=preview))).call()
    assert question.preview == "(no preview: ValueError: no such order)"


async def test_while_nobody_has_decided_the_question_stands(desk):
    sent = Sent()
    d = await desk(sent.tool(effect="external"), autonomy=Autonomy.SUPERVISED)
    assert await d.call() == await d.again()
    assert sent.calls == []


# A call that fails


@pytest.mark.parametrize("terms", ["read", "idempotent", "once"])
async def test_an_exception_of_the_tool_is_a_recorded_failure_that_is_told_and_replayed(desk, terms):
    sent = Sent([KeyError("A-1")])
    d = await desk(sent.tool(**effect(terms)))
    first, second = await d.call(), await d.again()
    assert (first.status, first.error_type) == ("error", ErrorType.PERMANENT_DEPENDENCY)
    assert (second.error_message, second.replayed, len(sent.calls)) == (first.error_message, True, 1)
    assert first.error_message == "KeyError: 'A-1'"
    assert (await d.record()).error_facts["exception"] == "builtins.KeyError"
    assert await d.events() == ["tool.intended", "tool.failed", "tool.replayed"]


@pytest.mark.parametrize(
    ("terms", "error"),
    [
        ("read", ConnectionError("reset")),
        ("idempotent", ConnectionError("reset")),
        ("idempotent", TimeoutError()),
        ("once", RateLimited("later", retry_after_seconds=0.001)),
        ("once", TransientDependency("the desk is closed; nothing was done")),
    ],
)
async def test_what_may_be_repeated_is_sent_again_with_the_same_key(desk, terms, error):
    sent = Sent([error])
    d = await desk(sent.tool(**effect(terms)))
    assert (await d.call()).status == "ok"
    assert len(sent.calls) == 2
    assert len({key for key, _ in sent.calls}) == 1
    assert await d.events() == ["tool.intended", "tool.retried", "tool.returned"]
    assert await d.tool_calls_spent() == 2


async def test_retries_are_bounded_and_a_later_attempt_may_try_afresh(desk):
    sent = Sent([RateLimited("later")] * 3)
    d = await desk(sent.tool(effect="external"))
    assert (await d.call()).error_type == ErrorType.RATE_LIMITED
    assert len(sent.calls) == 3
    assert (await d.again()).status == "ok"


async def test_a_pause_beyond_the_deadline_is_not_waited_for(desk):
    sent = Sent([RateLimited("tomorrow", retry_after_seconds=86_400)])
    d = await desk(sent.tool(effect="read"))
    assert (await d.call()).error_type == ErrorType.RATE_LIMITED
    assert len(sent.calls) == 1


class WaitingDice(FixedDice):
    """Says when a pause is about to begin."""

    def __init__(self) -> None:
        super().__init__()
        self.thrown = asyncio.Event()

    def fraction(self) -> float:
        self.thrown.set()
        return super().fraction()


async def test_a_call_that_is_cancelled_between_two_sends_is_not_in_doubt(desk):
    sent, dice = Sent([RateLimited("later", retry_after_seconds=60)]), WaitingDice()
    d = await desk(sent.tool(effect="external"))
    d.executor = executor(d.store, dice=dice)
    task = asyncio.create_task(d.call())
    await dice.thrown.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await d.record()).status == "failed"
    assert (await d.again()).status == "ok"


async def test_a_retry_that_the_budget_has_no_room_for_ends_the_node(desk):
    sent = Sent([RateLimited("later")])
    d = await desk(sent.tool(effect="read"), limits=Limits(max_tool_calls=1))
    with pytest.raises(BudgetExceeded):
        await d.call()
    assert len(sent.calls) == 1


async def test_a_tool_that_does_not_answer_in_time_is_given_up(desk):
    d = await desk(Sent([forever] * 3).tool(effect="read", timeout_seconds=0.01))
    result = await d.call()
    assert result.error_type == ErrorType.TIMEOUT
    assert "did not answer within 0.01 s" in result.text


async def test_a_tool_may_not_outlast_the_deadline(timed_desk):
    d = await timed_desk(Sent([forever]).tool(effect="read", timeout_seconds=60), limits=Limits(deadline_seconds=0.05))
    result = await d.call()
    assert result.error_type == ErrorType.TIMEOUT
    assert "the run's deadline passed" in result.text


@pytest.mark.parametrize(
    ("answer", "told"), [("x" * 5000, "has 5013 bytes, more than its limit of 2000"), (object(), "not JSON")]
)
async def test_an_answer_that_does_not_fit_is_the_failure_of_a_tool_that_only_reads(desk, answer, told):
    result = await (await desk(Sent([answer]).tool(effect="read", max_result_bytes=2000))).call()
    assert (result.status, result.error_type) == ("error", ErrorType.VALIDATION_ERROR)
    assert told in result.text


@pytest.mark.parametrize("answer", ['"\\\n' * 5000, object()])
async def test_an_answer_that_does_not_fit_never_hides_that_the_effect_happened(desk, answer):
    d = await desk(Sent([answer]).tool(effect="external", max_result_bytes=2000))
    result = await d.call()
    assert (result.status, (await d.record()).status) == ("ok", "returned")
    assert "did its work" in result.output["note"]
    assert len(result.text) <= 2000


# A call whose answer was lost


@pytest.mark.parametrize("lost", [ConnectionError("reset"), TimeoutError(), forever])
async def test_an_effect_whose_answer_was_lost_is_put_before_a_person_and_never_just_repeated(desk, lost):
    sent = Sent([lost])
    d = await desk(sent.tool(effect="external", timeout_seconds=0.05))
    question, again = await d.call(), await d.again()
    record = await d.record()
    assert (question.kind, question.call_id, question.args) == (ApprovalKind.RECONCILE, record.call_id, PAY)
    assert question.args_digest == again.args_digest
    assert (record.status, len(sent.calls)) == ("unknown", 1)
    assert await d.events() == ["tool.intended", "call.unknown", "approval.asked", "approval.asked"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A store of somebody else's, which keeps one payment per idempotency key."""
    with closing(sqlite3.connect(tmp_path / "payments.db")) as payments, payments:
        payments.execute("create table payments (key text primary key, order_id text)")
    return tmp_path / "payments.db"


def count(outside: Path) -> int:
    with closing(sqlite3.connect(outside)) as payments:
        return int(payments.execute("select count(*) from payments").fetchone()[0])


def paying(outside: Path, answers: list[Any], **terms: Any) -> GovernedTool:
    """A tool whose effect is committed outside before it answers; `answers` are what happens after that."""

    @tool(name="pay", effect="external", **terms)
    async def pay(order_id: str, amount_usd: str, *, call: ToolCall) -> dict[str, Any]:
        """Pay an order back."""
        with closing(sqlite3.connect(outside)) as payments, payments:
            payments.execute("insert or ignore into payments values (?, ?)", (call.idempotency_key, order_id))
        if answers:
            raise answers.pop(0)
        return {"paid": order_id}

    return pay


async def test_an_effect_committed_outside_before_the_process_died_is_sent_again_with_its_key_and_happens_once(
    desk, outside
):
    d = await desk(paying(outside, [Killed()], idempotent=True))
    with pytest.raises(Killed):
        await d.call()
    assert ((await d.record()).status, count(outside)) == ("open", 1)
    assert (await d.again()).output == {"paid": "A-1"}
    assert ((await d.record()).sends, count(outside)) == (2, 1)
    assert await d.events() == ["tool.intended", "tool.retried", "tool.returned"]


def looking(outside: Path) -> Callable[[str], Any]:
    def reconcile(key: str) -> dict[str, Any] | None:
        with closing(sqlite3.connect(outside)) as payments:
            row = payments.execute("select order_id from payments where key = ?", (key,)).fetchone()
        return None if row is None else {"paid": row[0], "looked_up": True}

    return reconcile


async def test_a_lost_answer_is_looked_up_and_what_was_done_is_not_done_again(desk, outside):
    d = await desk(paying(outside, [Killed()], reconcile=looking(outside)))
    with pytest.raises(Killed):
        await d.call()
    result = await d.again()
    assert (result.output, count(outside)) == ({"paid": "A-1", "looked_up": True}, 1)
    assert ((await d.record()).sends, (await d.events())[-1]) == (1, "call.reconciled")


async def test_what_was_not_done_is_sent_only_once_it_can_no_longer_arrive_late(desk):
    asked: list[str] = []
    sent = Sent([Killed()])

    async def reconcile(key: str) -> None:
        asked.append(key)

    d = await desk(sent.tool(effect="external", timeout_seconds=0.5, reconcile=reconcile))
    with pytest.raises(Killed):
        await d.call()
    started = asyncio.get_running_loop().time()
    assert (await d.again()).status == "ok"
    assert asyncio.get_running_loop().time() - started >= 0.5
    assert (len(asked), len(sent.calls)) == (2, 2)


async def test_what_arrives_late_is_found_at_the_second_look(desk):
    looks = [None, {"paid": "late"}]
    sent = Sent([Killed()])
    d = await desk(sent.tool(effect="external", timeout_seconds=0.5, reconcile=lambda key: looks.pop(0)))
    with pytest.raises(Killed):
        await d.call()
    assert (await d.again()).output == {"paid": "late"}
    assert len(sent.calls) == 1


async def test_without_time_to_wait_for_a_late_arrival_a_person_is_asked(desk):
    sent = Sent([Killed()])
    d = await desk(sent.tool(effect="external", reconcile=lambda key: None), limits=Limits(deadline_seconds=20))
    with pytest.raises(Killed):
        await d.call()
    question = await d.again()
    assert "it may still arrive" in question.reason
    assert len(sent.calls) == 1


async def test_a_look_up_that_fails_puts_the_call_before_a_person(desk):
    async def reconcile(key: str) -> None:
        raise ConnectionError("the bank is down")

    d = await desk(Sent([Killed()]).tool(effect="external", reconcile=reconcile))
    with pytest.raises(Killed):
        await d.call()
    question = await d.again()
    assert question.kind == ApprovalKind.RECONCILE
    assert "the bank is down" in question.reason


async def test_a_worker_that_lost_its_lease_asks_nobody_what_became_of_a_call(desk):
    asked: list[str] = []
    d = await desk(Sent([Killed()]).tool(effect="external", reconcile=asked.append))
    with pytest.raises(Killed):
        await d.call()
    d.scope.still_ours = lambda: False
    with pytest.raises(LeaseLost):
        await d.again()
    assert asked == []


async def test_a_call_in_doubt_is_not_settled_after_the_deadline(timed_desk, clock):
    sent = Sent([Killed()])
    d = await timed_desk(sent.tool(effect="external", idempotent=True), limits=Limits(deadline_seconds=10))
    with pytest.raises(Killed):
        await d.call()
    clock.advance(10)
    assert (await d.again()).error_type == ErrorType.TIMEOUT
    assert ((await d.record()).status, len(sent.calls)) == ("open", 1)


async def doubted(desk: MakeDesk, *answers: Any) -> tuple[Desk, Sent]:
    sent = Sent([TimeoutError(), *answers])
    d = await desk(sent.tool(effect="external"))
    assert isinstance(await d.call(), Question)
    return d, sent


async def test_a_person_who_says_it_was_not_done_has_it_sent_again_with_the_same_key(desk):
    d, sent = await doubted(desk)
    await d.decide("approve")
    assert (await d.again()).output == {"done": 2}
    assert len({key for key, _ in sent.calls}) == 1
    assert (await d.events())[-3:] == ["approval.decided", "call.reconciled", "tool.returned"]


async def test_a_person_who_says_it_was_done_gives_its_result(desk):
    d, sent = await doubted(desk)
    await d.decide("respond", value={"refund": "R-9"})
    result, replay = await d.again(), await d.again()
    assert (result.status, result.output, len(sent.calls)) == ("ok", {"refund": "R-9"}, 1)
    assert replay.replayed


async def test_a_person_who_gives_it_up_leaves_a_recorded_failure(desk):
    d, sent = await doubted(desk)
    await d.decide("reject", message="ask the bank on Monday")
    result, replay = await d.again(), await d.again()
    assert (result.status, result.error_type) == ("error", ErrorType.HUMAN_REQUIRED)
    assert "ask the bank on Monday" in result.text
    assert (replay.replayed, len(sent.calls)) == (True, 1)


async def test_a_word_about_one_lost_answer_does_not_count_for_the_next(desk):
    d, sent = await doubted(desk, TimeoutError())
    used = await d.decide("approve")
    second = await d.again()
    scope = rerun(d.scope)
    identity = d.executor.identify(d.request(), scope=scope)
    third = await d.executor.perform(d.request(), identity, scope=scope, toolset=d.tools, approval=used)
    assert (second.kind, third.kind, len(sent.calls)) == (ApprovalKind.RECONCILE, ApprovalKind.RECONCILE, 2)
    assert second.args_digest == third.args_digest


async def test_what_may_no_longer_be_called_is_not_sent_again_but_can_still_be_settled(desk):
    d, sent = await doubted(desk)
    d.scope.autonomy = Autonomy.OBSERVE
    question = await d.again()
    assert "approve" not in question.allowed
    pending = await d.store.approvals.find("acme")
    await d.store.approvals.expire(principal=DANA)
    assert len(pending) == 2
    approval = pending[-1].model_copy(
        update={"status": ApprovalStatus.RESPONDED, "decision": {"type": "respond", "value": {"refund": "R-9"}}}
    )
    scope = rerun(d.scope)
    identity = d.executor.identify(d.request(), scope=scope)
    result = await d.executor.perform(d.request(), identity, scope=scope, toolset=d.tools, approval=approval)
    assert (result.output, len(sent.calls)) == ({"refund": "R-9"}, 1)


@pytest.mark.parametrize("terms", ["read", "idempotent", "once"])
async def test_a_call_that_is_cancelled_on_its_way_is_recorded_as_unknown(desk, terms):
    sent = Sent([forever])
    d = await desk(sent.tool(**effect(terms)))
    task = asyncio.create_task(d.call())
    await sent.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await d.record()).status == "unknown"
    assert (await d.events())[-1] == "call.unknown"
    answer = await d.again()
    assert isinstance(answer, Question) == (terms == "once")


async def test_an_interrupt_inside_a_tool_goes_through_and_the_tool_runs_again_afterwards(desk):
    pause = GraphInterrupt(())
    sent = Sent([pause])
    d = await desk(sent.tool(effect="external"))
    with pytest.raises(GraphInterrupt) as raised:
        await d.call()
    assert raised.value is pause
    assert (await d.again()).status == "ok"
    assert len(sent.calls) == 2


async def test_an_error_of_ours_keeps_its_facts_in_the_record(desk):
    d = await desk(Sent([PermanentDependency("no such account", account="9")]).tool(effect="write"))
    await d.call()
    assert (await d.record()).error_facts == {"account": "9"}
