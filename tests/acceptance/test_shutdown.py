"""Deployments: a worker that shuts down hands its runs over, at once if need be, and no other code carries on a run."""

import asyncio
import json
import operator
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
import staying
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime as NodeRuntime
from offices import Office
from typing_extensions import TypedDict

from holdfast import RunContext, RunStatus, govern
from holdfast.contracts.events import EventKind
from holdfast.server import bootstrap

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


class Signalled:
    """`holdfast worker` on the graph of `staying`, which is sent signals."""

    def __init__(self, office: Office, folder: Path, **environment: str) -> None:
        (folder / "langgraph.json").write_text(json.dumps({"graphs": {"staying": "staying:staying"}}), encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from staying import main; main()"],
            env=office.environment(**environment),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    async def says(self, words: str) -> None:
        """Wait until the process has said a line with these words."""

        def listen() -> list[str]:
            said: list[str] = []
            assert self.process.stdout is not None
            for line in self.process.stdout:
                said.append(line)
                if words in line:
                    return said
            raise AssertionError(f"it never said {words!r}, but: {said}")

        await asyncio.to_thread(listen)

    async def ends(self) -> int:
        return await asyncio.to_thread(self.process.wait, 60)


@contextmanager
def signalled(office: Office, folder: Path, **environment: str) -> Iterator[Signalled]:
    worker = Signalled(office, folder, **environment)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.communicate()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_hands_back_at_once_what_does_not_come_to_its_boundary(
    office: Office, tmp_path: Path, signum: signal.Signals
):
    async with office.open(worker=False) as runtime:
        run = await runtime.start(staying.staying, {}, tenant="acme")
        with signalled(office, tmp_path) as worker:
            await worker.says("at work")
            worker.process.send_signal(signum)
            await worker.says("stopping")
            assert await run.status() is RunStatus.RUNNING
            worker.process.send_signal(signum)
            await worker.says("handing back")
            await worker.says("cleaning up")
            assert await worker.ends() == 0
        left = (await runtime.show(run.id, tenant="acme")).run
        assert (left.status, left.worker_id, left.attempt) == (RunStatus.QUEUED, None, 1), "it can be claimed now"
        assert [event.kind for event in await run.events()][-1] is EventKind.RUN_RELEASED


@pytest.mark.timeout(300)
async def test_a_third_signal_ends_a_worker_that_cannot_even_hand_back(office: Office, tmp_path: Path):
    patient = {"STAYING_STUBBORN": "1", "HOLDFAST_WORKER__CLEANUP_SECONDS": "300"}
    async with office.open(worker=False) as runtime:
        await runtime.start(staying.staying, {}, tenant="acme")
        with signalled(office, tmp_path, **patient) as worker:
            await worker.says("at work")
            for said in ("stopping", "cleaning up"):
                worker.process.send_signal(signal.SIGTERM)
                await worker.says(said)
            worker.process.send_signal(signal.SIGTERM)
            assert await worker.ends() == -signal.SIGTERM


async def test_a_runtime_that_is_being_closed_can_be_told_to_hurry(office: Office, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap, "WorkerTerms", partial(bootstrap.WorkerTerms, grace_seconds=3600.0))
    begun = asyncio.Event()

    async def stay(state: Diary) -> Diary:
        begun.set()
        await asyncio.Event().wait()
        return {}

    graph = govern(StateGraph(Diary).add_node("stay", stay).add_edge(START, "stay").compile(), name="s", version="1")
    async with asyncio.timeout(60):
        async with office.open() as runtime:
            run = await runtime.start(graph, {"log": []}, tenant="acme")
            await begun.wait()
            asyncio.get_running_loop().call_later(0, runtime.hand_back)
    async with office.open(worker=False) as runtime:
        assert await (await runtime.run(run.id, tenant="acme")).status() is RunStatus.QUEUED
