"""A database that says nothing: it holds no run past its lease, and what it did all the same is not done again.

The worker under test reaches its database through a proxy; another one, where there is one, directly.
"""

import asyncio
import operator
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Annotated, Any

import pytest
from fix_proxy import Proxy
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from offices import Office
from typing_extensions import TypedDict

from holdfast import RunContext, RunStatus, ToolCall, govern, open_runtime, tool
from holdfast.contracts.errors import StoreUnavailable
from holdfast.contracts.events import EventKind
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.testing.invariants import assert_invariants

IN_TIME = 60.0
UNHURRIED = {"lease_ttl_seconds": 5.0, "poll_seconds": 30.0}
"""A worker that looks at its queue so seldom that nothing in time can be owed to that."""


class Diary(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


class Stage:
    """A graph whose only node waits in the first attempt, then asks the database for something."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.attempts = 0
        self.failed_with: list[tuple[float, BaseException]] = []
        self.begun_at: list[float] = []

    def graph(self) -> Any:
        async def first(state: Diary) -> Diary:
            return {"log": ["first"]}

        async def second(state: Diary, runtime: NodeRuntime[RunContext]) -> Diary:
            self.attempts += 1
            self.begun_at.append(time.monotonic())
            if self.attempts == 1:
                self.entered.set()
                await self.may_go_on.wait()
            try:
                await runtime.context.tools.call("note", {"text": "here"})
            except BaseException as error:
                self.failed_with.append((time.monotonic(), error))
                raise
            return {"log": ["second"]}

        builder = StateGraph(Diary, context_schema=RunContext).add_node("first", first).add_node("second", second)
        builder.add_edge(START, "first").add_edge("first", "second")
        return govern(builder.compile(), name="stage", version="1", tools=[note])


@tool(effect="read")
async def note(text: str) -> str:
    """Say it again."""
    return text


def working(office: Office, stage: Stage, **settings: Any) -> AbstractAsyncContextManager[Runtime]:
    return open_runtime(office.settings(worker=UNHURRIED, **settings), graphs=[stage.graph()])


async def claims(runtime: Runtime, run: RunHandle) -> list[Any]:
    events = await runtime.events(run.id, tenant="acme")
    return [event for event in events if event.kind is EventKind.RUN_CLAIMED]


async def lease(office: Office, run: RunHandle) -> Any:
    async with office.database.tenant("acme") as conn:
        found = await conn.execute(
            "select expires_at, heartbeat_at, extract(epoch from clock_timestamp() - heartbeat_at)::float8 as age "
            "from leases where run_id = %s",
            [run.id],
        )
        return await found.fetchone()


async def prolonged(office: Office, run: RunHandle) -> None:
    """Wait until the run's lease has been prolonged once more."""
    before = (await lease(office, run))["heartbeat_at"]
    async with asyncio.timeout(IN_TIME):
        while (await lease(office, run))["heartbeat_at"] == before:  # noqa: ASYNC110  # only the database knows
            await asyncio.sleep(0.02)


async def test_run_under_a_deaf_database_lets_go_in_time_and_another_worker_takes_it_as_the_lease_ends(
    office: Office, proxy: Proxy
):
    stage = Stage()
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        deaf = await first.enter_async_context(working(office, stage, DATABASE_URL=proxy.url))
        stack.push_async_callback(first.aclose)
        run = await deaf.start(stage.graph(), {"log": []}, tenant="acme")
        await asyncio.wait_for(stage.entered.wait(), IN_TIME)
        other = await stack.enter_async_context(working(office, stage))
        proxy.deaf()
        left = (await lease(office, run))["expires_at"]
        stage.may_go_on.set()
        result = await (await other.run(run.id, tenant="acme")).result(IN_TIME)
        assert (result.status, result.output) == (RunStatus.COMPLETED, {"log": ["first", "second"]})
        [_, taken] = await claims(other, run)
        assert 0 <= (taken.at - left).total_seconds() < UNHURRIED["poll_seconds"] / 4
        [(failed_at, error)] = stage.failed_with
        assert isinstance(error, StoreUnavailable | asyncio.CancelledError)
        assert failed_at < stage.begun_at[1], "the first had let go before the second began"
        began = time.monotonic()
        await first.aclose()
        assert time.monotonic() - began < 45, "a process ends although its database says nothing"
        proxy.start()


async def test_worker_whose_heartbeat_alone_gets_no_answer_loses_its_run_and_writes_nothing(
    office: Office, proxy: Proxy
):
    stage = Stage()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(working(office, stage, DATABASE_URL=proxy.url))
        run = await first.start(stage.graph(), {"log": []}, tenant="acme")
        await asyncio.wait_for(stage.entered.wait(), IN_TIME)
        proxy.deaf(to=b"heartbeat")
        other = await stack.enter_async_context(working(office, stage))
        result = await (await other.run(run.id, tenant="acme")).result(IN_TIME)
        assert result.status is RunStatus.COMPLETED
        assert len(await claims(other, run)) == 2
        stage.may_go_on.set()
        events = await other.events(run.id, tenant="acme")
        assert [event.attempt for event in events if event.kind is EventKind.NODE_COMPLETED] == [1, 2]


@pytest.mark.parametrize("trouble", ["cut", "deaf for a while", "slow"])
async def test_trouble_of_the_heartbeat_that_is_shorter_than_the_lease_costs_nothing(
    office: Office, proxy: Proxy, trouble: str
):
    stage = Stage()
    async with working(office, stage, DATABASE_URL=proxy.url) as runtime:
        run = await runtime.start(stage.graph(), {"log": []}, tenant="acme")
        await asyncio.wait_for(stage.entered.wait(), IN_TIME)
        await prolonged(office, run)
        match trouble:
            case "cut":
                proxy.cut(of=b"heartbeat")
            case "slow":
                proxy.slow(0.1)
            case _:
                proxy.deaf(to=b"heartbeat")
                async with asyncio.timeout(IN_TIME):
                    while (await lease(office, run))["age"] < 1.5:  # noqa: ASYNC110  # a beat and a half
                        await asyncio.sleep(0.02)
                proxy.start()
        for _ in range(3):
            await prolonged(office, run)
        stage.may_go_on.set()
        result = await run.result(IN_TIME)
        assert (result.status, len(await claims(runtime, run))) == (RunStatus.COMPLETED, 1)


class World:
    """The outside, which knows a payment again by its key."""

    def __init__(self) -> None:
        self.paid: dict[str, str] = {}
        self.asked = False

    def graph(self, proxy: Proxy, lose: bytes) -> Any:
        @tool(effect="write", idempotent=True)
        async def pay(order: str, *, call: ToolCall) -> str:
            """Pay an order."""
            self.paid.setdefault(call.idempotency_key, order)
            return f"receipt of {order}"

        async def act(state: Diary, runtime: NodeRuntime[RunContext]) -> Diary:
            if not self.asked:
                proxy.lose_answer(lose, cut=True)
            self.asked = True
            result = await runtime.context.tools.call("pay", {"order": "A-17"})
            return {"log": [result.text]}

        builder = StateGraph(Diary, context_schema=RunContext).add_node("act", act).add_edge(START, "act")
        return govern(builder.compile(), name="pay", version="1", tools=[pay])


@pytest.mark.parametrize("lose", [b"A-17", b"receipt of A-17"], ids=["intent", "outcome"])
async def test_call_whose_record_got_no_answer_is_made_once_and_its_run_ends(office: Office, proxy: Proxy, lose: bytes):
    world = World()
    async with office.open(DATABASE_URL=proxy.url) as runtime:
        run = await runtime.start(world.graph(proxy, lose), {"log": []}, tenant="acme")
        result = await run.result(IN_TIME)
    assert proxy.answers_lost > 0
    assert (result.status, result.output) == (RunStatus.COMPLETED, {"log": ["receipt of A-17"]}), result.error
    assert list(world.paid.values()) == ["A-17"]


async def test_run_that_lost_the_database_for_a_moment_goes_on_at_once_and_not_when_its_lease_ends(
    office: Office, proxy: Proxy
):
    stage = Stage()
    stage.may_go_on.set()
    long_lease = {"lease_ttl_seconds": 600.0, "poll_seconds": 30.0}
    settings = office.settings(DATABASE_URL=proxy.url, worker=long_lease)
    async with open_runtime(settings, graphs=[stage.graph()]) as runtime:
        proxy.lose_answer(b"run.completed", cut=True)
        proxy.lose_answer(b"run.released", times=2, cut=True)
        run = await runtime.start(stage.graph(), {"log": []}, tenant="acme")
        result = await run.result(IN_TIME)
        done = (await runtime.show(run.id, tenant="acme")).run
        kinds = [event.kind for event in await run.events()]
    assert proxy.answers_lost == 3, "the end was not written, and neither was the first that gave the run back"
    assert (result.status, result.output) == (RunStatus.COMPLETED, {"log": ["first", "second"]}), result.error
    assert (done.attempt, done.takeovers) == (2, 0)
    assert kinds.count(EventKind.RUN_RELEASED) == 1
    assert stage.attempts == 1, "what was checkpointed is not run again"
    await assert_invariants(office.database)


async def test_claim_whose_answer_was_lost_is_not_waited_out(office: Office, proxy: Proxy):
    stage = Stage()
    stage.may_go_on.set()
    long_lease = {"lease_ttl_seconds": 600.0, "poll_seconds": 0.2}
    settings = office.settings(DATABASE_URL=proxy.url, worker=long_lease)
    async with office.open(worker=False) as elsewhere:
        run = await elsewhere.start(stage.graph(), {"log": []}, tenant="acme")
        proxy.lose_answer(b"t.thread_key, t.fork", cut=True)  # the claim is committed, and what was claimed not read
        async with open_runtime(settings, graphs=[stage.graph()]):
            result = await run.result(IN_TIME)
        done = (await elsewhere.show(run.id, tenant="acme")).run
    assert proxy.answers_lost == 1
    assert (result.status, done.attempt, done.takeovers) == (RunStatus.COMPLETED, 2, 1)
