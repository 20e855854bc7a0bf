"""What one flush commits: a task's writes with its events and questions, the calls of many runs with their money."""

import asyncio
import operator
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from functools import partial
from inspect import isawaitable
from typing import Annotated, Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from fix_database import DatabaseUrls
from fix_proxy import Proxy
from governing import Desk, raising
from langgraph.checkpoint.serde.types import ERROR
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from scenes import FAILED, INTENDED, ONE_TOOL_CALL, RETURNED, UNLIMITED, Scene, intent, outcome, question
from stores import postgres_store
from typing_extensions import TypedDict

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.journal import PostgresJournal
from holdfast.checkpoints.saver import saver_for
from holdfast.contracts.calls import CallIntent, Fresh, Opened, OutcomeStatus, Recorded
from holdfast.contracts.errors import BudgetExceeded, ErrorType, InvalidRequest
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.runs import Owner
from holdfast.gateway.toolset import tool
from holdfast.graphs.govern import govern
from holdfast.nodes.context import RunContext, current
from holdfast.nodes.fanout import Specialist
from holdfast.testing.invariants import assert_invariants


class State(TypedDict, total=False):
    log: Annotated[list[Any], operator.add]


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(postgres_store(database))


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(store=postgres_store(database), saver_of=partial(saver_for, database))


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not (await found if isawaitable(found := holds()) else found):  # noqa: ASYNC110  # somebody else's state
            await asyncio.sleep(0.005)


async def rows(urls: DatabaseUrls, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(urls.admin) as conn:
        return await (await conn.execute(query, values)).fetchall()


def governed(node: Any, **terms: Any) -> Any:
    builder = StateGraph(State, context_schema=RunContext).add_node("node", node).add_edge(START, "node")
    return govern(builder.compile(), name="one", **terms)


async def test_a_nodes_end_is_committed_with_its_writes(desk: Desk, database: Database, database_urls: DatabaseUrls):
    async def node(state: State) -> State:
        return {"log": ["done"]}

    attempt = await desk.start(governed(node), {"log": []})
    with raising(attempt):
        assert attempt.output == {"log": ["done"]}
    commits = await rows(
        database_urls,
        "select e.xmin::text, w.xmin::text from events e join checkpoint_writes w on w.task_id = e.task_id "
        "where e.kind = 'node.completed' and w.channel = 'log'",
    )
    assert len(commits) == 1
    assert commits[0][0] == commits[0][1]
    await assert_invariants(database)


async def test_a_question_is_committed_with_its_interrupt(desk: Desk, database: Database, database_urls: DatabaseUrls):
    async def node(state: State) -> State:
        return {"log": [interrupt("which colour?")]}

    attempt = await desk.start(governed(node), {"log": []})
    commits = await rows(
        database_urls,
        "select a.xmin::text, w.xmin::text, e.xmin::text from approvals a "
        "join checkpoint_writes w on w.task_id = a.task_id and w.channel = '__interrupt__' "
        "join events e on e.task_id = a.task_id and e.kind = 'approval.asked'",
    )
    assert len(commits) == 1
    assert len(set(commits[0])) == 1
    await attempt.rest()
    await assert_invariants(database)


async def test_a_specialists_question_is_committed_with_the_interrupt_of_its_node(
    desk: Desk, database: Database, database_urls: DatabaseUrls
):
    @tool(effect="external")
    async def pay(order: str) -> str:
        """Pay for an order."""
        return order

    async def payer() -> Any:
        return (await current().tools.call("pay", {"order": "A"})).output

    async def node(state: State) -> State:
        await current().fan_out([Specialist("payer", payer, budget_share=0.5)], limit=1)
        return {"log": []}

    attempt = await desk.start(governed(node, tools=[pay]), {"log": []})
    commits = await rows(
        database_urls,
        "select a.xmin::text, w.xmin::text from approvals a "
        "join checkpoint_writes w on w.task_id = split_part(a.task_id, '/', 1) and w.channel = '__interrupt__'",
    )
    assert len(commits) == 1
    assert len(set(commits[0])) == 1
    await attempt.rest()
    await assert_invariants(database)


async def test_what_is_staged_for_a_task_without_writes_is_written_when_the_attempt_ends(
    scene: Scene, database: Database
):
    owner = await scene.running()
    await scene.store.events.stage(owner, "no-such-task", [EventDraft(kind=EventKind.NODE_FAILED, node="n")])
    assert "node.failed" not in await scene.kinds(owner)
    await scene.store.runs.release(owner, event=EventDraft(kind=EventKind.RUN_RELEASED))
    assert (await scene.kinds(owner))[-2:] == ["node.failed", "run.released"]
    await assert_invariants(database)


async def test_a_question_that_is_being_decided_holds_no_flush(scene: Scene, database_urls: DatabaseUrls):
    """Whoever decides it waits for the run's head, which the flush holds: to wait here would be to wait for ever."""
    owner = await scene.running()
    asked = question(interrupt_id="interrupt", task_id="task")
    await scene.store.approvals.ask(owner, asked, event=EventDraft(kind=EventKind.APPROVAL_ASKED))
    async with await psycopg.AsyncConnection.connect(database_urls.admin) as deciding:
        await deciding.execute("update approvals set status = 'approved', decided_by = 'dana', decided_at = now()")
        await scene.store.approvals.stage(owner, asked, event=EventDraft(kind=EventKind.APPROVAL_ASKED))
        await scene.store.events.stage(owner, "task", [EventDraft(kind=EventKind.NODE_INTERRUPTED, node="refund")])
        await scene.store.runs.release(owner, event=EventDraft(kind=EventKind.RUN_RELEASED))
        assert (await scene.kinds(owner))[-2:] == ["node.interrupted", "run.released"]
        await deciding.rollback()


async def test_what_nobody_waits_for_is_written_soon_and_before_what_comes_after(scene: Scene):
    owner = await scene.running()
    await scene.store.events.later(owner, [EventDraft(kind=EventKind.TOOL_REPLAYED)])
    await scene.store.journal.open(owner, intent(owner), event=INTENDED)
    assert (await scene.kinds(owner))[-2:] == ["tool.replayed", "tool.intended"]
    await scene.store.events.later(owner, [EventDraft(kind=EventKind.TOOL_REPLAYED)])
    async with asyncio.timeout(10):
        while (await scene.kinds(owner))[-1] != "tool.replayed":  # noqa: ASYNC110  # by a timer, without anyone's help
            await asyncio.sleep(0.01)


async def test_calls_of_many_runs_share_their_commits(scene: Scene, database: Database, database_urls: DatabaseUrls):
    owners = [await scene.running() for _ in range(8)]
    shared = await scene.store.ledger.tenant_budget("acme")
    intents = [intent(owner, budgets=(owner.run_id, shared)) for owner in owners]
    opened = await asyncio.gather(
        *(scene.store.journal.open(o, i, event=INTENDED) for o, i in zip(owners, intents, strict=True))
    )
    assert all(isinstance(each, Fresh) for each in opened)
    [(commits,)] = await rows(database_urls, "select count(distinct xmin::text) from calls")
    assert commits <= 2  # the first alone, the others while it was under way
    await asyncio.gather(
        *(
            scene.store.journal.close(o, outcome(i.call_id), event=RETURNED)
            for o, i in zip(owners, intents, strict=True)
        )
    )
    [(commits,)] = await rows(database_urls, "select count(distinct xmin::text) from calls")
    assert commits <= 2
    assert (await scene.budget(owners[0], shared)).spent.tool_calls == 8
    await assert_invariants(database)


async def test_intents_that_have_room_alone_but_not_together_are_let_in_one_by_one(scene: Scene, database: Database):
    owner = await scene.running(limits=Limits(max_tool_calls=5))
    answers = await asyncio.gather(
        *(scene.store.journal.open(owner, intent(owner, occurrence=n), event=INTENDED) for n in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, Fresh) for answer in answers) == 5
    assert sum(isinstance(answer, BudgetExceeded) for answer in answers) == 3
    assert (await scene.budget(owner)).reserved.tool_calls == 5
    await assert_invariants(database)


async def test_a_locked_budget_holds_up_its_own_calls_alone(
    scene: Scene, database: Database, database_urls: DatabaseUrls
):
    stuck, free = await scene.running(), await scene.running()
    async with await psycopg.AsyncConnection.connect(database_urls.admin) as conn:
        await conn.execute("select from budgets where budget_id = %s for update", [stuck.run_id])
        waiting = asyncio.create_task(scene.store.journal.open(stuck, intent(stuck), event=INTENDED))
        assert isinstance(await scene.store.journal.open(free, intent(free), event=INTENDED), Fresh)
        assert not waiting.done()
        await conn.rollback()
    assert isinstance(await waiting, Fresh)
    await assert_invariants(database)


async def test_calls_wait_for_room_in_the_queue_as_checkpoints_do(scene: Scene, database: Database):
    owner, waited = await scene.running(), []
    really = database.writer.admit

    async def admit() -> None:
        waited.append("for room")
        await really()

    database.writer.admit = admit  # type: ignore[method-assign]
    wanted = intent(owner)
    await scene.store.journal.open(owner, wanted, event=INTENDED)
    await scene.store.journal.close(owner, outcome(wanted.call_id), event=RETURNED)
    assert waited == ["for room"] * 2


SOMEBODY_WAITS = """do $$ begin
    for n in 1 .. 2000 loop
        perform pg_stat_clear_snapshot();
        exit when exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock');
        perform pg_sleep(0.001);
    end loop;
end $$"""


async def test_a_budget_that_another_process_has_for_a_moment_is_waited_for(
    scene: Scene, database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
):
    alone: list[CallIntent] = []
    really = PostgresJournal._open_alone

    async def counted(self: PostgresJournal, owner: Owner, wanted: CallIntent, event: EventDraft) -> Opened:
        alone.append(wanted)
        return await really(self, owner, wanted, event)

    monkeypatch.setattr(PostgresJournal, "_open_alone", counted)
    owner = await scene.running()
    shared = await scene.store.ledger.tenant_budget("acme")
    tries = 10  # it is not waited for longer than a moment: on a machine that is busy, one of them will do
    async with await psycopg.AsyncConnection.connect(database_urls.admin) as conn:
        for n in range(tries):
            await conn.execute("select from budgets where budget_id = %s for update", [shared])
            opening = asyncio.create_task(
                scene.store.journal.open(
                    owner, intent(owner, occurrence=n, budgets=(owner.run_id, shared)), event=INTENDED
                )
            )
            await conn.execute(SOMEBODY_WAITS)
            await conn.commit()
            assert isinstance(await opening, Fresh)
    assert len(alone) < tries
    assert (await scene.budget(owner, shared)).reserved.tool_calls == tries


async def test_the_same_intent_opened_again_after_its_answer_was_lost_is_fresh_and_reserved_once(scene: Scene):
    owner = await scene.running()
    first = await scene.store.journal.open(owner, (wanted := intent(owner)), event=INTENDED)
    assert await scene.store.journal.open(owner, wanted, event=INTENDED) == first
    assert (await scene.budget(owner)).reserved == ONE_TOOL_CALL
    assert (await scene.kinds(owner)).count("tool.intended") == 1


async def test_answers_that_never_came_are_asked_for_again_and_nothing_is_written_twice(
    proxy: Proxy, database_urls: DatabaseUrls, database: Database
):
    async with Database(proxy.url) as far:
        scene = Scene(postgres_store(far))
        owner = await scene.running()
        await scene.store.events.append(owner, [EventDraft(kind=EventKind.TOOL_REFUSED, node="before")])
        wanted = intent(owner)
        proxy.lose_answer(UUID(wanted.call_id).bytes, cut=True)
        assert isinstance(await scene.store.journal.open(owner, wanted, event=INTENDED), Fresh)
        assert proxy.answers_lost == 1
        proxy.lose_answer(b"the answer", cut=True)
        closed = await scene.store.journal.close(
            owner, outcome(wanted.call_id, response={"text": "the answer"}), event=RETURNED
        )
        proxy.lose_answer(b"lost-and-found", cut=True)
        await scene.store.events.append(owner, [EventDraft(kind=EventKind.TOOL_REFUSED, node="lost-and-found")])
        assert proxy.answers_lost == 3
        assert (closed.status, closed.response) == ("returned", {"text": "the answer"})
        assert isinstance(await scene.store.journal.open(owner, wanted, event=INTENDED), Recorded)
        kinds = (await scene.kinds(owner))[2:]
        assert kinds == ["tool.refused", "tool.intended", "tool.returned", "tool.refused"]
        state = await scene.budget(owner)
        assert (state.spent, state.reserved) == (ONE_TOOL_CALL, Usage())
    await assert_invariants(database)


def told(name: str) -> list[EventDraft]:
    return [EventDraft(kind=EventKind.TOOL_REFUSED, node=name)]


async def nodes(scene: Scene, owner: Owner) -> list[str | None]:
    return [each.node for each in await scene.store.events.read(owner.tenant_id, owner.run_id) if each.node]


async def test_a_flush_that_is_sent_again_without_a_run_that_is_in_the_way_now_is_known(
    proxy: Proxy, database_urls: DatabaseUrls, database: Database
):
    """All of it was committed, and nobody heard so; before it is sent again, somebody locks one of its runs."""
    async with Database(proxy.url) as far:
        scene = Scene(postgres_store(far))
        locked, free, last = [await scene.running() for _ in range(3)]
        proxy.lose_answer(b"locked")
        writing = [
            asyncio.create_task(scene.store.events.append(owner, told(name)))
            for owner, name in ((locked, "locked"), (free, "free"), (last, "last"))
        ]
        await until(lambda: proxy.answers_lost)
        async with await psycopg.AsyncConnection.connect(database_urls.admin) as deciding:
            await deciding.execute("select from run_heads where run_id = %s for update", [locked.run_id])
            proxy.cut()
            await writing[1]
            assert not writing[0].done()
        await asyncio.gather(*writing)
        assert [await nodes(scene, owner) for owner in (locked, free, last)] == [["locked"], ["free"], ["last"]]
    await assert_invariants(database)


async def test_a_flush_that_is_sent_again_while_the_first_is_under_way_is_known(
    proxy: Proxy, database_urls: DatabaseUrls, database: Database
):
    """The server has not noticed yet that nobody waits for the first."""
    async with Database(proxy.url) as far:
        scene = Scene(postgres_store(far))
        owners = [await scene.running() for _ in range(2)]
        waiting = "select from pg_locks where not granted having count(*) = %s"
        async with await psycopg.AsyncConnection.connect(database_urls.admin) as slow:
            await slow.execute("lock table events in exclusive mode")
            writing = [asyncio.create_task(scene.store.events.append(owner, told("once"))) for owner in owners]
            await until(lambda: rows(database_urls, waiting, 1))
            proxy.cut()
            await until(lambda: rows(database_urls, waiting, 2))
        await asyncio.gather(*writing)
        assert [await nodes(scene, owner) for owner in owners] == [["once"], ["once"]]
    await assert_invariants(database)


def taped(database: Database) -> list[Callable[[], Awaitable[Any]]]:
    """What the writer sends from now on, to be sent again."""
    line, sent = database.writer._line, []
    really_run = line.run

    async def run(query: LiteralString, parameters: Any, *, tenants: Any) -> Any:
        sent.append(partial(really_run, query, parameters, tenants=tenants))
        return await sent[-1]()

    line.run = run  # type: ignore[method-assign]
    return sent


async def test_a_flush_that_arrives_after_what_was_sent_in_its_place_writes_nothing(scene: Scene, database: Database):
    owners = [await scene.running() for _ in range(2)]
    sent = taped(database)
    await asyncio.gather(*(scene.store.events.append(owner, told("first")) for owner in owners))
    await asyncio.gather(*(scene.store.events.append(owner, told("second")) for owner in owners))
    for send in sent:
        await send()
    assert [await nodes(scene, owner) for owner in owners] == [["first", "second"]] * 2
    await assert_invariants(database)


async def test_a_write_that_arrives_after_the_one_that_replaced_it_replaces_nothing(
    scene: Scene, database: Database, database_urls: DatabaseUrls
):
    owner = await scene.running()
    saver, sent = saver_for(database, owner), taped(database)
    config = {"configurable": {"thread_id": owner.thread_id, "checkpoint_ns": "", "checkpoint_id": "0001"}}
    for value in ("first", "second"):
        await saver.aput_writes(config, [(ERROR, value)], "task")
    await sent[0]()
    found = "select position('first'::bytea in blob) > 0, position('second'::bytea in blob) > 0 from checkpoint_writes"
    assert await rows(database_urls, found) == [(False, True)]
    await assert_invariants(database)


async def test_a_run_whose_budget_is_taken_by_one_after_another_gets_its_turn(
    scene: Scene, database: Database, database_urls: DatabaseUrls
):
    """Its calls may queue for its budget, each in a transaction of its own, while a task begins."""
    owner = await scene.running()
    over = asyncio.Event()

    async def take() -> None:
        async with await psycopg.AsyncConnection.connect(database_urls.admin) as conn:
            while not over.is_set():
                await conn.execute("select from budgets where budget_id = %s for no key update", [owner.run_id])
                await conn.commit()

    takers = [asyncio.create_task(take()) for _ in range(6)]
    await until(lambda: rows(database_urls, "select from pg_locks where not granted having count(*) > 3"))
    for n in range(10):
        begun = EventDraft(kind=EventKind.NODE_STARTED, node="n", task_id=str(n))
        await scene.store.runs.begin_step(owner, node="n", task_id=str(n), event=begun)
    await scene.store.events.append(owner, told("after"))
    over.set()
    await asyncio.gather(*takers)
    assert (await scene.budget(owner)).spent.steps == 10
    await assert_invariants(database)


async def test_an_intent_without_room_leaves_the_outcomes_that_make_room_together(
    scene: Scene, database: Database, database_urls: DatabaseUrls
):
    owner = await scene.running(limits=Limits(max_tool_calls=4))
    intents = [intent(owner, occurrence=n) for n in range(5)]
    for each in intents[:4]:
        await scene.store.journal.open(owner, each, event=INTENDED)
    unsent = {"status": OutcomeStatus.FAILED, "usage": Usage()}
    *_, opened = await asyncio.gather(
        *(scene.store.journal.close(owner, outcome(each.call_id, **unsent), event=FAILED) for each in intents[:4]),
        scene.store.journal.open(owner, intents[4], event=INTENDED),
    )
    assert isinstance(opened, Fresh)
    [(commits,)] = await rows(database_urls, "select count(distinct xmin::text) from calls where status = 'failed'")
    assert commits == 1
    await assert_invariants(database)


async def test_sums_that_no_budget_can_hold_concern_their_own_calls(scene: Scene, database: Database):
    owner, free = await scene.running(limits=UNLIMITED), await scene.running()
    intents = [intent(owner, occurrence=n) for n in range(10)]
    for each in intents:
        await scene.store.journal.open(owner, each, event=INTENDED)
    most = Usage(cost_usd=Decimal("999999999999.999999"))
    said = await asyncio.gather(
        *(scene.store.journal.close(owner, outcome(each.call_id, usage=most), event=RETURNED) for each in intents),
        scene.store.events.append(free, told("free")),
        return_exceptions=True,
    )
    assert [type(each) for each in said if isinstance(each, Exception)] == [InvalidRequest]
    assert said[-1] is None
    await scene.store.events.append(owner, told("still writes"))
    await assert_invariants(database)


@pytest.mark.parametrize("text", ["a NUL: \x00", "half a pair: \ud800"])
async def test_an_error_that_no_text_of_postgres_can_hold_concerns_its_own_call(
    scene: Scene, database: Database, text: str
):
    owners = [await scene.running() for _ in range(3)]
    intents = [intent(owner) for owner in owners]
    for owner, each in zip(owners, intents, strict=True):
        await scene.store.journal.open(owner, each, event=INTENDED)
    failed = [
        outcome(each.call_id, OutcomeStatus.FAILED, error_type=ErrorType.TIMEOUT, error_message=message)
        for each, message in zip(intents, ("fine", text, "fine"), strict=True)
    ]
    said = await asyncio.gather(
        *(scene.store.journal.close(owner, each, event=FAILED) for owner, each in zip(owners, failed, strict=True)),
        return_exceptions=True,
    )
    assert [isinstance(each, InvalidRequest) for each in said] == [False, True, False]
    await scene.store.journal.close(owners[1], replace(failed[1], error_message="fine"), event=FAILED)
    await assert_invariants(database)


@tool(effect="read")
async def look(order: str) -> dict[str, str]:
    """Look at an order."""
    return {"seen": order}


async def test_a_node_that_runs_again_reads_its_calls_once_and_answers_from_memory(desk: Desk, database: Database):
    async def node(state: State, runtime: Runtime[RunContext]) -> State:
        for n in range(5):
            await runtime.context.tools.call("look", {"order": str(n)})
        return {"log": [interrupt("go on?")]}

    graph = governed(node, tools=[look])
    attempt = await desk.start(graph, {"log": []})
    [question] = await attempt.inbox()
    await attempt.rest()
    await attempt.decide(question, "respond", value="yes")
    reads: list[str] = []
    asked = database.reader.calls

    async def counted(*place: str) -> Any:
        reads.append(place[-1])
        return await asked(*place)

    database.reader.calls = counted  # type: ignore[method-assign]
    again = await attempt.resume()
    with raising(again):
        assert again.output == {"log": ["yes"]}
    assert len(reads) == 1
    assert len(await again.events(EventKind.TOOL_REPLAYED)) == 5
    assert len(await again.calls()) == 5
