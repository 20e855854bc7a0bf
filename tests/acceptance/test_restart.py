"""A process that knows only the thread's key: what is pending, decisions, results, and what comes after."""

import asyncio
import operator
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import drill
import pytest
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from langgraph.types import Send, interrupt
from offices import Office
from typing_extensions import TypedDict

from holdfast import Principal, RunContext, RunResult, RunStatus, govern
from holdfast.contracts.approvals import Approval, ApprovalKind, ApprovalStatus
from holdfast.contracts.errors import Conflict, InvalidRequest, NotFound, PolicyDenied
from holdfast.contracts.events import EventKind
from holdfast.runtime.runtime import Runtime

IN_TIME = 20.0


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> drill.World:
    monkeypatch.setattr(drill, "FOLDER", tmp_path)
    return drill.World(tmp_path)


async def pending(runtime: Runtime, thread: str) -> list[Approval]:
    return list(await runtime.approvals(tenant="acme", thread=thread))


async def latest(runtime: Runtime, thread: str) -> RunResult:
    [run, *_] = await runtime.runs(tenant="acme", thread=thread)
    return await runtime.wait(run.run_id, tenant="acme", timeout=IN_TIME)


async def asked(office: Office, graph: Any, value: Any, thread: str = "thread") -> None:
    """Start a run in a runtime of its own, which is closed when the run waits for a person."""
    async with office.open() as runtime:
        run = await runtime.start(graph, value, tenant="acme", thread=thread)
        result = await run.result(IN_TIME)
        assert result.status is RunStatus.INTERRUPTED, result.error
        assert result.next_action


async def test_another_process_decides_gets_the_result_and_goes_on_with_the_thread(
    office: Office, world: drill.World, tmp_path: Path
):
    asking = [sys.executable, "-c", "import asyncio, drill; asyncio.run(drill.ask('the-thread'))"]
    environment = office.environment(DRILL_FOLDER=str(tmp_path))
    process = await asyncio.to_thread(
        subprocess.run, asking, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert process.stdout == "interrupted\n", process.stderr
    async with office.open(graphs=[drill.TRANSFERS]) as runtime:
        [question] = await pending(runtime, "the-thread")
        assert (question.tool_name, question.args) == ("transfer", {"order": "A", "amount": "10.00"})
        await runtime.decide(question.id, "approve", by="dana")
        result = await latest(runtime, "the-thread")
        assert result.status is RunStatus.COMPLETED, result.error
        second = await runtime.start("transfers", {"order": "B"}, tenant="acme", thread="the-thread")
        [question] = (await second.result(IN_TIME)).approvals
        await runtime.decide(question.id, "reject", by="dana", message="not this one")
        result = await second.result(IN_TIME)
    assert [line.partition(" ")[0::2] for line in result.output["log"]] == [
        ("A:", 'ok {"amount":"10.00","paid":"A"}'),
        ("B:", "rejected human_required: transfer was not called. not this one"),
    ]
    assert world.payments == ["A 10.00"]


@pytest.mark.parametrize(
    ("decision", "words", "status", "payments", "line"),
    [
        ("approve", {}, ApprovalStatus.APPROVED, ["A 10.00"], 'A: ok {"amount":"10.00","paid":"A"}'),
        (
            "edit",
            {"args": {"order": "A", "amount": "4.00"}},
            ApprovalStatus.EDITED,
            ["A 4.00"],
            'A: ok {"amount":"4.00","paid":"A"}',
        ),
        (
            "reject",
            {"message": "too much"},
            ApprovalStatus.REJECTED,
            [],
            "A: rejected human_required: transfer was not called. too much",
        ),
        ("respond", {"message": "paid by hand"}, ApprovalStatus.RESPONDED, [], "A: rejected paid by hand"),
    ],
)
async def test_each_decision_has_its_effect_in_a_new_runtime(
    office: Office,
    world: drill.World,
    decision: Any,
    words: dict[str, Any],
    status: ApprovalStatus,
    payments: list[str],
    line: str,
):
    await asked(office, drill.TRANSFERS, {"order": "A"})
    async with office.open(graphs=[drill.TRANSFERS]) as runtime:
        [question] = await pending(runtime, "thread")
        await runtime.decide(question.id, decision, by="dana", **words)
        result = await latest(runtime, "thread")
        [decided] = await runtime.approvals(tenant="acme", pending_only=False)
        with pytest.raises(Conflict, match="already by 'dana'"):
            await runtime.decide(question.id, decision, by="dana", **words)
    assert (result.status, result.output["log"]) == (RunStatus.COMPLETED, [line])
    assert (decided.status, decided.decided_by) == (status, "dana")
    assert (decided.used_at is not None) == bool(payments), "a grant is used once, by the call that it was for"
    assert world.payments == payments


async def test_only_who_belongs_to_the_tenant_and_may_approve_decides(office: Office, world: drill.World):
    await asked(office, drill.TRANSFERS, {"order": "A"})
    async with office.open(graphs=[drill.TRANSFERS], worker=False) as runtime:
        [question] = await pending(runtime, "thread")
        assert not await runtime.approvals(tenant="bolt", thread="thread")
        with pytest.raises(NotFound):
            await runtime.decide(question.id, "approve", by="mallory")
        with pytest.raises(PolicyDenied, match="approver"):
            await runtime.decide(question.id, "approve", by="clark")
        with pytest.raises(NotFound, match="directory"):
            await runtime.decide(question.id, "approve", by="nobody in the directory")
        stranger = Principal(user_id="stranger", tenants=(), roles=("approver",))
        with pytest.raises(NotFound):
            await runtime.decide(question.id, "approve", by=stranger)
        with pytest.raises(InvalidRequest, match="edit"):
            await runtime.decide(question.id, "edit", by="dana")
        assert await pending(runtime, "thread") == [question]
    assert world.payments == []


class Answers(TypedDict, total=False):
    topic: str
    log: Annotated[list[Any], operator.add]


def inquiry() -> Any:
    def ask(state: Answers) -> Answers:
        colour = interrupt({"which": "colour"})
        size = interrupt("which size?")
        return {"log": [colour, size]}

    return govern(StateGraph(Answers).add_node("ask", ask).add_edge(START, "ask").compile(), name="inquiry")


async def test_plain_interrupts_of_anyones_node_are_answered_one_after_the_other(office: Office):
    await asked(office, inquiry(), {"topic": "shirts"})
    for payload, answer in (({"which": "colour"}, "red"), ("which size?", {"size": 5})):
        async with office.open(graphs=[inquiry()]) as runtime:
            [question] = await pending(runtime, "thread")
            assert (question.kind, question.node, question.payload) == (ApprovalKind.QUESTION, "ask", payload)
            with pytest.raises(NotFound):
                await runtime.decide(question.id, "respond", by="mallory", value="blue")
            await runtime.decide(question.id, "respond", by="dana", value=answer)
            result = await latest(runtime, "thread")
    assert (result.status, result.output["log"]) == (RunStatus.COMPLETED, ["red", {"size": 5}])


async def test_approval_that_nobody_decided_in_time_cannot_be_decided_and_the_run_goes_on(
    office: Office, world: drill.World
):
    await asked(office, drill.TRANSFERS, {"order": "A"})
    async with office.open(graphs=[drill.TRANSFERS]) as runtime:
        [question] = await pending(runtime, "thread")
        await office.alter("update approvals set expires_at = clock_timestamp() - interval '1 second'")
        with pytest.raises(Conflict, match="expired"):
            await runtime.decide(question.id, "approve", by="dana")
        result = await latest(runtime, "thread")
        events = await runtime.events(result.run_id, tenant="acme")
    assert result.status is RunStatus.COMPLETED, result.error
    [line] = result.output["log"]
    assert line.startswith("A: rejected human_required: transfer was not called.")
    assert EventKind.APPROVAL_EXPIRED in [event.kind for event in events]
    assert world.payments == []


async def test_worker_expires_by_itself_what_nobody_decided_in_the_time_that_is_set(office: Office):
    async with office.open(approval_expires_seconds=0.2) as runtime:
        run = await runtime.start(inquiry(), {"topic": "shirts"}, tenant="acme")
        result = await run.result(IN_TIME)
        [question] = result.approvals
        assert (question.expires_at - question.created_at).total_seconds() == pytest.approx(0.2, abs=0.1)

        async def expiry_is_told() -> bool:
            return EventKind.APPROVAL_EXPIRED in [event.kind for event in await run.events()]

        async with asyncio.timeout(IN_TIME):
            while not await expiry_is_told():  # noqa: ASYNC110  # the worker's doing, seen in the database alone
                await asyncio.sleep(0.05)
        [first, *_] = await runtime.approvals(tenant="acme", pending_only=False)
    assert (first.status, first.decided_by) == (ApprovalStatus.EXPIRED, None)


def parallel_transfers() -> Any:
    def fan(state: drill.Ledger) -> list[Send]:
        return [Send("transfer", {"order": order}) for order in state["order"].split()]

    builder = StateGraph(drill.Ledger, context_schema=RunContext).add_node("transfer", drill.transfer_once)
    graph = builder.add_conditional_edges(START, fan, ["transfer"]).compile()
    return govern(graph, name="parallel", tools=[drill.transfer])


async def test_several_questions_at_once_are_decided_in_any_order_each_by_itself(office: Office, world: drill.World):
    await asked(office, parallel_transfers(), {"order": "A B C"})
    for order, decision, left in (("C", "approve", 2), ("A", "reject", 1), ("B", "approve", 0)):
        async with office.open(graphs=[parallel_transfers()]) as runtime:
            questions = {question.args["order"]: question for question in await pending(runtime, "thread")}
            assert len(questions) == left + 1
            await runtime.decide(questions[order].id, decision, by="dana")
            result = await latest(runtime, "thread")
            assert len(result.approvals) == left
    assert result.status is RunStatus.COMPLETED, result.error
    assert [line.split()[:2] for line in result.output["log"]] == [["A:", "rejected"], ["B:", "ok"], ["C:", "ok"]]
    assert world.payments == ["B 10.00", "C 10.00"]
    assert result.usage.tool_calls == 2


async def test_several_questions_are_decided_at_the_same_time(office: Office, world: drill.World):
    await asked(office, parallel_transfers(), {"order": "A B C"})
    async with office.open(graphs=[parallel_transfers()]) as runtime:
        questions = await pending(runtime, "thread")
        await asyncio.gather(*(runtime.decide(question.id, "approve", by="dana") for question in questions))
        async with asyncio.timeout(IN_TIME):
            while (result := await latest(runtime, "thread")).status is RunStatus.INTERRUPTED:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert result.status is RunStatus.COMPLETED, result.error
    assert world.payments == ["A 10.00", "B 10.00", "C 10.00"]


async def test_question_is_asked_anew_by_a_second_run_and_a_grant_is_not_carried_over(
    office: Office, world: drill.World
):
    await asked(office, drill.TRANSFERS, {"order": "A"})
    async with office.open(graphs=[drill.TRANSFERS]) as runtime:
        [question] = await pending(runtime, "thread")
        await runtime.decide(question.id, "approve", by="dana")
        await latest(runtime, "thread")
        again = await runtime.start("transfers", {"order": "A"}, tenant="acme", thread="thread")
        result = await again.result(IN_TIME)
        assert result.status is RunStatus.INTERRUPTED
        assert result.approvals[0].id != question.id
    assert world.payments == ["A 10.00"]


async def test_node_with_a_tool_question_and_a_plain_one_gets_each_answer_where_it_was_asked(
    office: Office, world: drill.World
):
    async def both(state: drill.Ledger, runtime: NodeRuntime[RunContext]) -> drill.Ledger:
        result = await runtime.context.tools.call("transfer", {"order": "A", "amount": "1.00"})
        return {"log": [result.status, interrupt("sure?")]}

    def graph() -> Any:
        builder = StateGraph(drill.Ledger, context_schema=RunContext).add_node("both", both).add_edge(START, "both")
        return govern(builder.compile(), name="both", tools=[drill.transfer])

    await asked(office, graph(), {"order": "A"})
    for kind, decision, words in (
        (ApprovalKind.TOOL, "approve", {}),
        (ApprovalKind.QUESTION, "respond", {"value": "yes"}),
    ):
        async with office.open(graphs=[graph()]) as runtime:
            [question] = await pending(runtime, "thread")
            assert question.kind is kind
            await runtime.decide(question.id, decision, by="dana", **words)
            result = await latest(runtime, "thread")
    assert (result.status, result.output["log"]) == (RunStatus.COMPLETED, ["ok", "yes"])
    assert world.payments == ["A 1.00"]
