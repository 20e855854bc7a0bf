"""The engine under faults, through the public face: whatever a graph, a person or the database does, the worker goes on
and every run comes to its end.

Each test ends with the invariants, which the fixture `office` asks for.
"""

import asyncio
import operator
import time
from hashlib import sha256
from typing import Annotated, Any

import psycopg
import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from offices import LEASE_SECONDS, Office
from typing_extensions import TypedDict

from holdfast import RunStatus, govern, open_runtime
from holdfast.contracts.errors import ErrorType
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.runs import GraphVersion
from holdfast.runtime.clock import boot_seconds
from holdfast.runtime.heart import Heart
from holdfast.runtime.holds import Holds
from holdfast.runtime.leases import LeaseTerms
from holdfast.runtime.runtime import RunHandle

IN_TIME = 30.0


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    value: Any


def line(*nodes: Any, name: str, schema: Any = Log) -> Any:
    """A governed graph of these nodes, one after the other."""
    builder, before = StateGraph(schema), START
    for node in nodes:
        builder.add_node(node.__name__, node).add_edge(before, node.__name__)
        before = node.__name__
    return govern(builder.compile(), name=name)


async def first(state: Log) -> Log:
    return {"log": ["first"]}


async def last(state: Log) -> Log:
    return {"log": ["last"]}


async def kinds(run: RunHandle) -> list[str]:
    return [event.kind.value for event in await run.events()]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([float("nan"), float("-inf")], ["nan", "-inf"]),
        (b"\xff\x00", "_wA="),
        ({"of": 2**60}, {"of": str(2**60)}),
        (["\x00"], ["\ufffd"]),
    ],
    ids=["no numbers of JSON", "raw bytes", "a large integer", "NUL"],
)
async def test_run_ends_with_whatever_output(office: Office, value: Any, shown: Any):
    async def node(state: Log) -> Log:
        return {"value": value}

    async with office.open() as runtime:
        run = await runtime.start(line(node, name="odd"), {"log": []}, tenant="acme")
        result = await run.result(IN_TIME)
        assert (result.status, result.error) == (RunStatus.COMPLETED, None)
        assert result.output["value"] == shown
        assert (await kinds(run)).count("run.claimed") == 1


async def test_run_whose_graphs_go_deeper_than_the_database_can_name_fails_instead_of_being_tried_for_ever(
    office: Office,
):
    below = line(first, name="below")

    async def deep(state: Log) -> Log:
        return {"log": (await below.ainvoke({"log": []}))["log"]}

    long_name = "".join(sha256(str(n).encode()).hexdigest() for n in range(100))  # what is in no index is no trouble
    builder = StateGraph(Log).add_node(long_name, deep).add_edge(START, long_name)
    async with office.open() as runtime:
        run = await runtime.start(govern(builder.compile(), name="deep"), {"log": []}, tenant="acme")
        result = await run.result(IN_TIME)
        assert result.status is RunStatus.FAILED
        assert result.error is not None
        assert result.error.error_type is ErrorType.VALIDATION_ERROR
        assert "index row size" in result.error.message
        assert (await kinds(run)).count("run.claimed") == 1


def leaves(before: Any, update: Any) -> Any:
    if update:
        raise SystemExit(3)
    return before


class Leaving(TypedDict, total=False):
    log: Annotated[list[str], leaves]


async def test_reducer_that_ends_processes_ends_its_run_alone(office: Office):
    async def node(state: Leaving) -> Leaving:
        return {"log": ["node"]}

    async with office.open() as runtime:
        run = await runtime.start(line(node, name="leaving", schema=Leaving), {"log": []}, tenant="acme")
        result = await run.result(IN_TIME)
        assert (result.status, result.error.error_type) == (RunStatus.FAILED, ErrorType.PERMANENT_DEPENDENCY)
        assert "SystemExit" in result.error.message
        other = await runtime.start(line(first, name="other"), {"log": []}, tenant="acme")
        assert (await other.result(IN_TIME)).status is RunStatus.COMPLETED


async def test_thread_that_raises_keyboard_interrupt_fails_its_node_alone(office: Office):
    def node(state: Log) -> Log:
        raise KeyboardInterrupt

    async with office.open() as runtime:
        run = await runtime.start(line(first, node, name="keys"), {"log": []}, tenant="acme")
        result = await run.result(IN_TIME)
    assert (result.status, result.error.step_name) == (RunStatus.FAILED, "node")
    assert result.output == {"log": ["first"]}


async def test_cancelled_node_cleans_up_undisturbed_by_later_heartbeats(office: Office):
    begun, stopped, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()
    cleaned: list[str] = []

    async def node(state: Log) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
            await may_end.wait()
            cleaned.append("all of it")

    patient = {"lease_ttl_seconds": LEASE_SECONDS, "poll_seconds": 0.1, "cleanup_seconds": IN_TIME}
    async with open_runtime(office.settings(worker=patient)) as runtime:
        run = await runtime.start(line(first, node, name="tidy"), {"log": []}, tenant="acme")
        await asyncio.wait_for(begun.wait(), IN_TIME)
        await run.cancel(by="dana", reason="enough")
        await asyncio.wait_for(stopped.wait(), IN_TIME)
        for _ in range(3):
            await a_heartbeat(office, run)
        may_end.set()
        result = await run.result(IN_TIME)
    assert cleaned == ["all of it"]
    assert (result.status, result.output) == (RunStatus.CANCELLED, {"log": ["first"]})
    assert result.error.message == "cancelled by 'dana': enough"
    assert (result.error.metadata["by"], result.error.metadata["reason"]) == ("dana", "enough")


async def a_heartbeat(office: Office, run: RunHandle) -> None:
    """Wait until the run's lease has been prolonged once more."""

    async def beat() -> Any:
        async with office.database.tenant("acme") as conn:
            found = await conn.execute("select heartbeat_at from leases where run_id = %s", [run.id])
            return await found.fetchone()

    before = await beat()
    async with asyncio.timeout(IN_TIME):
        while await beat() == before:  # noqa: ASYNC110  # only the database knows
            await asyncio.sleep(0.02)


class Hanging:
    """A graph whose node hangs until it is stopped."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    def graph(self) -> Any:
        async def node(state: Log) -> None:
            self.begun.set()
            await asyncio.Event().wait()

        return line(first, node, name="hanging")


async def test_wish_of_another_process_stops_a_run_long_before_its_next_heartbeat(office: Office):
    hanging, seldom = Hanging(), {"lease_ttl_seconds": 600.0, "poll_seconds": 60.0}  # a heartbeat each two minutes
    async with open_runtime(office.settings(worker=seldom)) as runtime, office.open(worker=False) as other:
        run = await runtime.start(hanging.graph(), {"log": []}, tenant="acme")
        await asyncio.wait_for(hanging.begun.wait(), IN_TIME)
        await other.cancel(run.id, tenant="acme", by="dana", reason="enough")
        result = await (await other.run(run.id, tenant="acme")).result(IN_TIME)
    assert (result.status, result.output) == (RunStatus.CANCELLED, {"log": ["first"]})


async def test_wish_whose_notification_was_lost_is_heard_with_the_next_heartbeat(office: Office):
    hanging = Hanging()
    async with office.open() as runtime:
        run = await runtime.start(hanging.graph(), {"log": []}, tenant="acme")
        await asyncio.wait_for(hanging.begun.wait(), IN_TIME)
        wish = """update runs set cancel_requested = '{"by": "dana", "reason": "enough"}' where run_id = %s"""
        await office.alter(wish, run.id)
        result = await run.result(IN_TIME)
    assert (result.status, result.error.message) == (RunStatus.CANCELLED, "cancelled by 'dana': enough")


async def test_node_that_blocks_the_loop_for_less_than_a_lease_keeps_its_run(office: Office):
    async def node(state: Log) -> Log:
        time.sleep(LEASE_SECONDS * 0.95)  # noqa: ASYNC251  # as code does that should not
        return {"log": ["node"]}

    async with office.open() as runtime:
        run = await runtime.start(line(first, node, last, name="blocking"), {"log": []}, tenant="acme")
        result = await run.result(IN_TIME)
        claims = (await kinds(run)).count("run.claimed")
    assert (result.status, claims) == (RunStatus.COMPLETED, 1)


async def test_run_that_was_asked_to_stop_before_it_was_taken_over_keeps_its_state(office: Office):
    async def ask(state: Log) -> Log:
        return {"log": [interrupt("go on?")]}

    graph = line(first, ask, name="asked")
    async with office.open() as runtime:
        run = await runtime.start(graph, {"log": []}, tenant="acme")
        [question] = (await run.result(IN_TIME)).approvals
    async with office.open(worker=False) as runtime:
        await runtime.decide(question.id, "respond", by="dana", value="yes")
    # As a worker leaves it that is asked to stop and dies before it has.
    asked = """update runs set cancel_requested = '{"by": "dana", "reason": "enough"}' where run_id = %s"""
    await office.alter(asked, run.id)
    async with office.open(graphs=[graph]) as runtime:
        result = await (await runtime.run(run.id, tenant="acme")).result(IN_TIME)
    assert (result.status, result.output) == (RunStatus.CANCELLED, {"log": ["first"]})
    assert result.error.message == "cancelled by 'dana': enough"


async def test_claim_that_was_long_in_coming_is_no_shorter_for_it(office: Office):
    longer = office.settings(worker={"lease_ttl_seconds": 15.0})  # so that the database lets the claim wait
    async with open_runtime(longer, serve=False) as runtime:
        graph = line(first, name="slow")
        await runtime.start(graph, {"log": []}, tenant="acme")
        served = GraphVersion(graph.governance.name, graph.governance.version)
        terms = LeaseTerms(ttl_seconds=3.0)
        heart = Heart(runtime.store.heartbeat(within_seconds=terms.beat_seconds), "here", terms)
        holds = Holds(runtime.store.leases, heart, "here", terms)
        began = boot_seconds()
        beating = asyncio.create_task(heart.live(news=lambda: None))
        async with await psycopg.AsyncConnection.connect(office.urls.admin) as conn:
            await conn.execute("lock table leases in access exclusive mode")
            claiming = asyncio.create_task(holds.claim(graphs={served: served.version}, slots=1))
            while boot_seconds() < began + terms.ttl_seconds:  # noqa: ASYNC110  # as long as the claim was good for
                await asyncio.sleep(0.02)
            answered = boot_seconds()
        [hold] = await claiming
        assert hold.seconds_left() >= answered + terms.usable_seconds - boot_seconds()
        await runtime.store.runs.release(hold.owner, event=EventDraft(kind=EventKind.RUN_RELEASED))
        beating.cancel()
        await asyncio.wait([beating])


async def test_runs_go_on_when_every_connection_is_broken(office: Office):
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def node(state: Log) -> Log:
        begun.set()
        await may_go_on.wait()
        return {"log": ["node"]}

    async with office.open() as runtime:
        run = await runtime.start(line(first, node, last, name="cut"), {"log": []}, tenant="acme")
        await asyncio.wait_for(begun.wait(), IN_TIME)
        await office.alter(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and application_name ~ '^holdfast' and pid <> pg_backend_pid()"
        )
        may_go_on.set()
        result = await run.result(IN_TIME)
    assert result.status is RunStatus.COMPLETED
    assert result.output == {"log": ["first", "node", "last"]}
