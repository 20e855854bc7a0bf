"""Deployments: a worker that shuts down hands its runs over, and a run is not carried on by other code."""

import asyncio
import operator
from typing import Annotated, Any

from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from offices import Office
from typing_extensions import TypedDict

from holdfast import RunContext, RunStatus, govern
from holdfast.contracts.events import EventKind

IN_TIME = 20.0


class Diary(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


class Stage:
    """A graph of two nodes, whose first one works on until it sees that its worker is to stop."""

    def __init__(self) -> None:
        self.played: list[str] = []
        self.entered = asyncio.Event()

    def graph(self) -> Any:
        async def first(state: Diary, runtime: NodeRuntime[RunContext]) -> Diary:
            self.played.append("first")
            self.entered.set()
            async with asyncio.timeout(IN_TIME):
                while not runtime.drain_requested:  # noqa: ASYNC110  # LangGraph tells it in no other way
                    await asyncio.sleep(0.01)
            return {"log": ["first"]}

        def second(state: Diary) -> Diary:
            self.played.append("second")
            return {"log": ["second"]}

        builder = StateGraph(Diary, context_schema=RunContext).add_node("first", first).add_node("second", second)
        builder.add_edge(START, "first").add_edge("first", "second")
        return govern(builder.compile(), name="stage", version="1")


def written(version: str, played: list[str]) -> Any:
    def note(state: Diary) -> Diary:
        played.append(version)
        return {"log": [version]}

    return govern(
        StateGraph(Diary).add_node("note", note).add_edge(START, "note").compile(), name="noted", version=version
    )


async def test_worker_that_shuts_down_lets_a_run_reach_its_boundary_and_another_goes_on_from_there(office: Office):
    stage = Stage()
    async with office.open() as runtime:
        run = await runtime.start(stage.graph(), {"log": []}, tenant="acme")
        await asyncio.wait_for(stage.entered.wait(), IN_TIME)
    assert stage.played == ["first"]

    async with office.open(worker=False) as runtime:
        left = (await runtime.show(run.id, tenant="acme")).run
        assert (left.status, left.attempt) == (RunStatus.QUEUED, 1)
        newest = (await office.checkpoints(runtime, run.id))[0]
        assert newest.metadata["step"] == 1

    async with office.open(graphs=[stage.graph()]) as runtime:
        result = await (await runtime.run(run.id, tenant="acme")).result(IN_TIME)
        done = (await runtime.show(run.id, tenant="acme")).run
        kinds = [event.kind for event in await runtime.events(run.id, tenant="acme")]
    assert (result.status, result.output["log"]) == (RunStatus.COMPLETED, ["first", "second"])
    assert stage.played == ["first", "second"], "what was checkpointed is not run again"
    assert (done.attempt, done.takeovers) == (2, 0), "a shutdown is no lost worker"
    assert kinds.count(EventKind.NODE_STARTED) == 2


async def test_run_waits_for_its_own_version_while_a_newer_one_is_served(office: Office):
    played: list[str] = []
    async with office.open(worker=False) as runtime:
        run = await runtime.start(written("1", played), {"log": []}, tenant="acme")
    async with office.open(graphs=[written("2", played)]) as runtime:
        newer = await runtime.start("noted", {"log": []}, tenant="acme")
        assert (await newer.result(IN_TIME)).status is RunStatus.COMPLETED
        assert await (await runtime.run(run.id, tenant="acme")).status() is RunStatus.QUEUED
    assert played == ["2"], "the younger run went before: no other code than its own carries the older one on"

    async with office.open(graphs=[written("1", played), written("2", played)]) as runtime:
        result = await (await runtime.run(run.id, tenant="acme")).result(IN_TIME)
    assert (result.status, played) == (RunStatus.COMPLETED, ["2", "1"])
