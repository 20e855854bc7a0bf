"""A worker prunes in the background what the terms let go of, and never what somebody holds."""

import asyncio
import operator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import pytest
from langgraph.graph import START, StateGraph
from offices import Office
from typing_extensions import TypedDict

from holdfast import Principal, RunStatus, govern, open_runtime
from holdfast.contracts.errors import Conflict, ContentsPruned, NotFound, PolicyDenied
from holdfast.contracts.events import EventKind
from holdfast.contracts.tenancy import RetentionTerms, Tenant
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.testing.invariants import assert_invariants

IN_TIME = 30.0
AT_ONCE = RetentionTerms(events_days=0, checkpoints="keep_latest", checkpoints_days=0)
CONTENTS = (Tenant(tenant_id="acme", retention=RetentionTerms(contents_days=0)), Tenant(tenant_id="bolt"))
PRUNING = {
    "tenants": (Tenant(tenant_id="acme", retention=AT_ONCE), Tenant(tenant_id="bolt")),
    "worker": {"lease_ttl_seconds": 2.0, "poll_seconds": 0.1, "prune_seconds": 0.2},
    "principals": {
        "dana": Principal(user_id="dana", tenants=("acme",), roles=("approver",)),
        "root": Principal(user_id="root", tenants=("acme",), roles=("admin",)),
        "mallory": Principal(user_id="mallory", tenants=("bolt",), roles=("admin",)),
    },
}


class Talk(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def talk() -> Any:
    async def answer(state: Talk) -> Talk:
        if "break" in state["log"]:
            raise ValueError("as asked")
        return {"log": ["answered"]}

    return govern(StateGraph(Talk).add_node("answer", answer).add_edge(START, "answer").compile(), name="talk")


def opened(office: Office, *, worker: bool = True, **settings: Any) -> AbstractAsyncContextManager[Runtime]:
    return open_runtime(office.settings(**PRUNING | settings), graphs=[talk()], serve=worker)


async def pruned(runtime: Runtime, run: RunHandle, *, times: int = 1) -> list[Any]:
    """What is left of a run's events, once so much has been pruned."""
    async with asyncio.timeout(IN_TIME):
        while True:
            left = await run.events()
            if sum(event.kind is EventKind.RUN_PRUNED for event in left) >= times:
                return list(left)
            await asyncio.sleep(0.05)


async def test_ended_run_is_pruned_verified_and_its_thread_begins_anew(office: Office):
    async with opened(office) as runtime:
        run = await runtime.start("talk", {"log": ["asked"]}, tenant="acme", thread="t")
        assert (await run.result(IN_TIME)).output == {"log": ["asked", "answered"]}
        left = await pruned(runtime, run, times=2)
        assert left[0].kind is EventKind.RUN_COMPLETED
        assert {tuple(event.payload) for event in left[1:]} == {("days", "events"), ("checkpoints", "kept")}
        assert (await runtime.verify_events(run.id, tenant="acme")).ok
        assert await office.checkpoints(runtime, run.id) == []
        assert (await runtime.show(run.id, tenant="acme")).run.output == {"log": ["asked", "answered"]}
        again = await runtime.start("talk", {"log": ["asked again"]}, tenant="acme", thread="t")
        assert (await again.result(IN_TIME)).output == {"log": ["asked again", "answered"]}
        other = await runtime.start("talk", {"log": []}, tenant="bolt")
        await other.result(IN_TIME)
        await pruned(runtime, again)
        assert (await other.events())[0].kind is EventKind.RUN_ADMITTED
    await assert_invariants(office.database)


async def test_run_whose_checkpoints_are_gone_is_neither_resumed_nor_replayed(office: Office):
    async with opened(office) as runtime:
        run = await runtime.start("talk", {"log": ["break"]}, tenant="acme")
        assert (await run.result(IN_TIME)).status is RunStatus.FAILED
        await pruned(runtime, run, times=2)
        with pytest.raises(Conflict, match=r"checkpoints .* were pruned"):
            await runtime.resume(run.id, tenant="acme", by="root")
        with pytest.raises(Conflict, match="some was pruned"):
            await runtime.replay(run.id, tenant="acme", by="root")


async def test_held_run_is_not_pruned_until_an_admin_lifts_the_hold(office: Office):
    async with opened(office, worker=False) as runtime:
        held = await runtime.start("talk", {"log": []}, tenant="acme")
        with pytest.raises(NotFound):
            await runtime.hold(held.id, tenant="acme", by="mallory")
        await runtime.hold(held.id, tenant="acme", by="dana", reason="a claim")
    async with opened(office) as runtime:
        other = await runtime.start("talk", {"log": []}, tenant="acme")
        held = await runtime.run(held.id, tenant="acme")
        assert {(await run.result(IN_TIME)).status for run in (held, other)} == {RunStatus.COMPLETED}
        await pruned(runtime, other)
        assert (await held.events())[0].kind is EventKind.RUN_ADMITTED
        assert len(await office.checkpoints(runtime, held.id)) > 1
        with pytest.raises(PolicyDenied, match="role admin"):
            await runtime.lift(held.id, tenant="acme", by="dana")
        await runtime.lift(held.id, tenant="acme", by="root", reason="settled")
        assert (await pruned(runtime, held))[0].kind is EventKind.RUN_COMPLETED
    await assert_invariants(office.database)


async def test_contents_of_an_ended_run_are_pruned_and_what_is_left_tells_when(office: Office):
    async with opened(office, tenants=CONTENTS) as runtime:
        run = await runtime.start("talk", {"log": ["asked"]}, tenant="acme", thread="t")
        await run.result(IN_TIME)
        told = (await pruned(runtime, run))[-1]
        assert dict(told.payload) == {"contents": 1, "days": 0}
        result, report = await run.result(), await runtime.show(run.id, tenant="acme")
        at = result.contents_pruned_at
        assert at is not None
        assert (result.status, result.output, report.run.contents_pruned_at) == (RunStatus.COMPLETED, None, at)
        assert report.budget.spent.steps == 1
        assert (await runtime.verify_events(run.id, tenant="acme")).ok
        again = await runtime.start("talk", {"log": ["asked again"]}, tenant="acme", thread="t")
        assert (await again.result(IN_TIME)).usage.steps == 1
        said = ["asked", "answered", "asked again", "answered"]
        assert await runtime.state("t", tenant="acme") == {"log": said}, "the thread goes on from its checkpoints"
    await assert_invariants(office.database)


async def test_run_without_its_contents_is_neither_resumed_forked_nor_replayed_and_is_told_why(office: Office):
    async with opened(office, tenants=CONTENTS) as runtime:
        run = await runtime.start("talk", {"log": ["break"]}, tenant="acme")
        assert (await run.result(IN_TIME)).status is RunStatus.FAILED
        await pruned(runtime, run)
        result = await run.result()
        assert result.error is not None
        assert (result.error.step_name, result.error.message) == (
            "answer",
            "what it said was pruned (contents_days)",
        )
        for act, what in (
            (runtime.resume, "nothing can go on from it"),
            (runtime.fork, "nothing can be forked from it"),
            (runtime.replay, "cannot be replayed"),
        ):
            with pytest.raises(ContentsPruned, match=f"pruned on .* UTC by its tenant's term contents_days: .*{what}"):
                await act(run.id, tenant="acme", by="root")
        assert len(await runtime.runs(tenant="acme")) == 1
    await assert_invariants(office.database)


async def test_run_that_is_resumed_before_its_days_are_over_keeps_what_the_resumed_one_needs(office: Office):
    async with opened(office, worker=False, tenants=CONTENTS) as runtime:
        run = await runtime.start("talk", {"log": ["break"]}, tenant="acme")
    async with opened(office, tenants=(Tenant(tenant_id="acme"), Tenant(tenant_id="bolt"))) as runtime:
        run = await runtime.run(run.id, tenant="acme")
        assert (await run.result(IN_TIME)).status is RunStatus.FAILED
    async with opened(office, worker=False, tenants=CONTENTS) as runtime:
        again = await runtime.resume(run.id, tenant="acme", by="root")
        assert list(await runtime.store.retention.prune(run.tenant_id)) == []
    async with opened(office, tenants=CONTENTS) as runtime:
        again = await runtime.run(again.id, tenant="acme")
        assert (await again.result(IN_TIME)).status is RunStatus.FAILED
        await pruned(runtime, again)
        await pruned(runtime, await runtime.run(run.id, tenant="acme"))
    await assert_invariants(office.database)
