"""The specification's practice drill (section 30), point by point, through the public face."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from pathlib import Path
from typing import Any

import drill
import pytest
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from langgraph.types import interrupt
from offices import LEASE_SECONDS, Office
from typing_extensions import TypedDict

from holdfast import Limits, RunContext, RunStatus, govern, tool
from holdfast.contracts.approvals import ApprovalKind, ApprovalStatus
from holdfast.contracts.errors import Conflict, ErrorType
from holdfast.contracts.events import Event, EventKind
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.testing.scripted import scripted

IN_TIME = 20.0


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> drill.World:
    monkeypatch.setattr(drill, "FOLDER", tmp_path)
    return drill.World(tmp_path)


async def test_run_is_created_and_makes_a_fake_model_call_and_a_fake_tool_call(office: Office, world: drill.World):
    async with office.open() as runtime:
        run = await runtime.start(drill.GRAPHS["keyed"], {"order": "A"}, tenant="acme", thread="drill")
        result = await run.result(IN_TIME)
        report = await runtime.show(run.id, tenant="acme")
    assert result.status is RunStatus.COMPLETED
    assert result.output == {
        "order": "A",
        "plan": "planner: plan A",
        "payment": {"status": "ok", "output": {"paid": "A"}, "error_type": None},
        "report": "reporter: report ok",
    }
    assert (world.questions, world.payments) == (["planner", "reporter"], ["A"])
    assert [(call.identity.kind, call.identity.site.node, call.status) for call in report.calls] == [
        ("model", "think", "returned"),
        ("tool", "act", "returned"),
        ("model", "tell", "returned"),
    ]
    assert (result.usage.model_calls, result.usage.tool_calls, result.usage.steps) == (2, 1, 3)


class Purchases(TypedDict, total=False):
    orders: list[str]
    bought: list[str]


@tool(effect="write")
async def buy(order: str) -> str:
    """Buy an order."""
    return order


def shop() -> Any:
    async def first(state: Purchases, runtime: NodeRuntime[RunContext]) -> Purchases:
        result = await runtime.context.tools.call("buy", {"order": "first"})
        return {"bought": [result.text]}

    async def rest(state: Purchases, runtime: NodeRuntime[RunContext]) -> Purchases:
        more = [(await runtime.context.tools.call("buy", {"order": order})).text for order in state["orders"]]
        return {"bought": [*state["bought"], *more]}

    builder = StateGraph(Purchases, context_schema=RunContext).add_node("first", first).add_node("rest", rest)
    return govern(builder.add_edge(START, "first").add_edge("first", "rest").compile(), name="shop", tools=[buy])


async def test_max_tool_calls_is_enforced_with_a_typed_cause_and_the_state_kept(office: Office):
    async with office.open() as runtime:
        orders, limits = {"orders": ["second", "third"]}, Limits(max_tool_calls=2)
        run = await runtime.start(shop(), orders, tenant="acme", limits=limits)
        result = await run.result(IN_TIME)
        calls = (await runtime.show(run.id, tenant="acme")).calls
        kinds = [event.kind for event in await run.events()]
    assert result.status is RunStatus.FAILED
    assert result.error is not None
    assert (result.error.error_type, result.error.step_name, result.error.retryable) == (
        ErrorType.BUDGET_EXCEEDED,
        "rest",
        False,
    )
    assert result.output == {"orders": ["second", "third"], "bought": ["first"]}
    assert [call.request["input"]["order"] for call in calls] == ["first", "second"]
    assert result.usage.tool_calls == 2
    assert kinds.count(EventKind.BUDGET_REFUSED) == 1


class Gate:
    """A graph of three nodes that a test lets go on one by one."""

    def __init__(self) -> None:
        self.entered: asyncio.Queue[str] = asyncio.Queue()
        self.go = asyncio.Semaphore(0)
        builder = StateGraph(Purchases, context_schema=RunContext)
        for name in ("one", "two", "three"):
            builder.add_node(name, self._node(name))
        builder.add_edge(START, "one").add_edge("one", "two").add_edge("two", "three")
        self.graph = govern(builder.compile(), name="gate", tools=[self._tool()])

    def _tool(self) -> Any:
        @tool(effect="read")
        async def wait(node: str) -> str:
            """Wait to be let go on."""
            await self.entered.put(node)
            await self.go.acquire()
            return node

        return wait

    def _node(self, name: str) -> Any:
        async def node(state: Purchases, runtime: NodeRuntime[RunContext]) -> Purchases:
            result = await runtime.context.tools.call("wait", {"node": name})
            return {"bought": [*state.get("bought", []), result.text]}

        return node


async def test_checkpoint_is_durable_after_each_step_and_before_the_next(office: Office):
    gate = Gate()
    async with office.open() as runtime:
        run = await runtime.start(gate.graph, {"orders": []}, tenant="acme")
        done: list[str] = []
        for name in ("one", "two", "three"):
            assert await asyncio.wait_for(gate.entered.get(), IN_TIME) == name
            latest = (await office.checkpoints(runtime, run.id))[0]
            assert latest.metadata["step"] == len(done)
            assert latest.checkpoint["channel_values"].get("bought", []) == done
            done.append(name)
            gate.go.release()
        assert (await run.result(IN_TIME)).status is RunStatus.COMPLETED
        final = await office.checkpoints(runtime, run.id)
    assert [each.metadata["step"] for each in final] == [3, 2, 1, 0, -1]
    assert final[0].checkpoint["channel_values"]["bought"] == ["one", "two", "three"]


async def test_queued_run_is_cancelled_at_once(office: Office):
    async with office.open(worker=False) as runtime:
        run = await runtime.start(shop(), {"orders": []}, tenant="acme")
        await run.cancel(by="dana", reason="not needed")
        result = await run.result(IN_TIME)
        assert (result.status, result.usage.steps) == (RunStatus.CANCELLED, 0)
        with pytest.raises(Conflict, match="cancelled"):
            await run.cancel(by="dana")


async def test_running_run_is_cancelled_in_the_middle_of_a_tool_and_keeps_its_state(office: Office):
    gate = Gate()
    async with office.open() as runtime:
        run = await runtime.start(gate.graph, {"orders": []}, tenant="acme")
        await asyncio.wait_for(gate.entered.get(), IN_TIME)
        gate.go.release()
        assert await asyncio.wait_for(gate.entered.get(), IN_TIME) == "two"
        await run.cancel(by="dana", reason="stop")
        result = await run.result(IN_TIME)
        kinds = [event.kind for event in await run.events()]
        calls = (await runtime.show(run.id, tenant="acme")).calls
    assert result.status is RunStatus.CANCELLED
    assert result.output == {"orders": [], "bought": ["one"]}
    assert kinds[-1] is EventKind.RUN_CANCELLED
    assert [call.identity.site.node for call in calls] == ["one", "two"]


async def test_interrupted_run_is_cancelled_and_its_question_withdrawn(office: Office):
    def ask(state: Purchases) -> Purchases:
        return {"bought": [interrupt("what?")]}

    builder = StateGraph(Purchases).add_node("ask", ask).add_edge(START, "ask")
    async with office.open() as runtime:
        run = await runtime.start(govern(builder.compile(), name="asking"), {"orders": []}, tenant="acme")
        [question] = (await run.result(IN_TIME)).approvals
        await run.cancel(by="dana")
        assert (await run.result(IN_TIME)).status is RunStatus.CANCELLED
        [withdrawn] = await runtime.approvals(tenant="acme", pending_only=False)
        assert withdrawn.status is ApprovalStatus.WITHDRAWN
        with pytest.raises(Conflict, match="withdrawn"):
            await runtime.decide(question.id, "respond", by="dana", value="this")


async def killed(office: Office, folder: Path, **hangs: str) -> None:
    """Let a process work on runs (`graph="thread=where it hangs …"`), and kill it when each of them is there."""
    runs = [f"{graph}={hang.partition('=')[0]}" for graph, each in hangs.items() for hang in each.split()]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "import drill; drill.main()", str(LEASE_SECONDS), *runs),
        stdout=PIPE,
        cwd=folder,
        env=office.environment(DRILL_FOLDER=str(folder), DRILL_HANGS=" ".join(hangs.values())),
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            arrived = {await process.stdout.readline() for _ in runs}
        assert arrived == {f"arrived {run.partition('=')[2]}\n".encode() for run in runs}
    finally:
        process.kill()  # SIGKILL: nothing of it gets to clean up
        await process.wait()


async def the_run(runtime: Runtime, thread: str) -> RunHandle:
    [run] = await runtime.runs(tenant="acme", thread=thread)
    return await runtime.run(run.run_id, tenant="acme")


async def test_killed_workers_run_goes_on_from_its_checkpoint_in_another_process_and_pays_once(
    office: Office, world: drill.World, tmp_path: Path
):
    await killed(office, tmp_path, keyed="A=after")
    assert (world.payments, world.questions) == (["A"], ["planner"])
    async with office.open(graphs=drill.GRAPHS.values()) as runtime:
        run = await the_run(runtime, "A")
        assert await run.status() is RunStatus.RUNNING, "the lease of the dead worker has not run out"
        result = await run.result(IN_TIME)
        report, events = await runtime.show(run.id, tenant="acme"), await run.events()
    assert result.status is RunStatus.COMPLETED, result.error
    assert result.output["payment"] == {"status": "ok", "output": {"paid": "A"}, "error_type": None}
    assert world.payments == ["A"]
    assert world.questions == ["planner", "reporter"], "the node before the crash was not run again"
    assert [(call.identity.site.node, call.sends) for call in report.calls] == [("think", 1), ("act", 2), ("tell", 1)]
    assert result.usage.tool_calls == 2, "a call that was sent again is paid for again"
    _assert_the_log_tells_of_two_attempts(events)


def _assert_the_log_tells_of_two_attempts(events: list[Event]) -> None:
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.attempt for event in events if event.kind is EventKind.RUN_CLAIMED] == [1, 2]
    counted = Counter((event.kind, event.node) for event in events)
    assert counted[EventKind.NODE_STARTED, "think"] == 1
    assert counted[EventKind.NODE_STARTED, "act"] == 2
    assert counted[EventKind.NODE_COMPLETED, "act"] == 1
    assert counted[EventKind.TOOL_INTENDED, "act"] == 1
    assert counted[EventKind.TOOL_RETRIED, "act"] == 1
    assert counted[EventKind.TOOL_RETURNED, "act"] == 1
    assert events[-1].kind is EventKind.RUN_COMPLETED


async def test_tool_that_can_be_asked_is_looked_up_and_not_sent_again(
    office: Office, world: drill.World, tmp_path: Path
):
    await killed(office, tmp_path, looked_up="A=after")
    async with office.open(graphs=drill.GRAPHS.values()) as runtime:
        run = await the_run(runtime, "A")
        result = await run.result(IN_TIME)
        calls = (await runtime.show(run.id, tenant="acme")).calls
        reconciled = [event for event in await run.events() if event.kind is EventKind.CALL_RECONCILED]
    assert result.status is RunStatus.COMPLETED
    assert result.output["payment"] == {"status": "ok", "output": {"paid": "A"}, "error_type": None}
    assert [(call.identity.site.node, call.sends) for call in calls] == [("think", 1), ("act", 1), ("tell", 1)]
    assert [event.payload["found"] for event in reconciled] == ["done"]
    assert world.payments == ["A"]


async def test_tool_that_nobody_can_ask_is_put_before_a_person_whose_word_counts(
    office: Office, world: drill.World, tmp_path: Path
):
    await killed(office, tmp_path, blind="not-done=before done=after given-up=after")
    async with office.open(graphs=drill.GRAPHS.values()) as runtime:
        for thread, decision, words, payment in (
            ("not-done", "approve", {}, ("ok", {"paid": "not-done"}, None)),
            ("done", "respond", {"value": {"paid": "by the books"}}, ("ok", {"paid": "by the books"}, None)),
            ("given-up", "reject", {"message": "leave it"}, ("error", None, "human_required")),
        ):
            run = await the_run(runtime, thread)
            [question] = (await run.result(IN_TIME)).approvals
            assert question.kind is ApprovalKind.RECONCILE
            assert question.args == {"order": thread}
            await runtime.decide(question.id, decision, by="dana", **words)
            result = await run.result(IN_TIME)
            assert result.status is RunStatus.COMPLETED, result.error
            told = result.output["payment"]
            assert (told["status"], told["output"], told["error_type"]) == payment
    assert world.payments == ["done", "given-up", "not-done"]


async def test_recorded_model_answer_is_replayed_when_its_node_runs_again(office: Office):
    async def node(state: Purchases, runtime: NodeRuntime[RunContext]) -> Purchases:
        reply = await runtime.context.models.call("which?")
        return {"bought": [reply.content, interrupt("sure?")]}

    builder = StateGraph(Purchases, context_schema=RunContext).add_node("node", node).add_edge(START, "node")
    with scripted("adviser", "this one") as model:
        graph = govern(builder.compile(), name="advised", default_model=model.model)
        async with office.open() as runtime:
            run = await runtime.start(graph, {"orders": []}, tenant="acme")
            [question] = (await run.result(IN_TIME)).approvals
            await runtime.decide(question.id, "respond", by="dana", value="yes")
            result = await run.result(IN_TIME)
            [call] = (await runtime.show(run.id, tenant="acme")).calls
    assert result.output["bought"] == ["this one", "yes"]
    assert (model.sends, call.sends, result.usage.model_calls) == (1, 1, 1)
