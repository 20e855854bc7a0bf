"""The story of a tenant: everything that a request of one tenant can come to, through the public face, and through the
ports below it where it takes an accident to get there. Whatever it says or keeps has the tenant's name in it.
"""

import asyncio
import operator
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any

import pytest
from fix_database import DatabaseUrls
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import _messages_delta_reducer
from langgraph.runtime import Runtime as NodeRuntime
from langgraph.types import interrupt
from scenes import FAILED, INTENDED, LOST, RETRIED, RETURNED, Scene, event, intent, new_id, outcome
from typing_extensions import TypedDict

from holdfast import Limits, Principal, RunContext, ToolCall, govern, open_runtime, tool
from holdfast.checkpoints.database import Database
from holdfast.checkpoints.saver import saver_for
from holdfast.checkpoints.store import PostgresStore
from holdfast.contracts.calls import OutcomeStatus
from holdfast.contracts.errors import BudgetExceeded, Conflict, ErrorType, HoldfastError, LeaseLost, PolicyDenied
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Usage
from holdfast.contracts.models import ModelRequest
from holdfast.contracts.runs import Owner, RunStatus, owner_of
from holdfast.contracts.tenancy import RetentionTerms, Tenant
from holdfast.contracts.tools import Effect
from holdfast.nodes.fanout import Specialist, fan_out
from holdfast.runtime.entropy import SystemIds
from holdfast.runtime.runtime import RunHandle, Runtime
from holdfast.server.settings import load_settings

IN_TIME = 20.0
TENANTS = ("acme-inc", "bolt-inc")
"""Of names that are equally long, and in no text by chance."""
NOTHING_GOES = RetentionTerms()
AT_ONCE = RetentionTerms(events_days=0, checkpoints="keep_latest", checkpoints_days=0)
CONTENTS = RetentionTerms(contents_days=0)
LATEST_ALONE = RetentionTerms(checkpoints="keep_latest", checkpoints_days=1)


class Sale(TypedDict, total=False):
    order: str
    log: Annotated[list[str], operator.add]


class Talk(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], DeltaChannel(_messages_delta_reducer, snapshot_frequency=50)]


def answer(request: ModelRequest) -> str:
    """The model."""
    return f"answered: {request.messages[-1]['content']}"


@tool(effect="external")
async def pay(order: str, *, call: ToolCall) -> dict[str, str]:
    """Pay an order, which a person must approve."""
    return {"paid": order, "key": call.idempotency_key}


async def plan(state: Sale, runtime: NodeRuntime[RunContext]) -> Sale:
    reply = await runtime.context.models.call(f"plan {state['order']}")

    async def look() -> str:
        return (await runtime.context.models.call(f"look at {state['order']}")).content

    [found] = await fan_out([Specialist("looker", look, budget_share=0.5)], limit=1)
    return {"log": [reply.content, str(found.value)]}


async def settle(state: Sale, runtime: NodeRuntime[RunContext]) -> Sale:
    result = await runtime.context.tools.call("pay", {"order": state["order"]})
    return {"log": [result.text]}


def confirm(state: Sale) -> Sale:
    return {"log": [f"{state['order']}: {interrupt({'question': state['order']})}"]}


def fail(state: Sale) -> Sale:
    raise ValueError(f"there is no {state['order']}")


def say(state: Talk) -> Talk:
    return {"messages": [AIMessage(f"{state['messages'][0].text} again")]}


def _graph(name: str, schema: Any, *nodes: Any) -> Any:
    builder = StateGraph(schema, context_schema=RunContext)
    for node in nodes:
        builder.add_node(node.__name__, node)
    for edge in pairwise([START, *(node.__name__ for node in nodes), END]):
        builder.add_edge(*edge)
    return govern(builder.compile(), name=name, version="1", tools=[pay], default_model="scripted:stories:answer")


GRAPHS = {
    "selling": _graph("selling", Sale, plan, settle, confirm),
    "failing": _graph("failing", Sale, plan, fail),
    "talking": _graph("talking", Talk, say),
}


@dataclass
class Story:
    """What happens to one tenant, in a database that others share."""

    tenant: str
    urls: DatabaseUrls

    @property
    def people(self) -> Mapping[str, Principal]:
        roles = ("approver", "operator", "admin")
        return {
            f"dana of {self.tenant}": Principal(user_id=f"dana of {self.tenant}", tenants=(self.tenant,), roles=roles)
        }

    @property
    def dana(self) -> str:
        return f"dana of {self.tenant}"

    def terms(self, retention: RetentionTerms = NOTHING_GOES) -> Tenant:
        return Tenant(tenant_id=self.tenant, retention=retention, budget=Limits(max_cost_usd="1000"))

    async def play(self) -> None:
        """All of it, beginning with a database that knows nothing of the tenant."""
        settings = load_settings(
            DATABASE_URL=self.urls.app,
            tenants=[self.terms()],
            principals=self.people,
            worker={"lease_ttl_seconds": 15.0, "poll_seconds": 0.05},
        )
        async with open_runtime(settings, graphs=GRAPHS.values()) as runtime:
            sold = await self._sells(runtime)
            await self._looks(runtime, sold)
            await self._goes_back(runtime, sold)
            await self._stops(runtime)
            await self._talks(runtime)
        async with Database(self.urls.app) as database:
            behind = Behind(self, database)
            await behind.makes_calls()
            await behind.asks()
            await behind.is_hosted()
            await behind.loses_its_lease()
            await behind.moves_checkpoints()
            await behind.prunes()
            await behind.looks_around()
            await behind.leaves_things_open()

    def order(self, what: str = "order") -> dict[str, str]:
        return {"order": f"the {what} of {self.tenant}"}

    async def starts(self, runtime: Runtime, graph: str, thread: str, **options: Any) -> RunHandle:
        thread, given = f"{thread} of {self.tenant}", self.order(thread)
        return await runtime.start(graph, given, tenant=self.tenant, user=self.dana, thread=thread, **options)

    async def _sells(self, runtime: Runtime) -> RunHandle:
        run_id = new_id()
        run = await self.starts(runtime, "selling", "sale", run_id=run_id)
        assert (await self.starts(runtime, "selling", "sale", run_id=run_id)).id == run.id
        seen = [event async for event in run.follow(until="rest")]
        assert seen[-1].kind is EventKind.RUN_INTERRUPTED
        [asked] = (await run.result(IN_TIME)).approvals
        assert len(await runtime.approvals(tenant=self.tenant, thread=f"sale of {self.tenant}")) == 1
        await runtime.decide(asked.id, "approve", by=self.dana)
        [asked] = (await run.result(IN_TIME)).approvals
        await runtime.decide(asked.id, "respond", by=self.dana, value=f"yes, says {self.tenant}")
        assert (await run.result(IN_TIME)).status is RunStatus.COMPLETED
        return run

    async def _looks(self, runtime: Runtime, run: RunHandle) -> None:
        assert await runtime.runs(tenant=self.tenant, thread=f"sale of {self.tenant}", status="completed")
        assert (await runtime.show(run.id, tenant=self.tenant)).calls
        assert await run.events(after=3)
        assert (await runtime.verify_events(run.id, tenant=self.tenant)).ok
        assert all([found.ok async for found in runtime.verify_all_events(tenant=self.tenant)])
        assert await runtime.state(f"sale of {self.tenant}", tenant=self.tenant)

    async def _goes_back(self, runtime: Runtime, run: RunHandle) -> None:
        history = await runtime.history(f"sale of {self.tenant}", tenant=self.tenant, by=self.dana)
        before = history[-1].checkpoint_id
        await runtime.history(run.id, tenant=self.tenant, by=self.dana, limit=1, before=history[0].checkpoint_id)
        await runtime.state(run.id, tenant=self.tenant, at=before, by=self.dana)
        fork = await runtime.fork(
            run.id, tenant=self.tenant, by=self.dana, at=history[2].checkpoint_id, thread=f"fork of {self.tenant}"
        )
        assert (await fork.result(IN_TIME)).status is RunStatus.INTERRUPTED
        await runtime.hold(fork.id, tenant=self.tenant, by=self.dana, reason=f"a claim of {self.tenant}")
        await runtime.replay(run.id, tenant=self.tenant, by=self.dana)

    async def _stops(self, runtime: Runtime) -> None:
        run = await self.starts(runtime, "failing", "failure")
        assert (await run.result(IN_TIME)).status is RunStatus.FAILED
        again = await runtime.resume(run.id, tenant=self.tenant, by=self.dana)
        assert (await again.result(IN_TIME)).status is RunStatus.FAILED
        run = await self.starts(runtime, "selling", "cancellation")
        await run.result(IN_TIME)
        await run.cancel(by=self.dana, reason=f"not needed by {self.tenant}")
        again = await runtime.resume(run.id, tenant=self.tenant, by=self.dana)
        assert (await again.result(IN_TIME)).status is RunStatus.INTERRUPTED
        await runtime.hold(run.id, tenant=self.tenant, by=self.dana)
        await runtime.lift(run.id, tenant=self.tenant, by=self.dana)

    async def _talks(self, runtime: Runtime) -> None:
        thread = f"talk of {self.tenant}"
        for _ in range(2):
            given = {"messages": [AIMessage(f"hello, {self.tenant}")]}
            run = await runtime.start("talking", given, tenant=self.tenant, user=self.dana, thread=thread)
            assert (await run.result(IN_TIME)).status is RunStatus.COMPLETED
        await runtime.history(thread, tenant=self.tenant, by=self.dana)


class Behind:
    """The part of a story for which somebody has to be unlucky, or a host of their own: through the ports."""

    def __init__(self, story: Story, database: Database) -> None:
        self.story = story
        self.tenant = story.tenant
        self.database = database
        self.store = PostgresStore(database, SystemIds())
        self.scene = Scene(self.store, graph=f"desk of {story.tenant}")
        [self.dana] = story.people.values()

    async def running(self, *, ttl: float = 3600, **changes: Any) -> Owner:
        asked = {"input": f'{{"email": "{self.tenant}"}}'.encode(), "context": {"tone": self.tenant}, **changes}
        run = await self.store.runs.admit(self.scene.request(self.tenant, f"{new_id()} of {self.tenant}", **asked))
        claims = await self.scene.claim(tenants=[self.tenant], ttl=ttl)
        return next(claim.owner for claim in claims if claim.run_id == run.run_id)

    def intent(self, owner: Owner, **changes: Any) -> Any:
        return intent(owner, args={"order": f"of {self.tenant}", "n": new_id()}, **changes)

    async def makes_calls(self) -> None:
        journal, owner = self.store.journal, await self.running()
        first = self.intent(owner)
        await journal.open(owner, first, event=INTENDED)
        assert await journal.find(owner.tenant_id, owner.thread_id, first.identity.key)
        trouble = {"error_type": ErrorType.TIMEOUT, "error_message": f"late, {self.tenant}"}
        await journal.close(owner, outcome(first.call_id, OutcomeStatus.UNKNOWN, **trouble), event=LOST)
        await journal.resend(owner, first.call_id, reservation=Usage(tool_calls=1), event=RETRIED)
        trouble = {"error_type": ErrorType.TRANSIENT_DEPENDENCY, "error_message": f"not now, {self.tenant}"}
        await journal.close(owner, outcome(first.call_id, OutcomeStatus.FAILED, **trouble), event=FAILED)
        await journal.open(owner, replace(first, call_id=new_id()), event=INTENDED)  # its failure may be tried again
        await self.writes_at_once(owner)
        asked = await self.scene.asked(owner, second := self.intent(owner), args_digest="d")
        await self.scene.decide(asked, by=self.dana, granted="d")
        await journal.open(owner, replace(second, grant=asked.id), event=INTENDED)
        await journal.close(owner, outcome(second.call_id, response={"to": self.tenant}), event=RETURNED)
        await refused(PolicyDenied, journal.open(owner, replace(self.intent(owner), grant=asked.id), event=INTENDED))
        share = {"parent": owner.run_id, "share_key": f"share of {self.tenant}", "limits": Limits(max_model_calls=1)}
        for _ in range(2):
            await self.store.ledger.open_share(owner, **share, event=event(EventKind.BUDGET_OPENED))
        await refused(
            BudgetExceeded, journal.open(owner, self.intent(owner, reservation=Usage(tool_calls=10**6)), event=INTENDED)
        )
        await self.store.ledger.tenant_budget(self.tenant)
        await self.store.runs.release(owner, event=event(EventKind.RUN_RELEASED))

    async def writes_at_once(self, owner: Owner) -> None:
        """A checkpoint, what a task has written, an intent and an event, in one flush."""
        saver, known = saver_for(self.database, owner), empty_checkpoint()
        place = {"configurable": {"thread_id": owner.thread_id, "checkpoint_ns": "", "checkpoint_id": known["id"]}}
        versions = {"said": "1"}
        known |= {"channel_values": {"said": [self.tenant]}, "channel_versions": versions}
        async with asyncio.TaskGroup() as writing:
            writing.create_task(self.store.journal.open(owner, self.intent(owner), event=INTENDED))
            writing.create_task(saver.aput(place, known, {"step": 1}, versions))
            writing.create_task(saver.aput_writes(place, [("said", [self.tenant])], f"task-{owner.run_id}"))
            writing.create_task(self.store.events.append(owner, [event(EventKind.NODE_STARTED, task_id="at once")]))

    async def reads_at_once(self, owner: Owner) -> None:
        async with asyncio.TaskGroup() as reading:
            place = {"configurable": {"thread_id": owner.thread_id, "checkpoint_ns": ""}}
            reading.create_task(saver_for(self.database, owner).aget_tuple(place))
            task_id = f"task-{owner.run_id}"
            reading.create_task(self.store.journal.of_task(owner.tenant_id, owner.thread_id, task_id))
            reading.create_task(self.store.approvals.of_task(owner.tenant_id, owner.thread_id, task_id))

    async def asks(self) -> None:
        owner = await self.running()
        soon = await self.scene.asked(owner, expires_in_seconds=0.001)
        await self.scene.rest(owner)
        assert [each.id for each in await self.store.approvals.expire(principal=self.dana)] == [soon.id]
        assert await self.store.approvals.get(owner.tenant_id, soon.id)
        assert await self.store.approvals.of_interrupt(owner.tenant_id, owner.thread_id, soon.interrupt_id)
        assert await self.store.approvals.of_task(owner.tenant_id, owner.thread_id, soon.task_id)
        await refused(Conflict, self.scene.decide(soon, by=self.dana))
        await self.store.runs.request_cancel(self.dana, owner.tenant_id, owner.run_id, reason=self.tenant)

    async def is_hosted(self) -> None:
        run = await self.store.runs.admit(self.scene.request(self.tenant, f"hosted of {self.tenant}", attached=True))
        owner = replace(owner_of(run), worker_id="studio", attached=True)
        started = event(EventKind.NODE_STARTED)
        await self.store.runs.begin_step(owner, node="draft", task_id="t", event=started)
        await self.store.journal.open(owner, self.intent(owner), event=INTENDED)
        asked = await self.scene.asked(owner)
        await self.scene.rest(owner)
        await self.scene.decide(asked, by=self.dana)
        await self.store.runs.reattach(self.dana, run.tenant.tenant_id, run.run_id, served_by="1")

    async def loses_its_lease(self) -> None:
        owner = await self.running(ttl=0.001)
        lost = await self.store.leases.seconds_to_next_expiry()
        assert lost is None or lost
        await self.store.leases.disown("worker-0", held=[owner.run_id])
        [taken] = [claim for claim in await self.scene.claim(tenants=[self.tenant]) if claim.run_id == owner.run_id]
        await refused(LeaseLost, self.store.events.append(owner, [event(EventKind.NODE_STARTED)]))
        await self.scene.renew("worker-1", [taken.owner], ttl_seconds=30)
        running = await self.store.runs.request_cancel(self.dana, owner.tenant_id, owner.run_id, reason=self.tenant)
        assert running.status is RunStatus.RUNNING
        await self.store.journal.open(taken.owner, self.intent(taken.owner, effect=Effect.READ), event=INTENDED)
        await self._ends(taken.owner, RunStatus.CANCELLED)

    async def moves_checkpoints(self) -> None:
        owner = await self.running()
        saver, [thread, *_] = saver_for(self.database, owner), await self._threads()
        await saver.acopy_thread(thread, new_id())
        copy = new_id()
        await saver.acopy_thread(thread, copy)
        await saver.aprune([copy])
        await saver.adelete_thread(copy)
        await saver.adelete_for_runs([new_id()])
        assert [
            each async for each in saver.alist({"configurable": {"thread_id": thread}}, filter={"step": 1}, limit=1)
        ]
        await self._ends(owner)

    async def looks_around(self) -> None:
        """What a worker and whoever looks after it ask."""
        await self.store.workers.alive()
        await self.store.workers.wanted()
        await self.store.workers.claimable(["selling"])
        assert await self.store.tenants.names(principal=self.dana) == [self.tenant]
        assert await self.store.runs.thread_id(self.tenant, f"sale of {self.tenant}")

    async def _threads(self) -> list[str]:
        """Threads that have checkpoints."""
        async with self.database.tenant(self.tenant) as conn:
            found = await conn.execute("select distinct thread_id from checkpoints order by thread_id")
            return [row["thread_id"] for row in await found.fetchall()]

    async def _ends(self, owner: Owner, status: RunStatus = RunStatus.COMPLETED) -> None:
        kind = {RunStatus.COMPLETED: EventKind.RUN_COMPLETED, RunStatus.CANCELLED: EventKind.RUN_CANCELLED}[status]
        await self.store.runs.finish(owner, status, output={"of": self.tenant}, cause=None, event=event(kind))

    async def prunes(self) -> None:
        for terms in (LATEST_ALONE, AT_ONCE, CONTENTS):
            await self.store.tenants.put(self.story.terms(terms))
            assert await self.store.retention.prune(self.tenant)
        await self.store.tenants.put(self.story.terms())
        assert await self.store.tenants.get(self.tenant)

    async def leaves_things_open(self) -> None:
        """Runs that are held, wait, rest and have ended, with a call under way and a question to a person."""
        await self._ends(await self.running())
        owner = await self.running()
        await self.store.journal.open(owner, self.intent(owner), event=INTENDED)
        await self.scene.asked(owner)
        await self.store.runs.begin_step(
            owner, node=f"of {self.tenant}", task_id="t", event=event(EventKind.NODE_STARTED)
        )
        await self.database.writer.catch_up(owner)
        await self.store.runs.admit(self.scene.request(self.tenant, f"later of {self.tenant}", graph_name="later"))


async def share_a_process(urls: DatabaseUrls, *stories: Story) -> None:
    """Runs of several tenants that are claimed together, and then write and read together."""
    async with Database(urls.app) as database:
        behind = [Behind(story, database) for story in stories]
        scene = behind[0].scene
        for each in behind:
            await each.store.runs.admit(scene.request(each.tenant, f"together of {each.tenant}"))
        claims = await scene.claim(tenants=[each.tenant for each in behind])
        owners = [next(claim.owner for claim in claims if claim.owner.tenant_id == each.tenant) for each in behind]
        for act in (
            lambda each, owner: each.store.events.append(owner, [event(EventKind.NODE_STARTED, task_id="t")]),
            lambda each, owner: saver_for(database, owner).aput_writes(_place(owner), [("a", each.tenant)], "t"),
            lambda each, owner: each.store.journal.open(owner, each.intent(owner), event=INTENDED),
            lambda each, owner: each.writes_at_once(owner),
            lambda each, owner: each.reads_at_once(owner),
        ):
            await asyncio.gather(*(act(each, owner) for each, owner in zip(behind, owners, strict=True)))
        for each, owner in zip(behind, owners, strict=True):
            await refused(LeaseLost, each.store.events.append(replace(owner, epoch=9), [event(EventKind.NODE_STARTED)]))


def _place(owner: Owner) -> Any:
    return {"configurable": {"thread_id": owner.thread_id, "checkpoint_ns": "", "checkpoint_id": new_id()}}


async def refused(error: type[HoldfastError], work: Awaitable[Any]) -> None:
    """Do what is refused with that error."""
    with pytest.raises(error):
        await work
