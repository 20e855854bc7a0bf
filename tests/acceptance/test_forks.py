"""Back to a checkpoint of a thread, and on from it on a thread of its own."""

import operator
from base64 import b64encode
from collections.abc import Iterator
from typing import Annotated, Any

import drill
import pytest
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import _messages_delta_reducer
from langgraph.runtime import Runtime as NodeRuntime
from langgraph.types import interrupt
from offices import Office
from typing_extensions import TypedDict

from holdfast import Limits, RunContext, RunResult, RunStatus, ToolCall, govern, tool
from holdfast.contracts.calls import CallRecord
from holdfast.contracts.errors import Conflict, InvalidRequest, NotFound, PolicyDenied
from holdfast.contracts.events import EventKind
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.testing.scripted import Script, scripted

IN_TIME = 20.0


class State(TypedDict, total=False):
    order: str
    plan: str
    paid: str
    log: Annotated[list[str], operator.add]


class Shop:
    """A graph that plans with a model, pays with a person's leave, and reports with the model again."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.paid: list[tuple[str, str]] = []
        """Each payment: its key, and the order."""
        self.graph = self._graph()

    def _graph(self) -> Any:
        @tool(effect="external")
        async def pay(order: str, *, call: ToolCall) -> dict[str, str]:
            """Pay an order."""
            self.paid.append((call.idempotency_key, order))
            return {"paid": order}

        async def plan(state: State, runtime: NodeRuntime[RunContext]) -> State:
            reply = await runtime.context.models.call(f"plan {state['order']}")
            return {"plan": reply.content, "log": ["plan"]}

        async def settle(state: State, runtime: NodeRuntime[RunContext]) -> State:
            result = await runtime.context.tools.call("pay", {"order": state["order"]})
            return {"paid": result.text, "log": ["settle"]}

        async def report(state: State, runtime: NodeRuntime[RunContext]) -> State:
            reply = await runtime.context.models.call(f"report {state['paid']}")
            return {"log": [reply.content]}

        builder = StateGraph(State, context_schema=RunContext)
        builder.add_node("plan", plan).add_node("settle", settle).add_node("report", report)
        builder.add_edge(START, "plan").add_edge("plan", "settle").add_edge("settle", "report").add_edge("report", END)
        return govern(builder.compile(), name="shop", tools=[pay], default_model=self.script.model)

    async def handled(self, runtime: Runtime, run: RunHandle, decision: Any = "approve") -> RunResult:
        """The run's result, once a person has decided what it asks."""
        result = await run.result(IN_TIME)
        assert result.status is RunStatus.INTERRUPTED, result.error
        [question] = result.approvals
        await runtime.decide(question.id, decision, by="dana")
        return await run.result(IN_TIME)

    async def sold(self, runtime: Runtime, order: str = "A", thread: str = "sale") -> RunResult:
        return await self.handled(
            runtime, await runtime.start(self.graph, {"order": order}, tenant="acme", thread=thread)
        )


@pytest.fixture
def shop() -> Iterator[Shop]:
    with scripted("shop", *(f"answer {number}" for number in range(9))) as script:
        yield Shop(script)


@pytest.fixture(params=["in the clear", "encrypted"])
def keys(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings with which what is stored can be read by anybody, or by whoever has the key."""
    if request.param == "in the clear":
        return {}
    return {"encryption": {"keys": {"k1": b64encode(b"k1".ljust(32, b".")).decode()}}}


async def calls_of(runtime: Runtime, run: RunHandle | RunResult) -> list[CallRecord]:
    return list((await runtime.show(run.run_id, tenant="acme")).calls)


async def test_history_lists_what_was_written_at_each_checkpoint_and_states_can_be_looked_at(
    office: Office, shop: Shop
):
    async with office.open() as runtime:
        result = await shop.sold(runtime)
        history = await runtime.history("sale", tenant="acme", by="olga")
        states = [await runtime.state("sale", tenant="acme", at=entry.checkpoint_id, by="olga") for entry in history]
        newest = await runtime.state("sale", tenant="acme")
        first = await runtime.history("sale", tenant="acme", by="olga", limit=2)
        rest = await runtime.history("sale", tenant="acme", by="olga", before=first[-1].checkpoint_id)
        by_run = await runtime.history(result.run_id, tenant="acme", by="olga")
    assert [(entry.step, entry.source, entry.next) for entry in history] == [
        (3, "loop", ()),
        (2, "loop", ("report",)),
        (1, "loop", ("settle",)),
        (0, "loop", ("plan",)),
        (-1, "input", ("__start__",)),
    ]
    assert [[(one.node, one.values.get("log")) for one in entry.written] for entry in history] == [
        [("report", ["answer 1"])],
        [("settle", ["settle"])],
        [("plan", ["plan"])],
        [("__start__", None)],
        [],
    ]
    assert {entry.run_id for entry in history} == {result.run_id}
    assert [entry.attempt for entry in history] == [2, 2, 1, 1, 1], "the second attempt came after the person's answer"
    assert all(entry.at is not None for entry in history)
    assert [state.get("log") for state in states] == [
        ["plan", "settle", "answer 1"],
        ["plan", "settle"],
        ["plan"],
        [],
        [],
    ]
    assert states[0] == newest
    assert [*first, *rest] == list(history) == list(by_run)


async def test_fork_goes_on_from_the_checkpoint_and_asks_pays_and_acts_anew(
    office: Office, shop: Shop, keys: dict[str, Any]
):
    async with office.open(**keys) as runtime:
        result = await shop.sold(runtime)
        [before_pay] = [e for e in await runtime.history("sale", tenant="acme", by="olga") if e.next == ("settle",)]
        fork = await runtime.fork("sale", at=before_pay.checkpoint_id, tenant="acme", by="olga", thread="other")
        again = await shop.handled(runtime, fork)
        original, forked = await calls_of(runtime, result), await calls_of(runtime, fork)
        report = await runtime.show(fork.run_id, tenant="acme")
        asked = await runtime.approvals(tenant="acme", pending_only=False)
        history = await runtime.history("other", tenant="acme", by="olga")
        logs = [await runtime.events(run_id, tenant="acme") for run_id in (result.run_id, fork.run_id)]
        first = await runtime.state("sale", tenant="acme")
    assert (again.status, again.output["log"]) == (RunStatus.COMPLETED, ["plan", "settle", "answer 2"])
    assert again.thread_id != result.thread_id
    assert [order for _, order in shop.paid] == ["A", "A"]
    assert len({key for key, _ in shop.paid}) == 2, "the payment of the fork has a key of its own"
    assert not {c.identity.key for c in original} & {c.identity.key for c in forked}
    assert [(c.identity.kind, c.sends) for c in forked] == [("tool", 1), ("model", 1)], "what came before is not redone"
    assert (report.budget.spent.tool_calls, report.budget.spent.model_calls) == (1, 1), "it pays for itself, alone"
    assert len(asked) == 2
    assert len({one.interrupt_id for one in asked}) <= 2
    assert {one.run_id for one in asked} == {result.run_id, fork.run_id}
    assert [(entry.step, entry.run_id) for entry in history] == [
        (3, fork.run_id),
        (2, fork.run_id),
        (1, result.run_id),
        (0, result.run_id),
        (-1, result.run_id),
    ]
    told = [[e.payload for e in log if e.kind is EventKind.RUN_FORKED] for log in logs]
    facts = {
        "from": result.run_id,
        "to": fork.run_id,
        "checkpoint_id": before_pay.checkpoint_id,
        "by": "olga",
        "thread": "other",
    }
    assert told == [[facts], [facts]]
    assert first["log"] == ["plan", "settle", "answer 1"], "the original is as it was"


async def test_either_the_new_thread_or_the_salt_alone_keeps_a_forks_calls_apart(office: Office, shop: Shop):
    """Task ids are functions of checkpoint ids, and a copy has the same; so two things stand between."""
    async with office.open() as runtime:
        result = await shop.sold(runtime)
        [before_pay] = [e for e in await runtime.history("sale", tenant="acme", by="olga") if e.next == ("settle",)]
        fork = await runtime.fork("sale", at=before_pay.checkpoint_id, tenant="acme", by="olga")
        await shop.handled(runtime, fork)
        [paid] = [c.identity for c in await calls_of(runtime, result) if c.identity.kind == "tool"]
        [again] = [c.identity for c in await calls_of(runtime, fork) if c.identity.kind == "tool"]
    assert (paid.site.task_id, paid.request_digest) == (again.site.task_id, again.request_digest)
    assert paid.site.thread_id != again.site.thread_id
    assert (paid.fork, bool(again.fork)) == ("", True)


async def test_fork_can_change_the_state_first_and_has_limits_of_its_own(office: Office, shop: Shop):
    async with office.open() as runtime:
        await shop.sold(runtime)
        [before_pay] = [e for e in await runtime.history("sale", tenant="acme", by="olga") if e.next == ("settle",)]
        fork = await runtime.fork(
            "sale",
            at=before_pay.checkpoint_id,
            tenant="acme",
            by="olga",
            values={"order": "B", "log": ["changed"]},
            limits=Limits(max_tool_calls=1),
        )
        result = await shop.handled(runtime, fork)
        limits = (await runtime.show(fork.run_id, tenant="acme")).run.limits
    assert result.output["log"] == ["plan", "changed", "settle", "answer 2"]
    assert [order for _, order in shop.paid] == ["A", "B"]
    assert (limits.max_tool_calls, limits.max_model_calls) == (1, Limits().max_model_calls)


async def test_fork_of_a_run_that_waits_is_asked_for_itself(office: Office, shop: Shop):
    async with office.open() as runtime:
        run = await runtime.start(shop.graph, {"order": "A"}, tenant="acme", thread="sale")
        assert (await run.result(IN_TIME)).status is RunStatus.INTERRUPTED
        fork = await runtime.fork(run.id, tenant="acme", by="olga")
        rejected = await shop.handled(runtime, fork, "reject")
        assert (rejected.status, shop.paid) == (RunStatus.COMPLETED, [])
        assert await run.status() is RunStatus.INTERRUPTED, "nobody has answered the original"
        completed = await shop.handled(runtime, run)
    assert completed.status is RunStatus.COMPLETED
    assert [order for _, order in shop.paid] == ["A"]


async def test_a_grant_of_the_original_does_not_let_its_fork_act(office: Office, shop: Shop):
    async with office.open() as runtime:
        run = await runtime.start(shop.graph, {"order": "A"}, tenant="acme", thread="sale")
        [question] = (await run.result(IN_TIME)).approvals
    async with office.open(worker=False) as runtime:
        runtime.register(shop.graph)
        await runtime.decide(question.id, "approve", by="dana")
        fork = await runtime.fork("sale", tenant="acme", by="olga")
    async with office.open(graphs=[shop.graph]) as runtime:
        assert (await (await runtime.run(run.id, tenant="acme")).result(IN_TIME)).status is RunStatus.COMPLETED
        waiting = await (await runtime.run(fork.run_id, tenant="acme")).result(IN_TIME)
    assert waiting.status is RunStatus.INTERRUPTED
    assert len(shop.paid) == 1


class Talk(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], DeltaChannel(_messages_delta_reducer, snapshot_frequency=50)]


def _talk() -> Any:
    def said(name: str) -> Any:
        async def say(state: Talk) -> Talk:
            number = len(state.get("messages", []))
            return {"messages": [AIMessage(f"{name} {number}")]}

        return say

    builder = StateGraph(Talk)
    names = ["one", "two", "three", "four"]
    for name, before in zip(names, [START, *names], strict=False):
        builder.add_node(name, said(name)).add_edge(before, name)
    return govern(builder.compile(), name="talk")


async def test_fork_of_a_delta_thread_has_what_was_said_up_to_there_and_nothing_later(
    office: Office, keys: dict[str, Any]
):
    async with office.open(graphs=[_talk()], **keys) as runtime:
        first = await runtime.start("talk", {"messages": [AIMessage("hello")]}, tenant="acme", thread="talk")
        result = await first.result(IN_TIME)
        assert result.status is RunStatus.COMPLETED, result.error
        second = await runtime.start("talk", {"messages": [AIMessage("again")]}, tenant="acme", thread="talk")
        await second.result(IN_TIME)
        [at] = [
            entry
            for entry in await runtime.history("talk", tenant="acme", by="olga")
            if entry.next == ("three",) and entry.run_id == first.id
        ]
        fork = await runtime.fork(first.id, at=at.checkpoint_id, tenant="acme", by="olga", thread="fork")
        forked = await fork.result(IN_TIME)
        later = await runtime.start("talk", {"messages": [AIMessage("later")]}, tenant="acme", thread="fork")
        longer = await later.result(IN_TIME)
    said = ["hello", "one 1", "two 2", "three 3", "four 4"]
    assert [message["content"] for message in forked.output["messages"]] == said
    assert [message["content"] for message in longer.output["messages"]][: len(said) + 2] == [*said, "later", "one 6"]


class Tale(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    told: Annotated[list[str], operator.add]


def _nested(effects: list[str]) -> Any:
    async def inner_first(state: Tale) -> Tale:
        effects.append("inner first")
        return {"told": ["inner first"]}

    async def inner_asks(state: Tale) -> Tale:
        return {"told": [f"answered {interrupt('which?')}"]}

    async def last(state: Tale) -> Tale:
        return {"log": ["last"]}

    inner = StateGraph(Tale).add_node("inner_first", inner_first).add_node("inner_asks", inner_asks)
    inner.add_edge(START, "inner_first").add_edge("inner_first", "inner_asks")
    outer = StateGraph(Tale).add_node("inner", inner.compile()).add_node("last", last)
    return govern(outer.add_edge(START, "inner").add_edge("inner", "last").compile(), name="tale")


async def test_fork_before_a_subgraph_runs_it_from_its_beginning(office: Office, keys: dict[str, Any]):
    effects: list[str] = []
    async with office.open(graphs=[_nested(effects)], **keys) as runtime:
        run = await runtime.start("tale", {"log": ["first"]}, tenant="acme", thread="tale")
        [question] = (await run.result(IN_TIME)).approvals
        fork = await runtime.fork("tale", tenant="acme", by="olga", thread="other")
        [other] = (await fork.result(IN_TIME)).approvals
        assert effects == ["inner first", "inner first"], "the copy has none of the subgraph that was under way"
        await runtime.decide(other.id, "respond", value="this", by="dana")
        forked = await fork.result(IN_TIME)
        await runtime.decide(question.id, "respond", value="that", by="dana")
        original = await run.result(IN_TIME)
    assert forked.output["told"] == ["inner first", "answered this"]
    assert original.output["told"] == ["inner first", "answered that"]
    assert effects == ["inner first", "inner first"]


async def test_travelling_is_refused_in_words_that_say_why(office: Office, shop: Shop):
    async with office.open() as runtime:
        result = await shop.sold(runtime)
        other = await shop.sold(runtime, "B", "second")
        [mine, *_] = await runtime.history("sale", tenant="acme", by="olga")
        [theirs, *_] = await runtime.history(other.run_id, tenant="acme", by="olga")
        with pytest.raises(NotFound, match="no checkpoint 'nothing'"):
            await runtime.fork("sale", at="nothing", tenant="acme", by="olga")
        with pytest.raises(NotFound, match="no checkpoint"):
            await runtime.fork("sale", at=theirs.checkpoint_id, tenant="acme", by="olga")
        with pytest.raises(NotFound, match="no checkpoint"):
            await runtime.state("sale", at=theirs.checkpoint_id, tenant="acme", by="olga")
        with pytest.raises(NotFound, match="no thread 'nowhere'"):
            await runtime.history("nowhere", tenant="acme", by="olga")
        with pytest.raises(Conflict, match="there is a thread 'second' already"):
            await runtime.fork("sale", at=mine.checkpoint_id, tenant="acme", by="olga", thread="second")
        with pytest.raises(InvalidRequest, match="the state has no field 'orders'"):
            await runtime.fork("sale", tenant="acme", by="olga", values={"orders": "B"})
        for act in (
            lambda by: runtime.fork("sale", tenant="acme", by=by),
            lambda by: runtime.history("sale", tenant="acme", by=by),
            lambda by: runtime.state("sale", tenant="acme", at=mine.checkpoint_id, by=by),
            lambda by: runtime.resume(result.run_id, tenant="acme", by=by),
        ):
            with pytest.raises(PolicyDenied, match=r"'dana' may not .* role admin or operator"):
                await act("dana")
            with pytest.raises(NotFound, match="'mallory' has no tenant 'acme'"):
                await act("mallory")
        with pytest.raises(InvalidRequest, match="give `by`"):
            await runtime.state("sale", tenant="acme", at=mine.checkpoint_id)
        with pytest.raises(NotFound):
            await runtime.history("sale", tenant="bolt", by="mallory")
        assert len(await runtime.runs(tenant="acme")) == 2, "what was refused left nothing"
    async with office.open(worker=False) as runtime:
        with pytest.raises(NotFound, match="no graph 'shop' of version"):
            await runtime.fork("sale", tenant="acme", by="olga")


async def test_attached_runs_are_their_hosts_to_go_back_in(office: Office, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drill, "FOLDER", "never used")
    async with office.open(attached_tenant="acme", graphs=[_talk()]) as runtime:
        graph = _talk()
        await graph.ainvoke({"messages": [AIMessage("hello")]}, {"configurable": {"thread_id": "hosted"}})
        with pytest.raises(Conflict, match="its host keeps its checkpoints"):
            await runtime.history("attached:hosted", tenant="acme", by="olga")
        with pytest.raises(Conflict, match="its host keeps its checkpoints"):
            await runtime.fork("attached:hosted", tenant="acme", by="olga")
