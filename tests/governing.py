"""A desk at which tests run governed graphs: the real doors on a store of choice, and an engine of a few lines."""

import asyncio
import contextlib
import math
from dataclasses import dataclass, field
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from holdfast.contracts.approvals import Approval, ApprovalStatus
from holdfast.contracts.deadline import Deadline
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import BudgetId, RunId, TenantId
from holdfast.contracts.limits import Limits
from holdfast.contracts.ports import Store
from holdfast.contracts.runs import GraphVersion, Run, RunIdentity, RunRequest, RunStatus, owner_of
from holdfast.contracts.tenancy import Principal, Tenant, TenantContext
from holdfast.contracts.verdicts import Autonomy
from holdfast.gateway.models import ModelGateway
from holdfast.gateway.prices import Prices
from holdfast.gateway.providers import Providers
from holdfast.gateway.sending import Sender, SendTerms
from holdfast.gateway.tools import ToolExecutor
from holdfast.nodes.session import RunSession, entered_session
from holdfast.policies import rulings
from holdfast.policies.permissions import CedarPolicy, default_text
from holdfast.runtime import inputs
from holdfast.runtime.clock import SystemClock
from holdfast.runtime.entropy import SystemDice, SystemIds
from holdfast.testing.memory import MemoryStore

DANA = Principal(user_id="dana", tenants=None, roles=("approver",))
ACME = TenantId("acme")


@dataclass
class Desk:
    """Where runs are started, decided and looked at."""

    store: Store = None  # type: ignore[assignment]  # a MemoryStore on the desk's clock
    clock: Any = field(default_factory=SystemClock)
    saver: Any = field(default_factory=InMemorySaver)
    saver_of: Any = None
    """Makes the saver of an owner, where each has its own."""
    autonomy: Autonomy = Autonomy.SUPERVISED
    cleanup_seconds: float = 5.0
    node_slots: int | None = None

    def __post_init__(self) -> None:
        self.ids = SystemIds()
        if self.store is None:
            self.store = MemoryStore(clock=self.clock)

    async def admit(self, graph: Any, value: Any, *, limits: Limits | None = None, thread: str | None = None) -> Run:
        await self.store.tenants.put(Tenant(tenant_id=ACME, may_be_unlimited=True))
        run_id = RunId(self.ids.new())
        kind, data = inputs.stored(value)
        await self.store.runs.admit(
            RunRequest(
                run_id=run_id,
                thread_key=thread or run_id,
                graph_name=graph.governance.name,
                graph_version=graph.governance.version,
                tenant=TenantContext(tenant_id=ACME, user_id="dana", roles=("approver",)),
                input=data,
                input_type=kind,
                context=None,
                limits=limits or Limits(),
            )
        )
        return await self.claimed(graph)

    async def claimed(self, graph: Any) -> Run:
        [claim] = await self.store.leases.claim(
            "here",
            tenants=None,
            graphs={GraphVersion(graph.governance.name, graph.governance.version): graph.governance.version},
            slots=1,
            ttl_seconds=60.0,
        )
        return claim.run

    def gate(self, policies: tuple[str, ...], default_model: str | None = None) -> tuple[Any, Any, str]:
        """The two doors, and the version of their policies."""
        policy, store, dice = CedarPolicy([default_text(), *policies]), self.store, SystemDice()
        models = ModelGateway(
            journal=store.journal,
            ledger=store.ledger,
            events=store.events,
            policy=policy,
            providers=Providers({}, default_model),
            prices=Prices(),
            clock=self.clock,
            ids=self.ids,
            sender=Sender(dice=dice, terms=SendTerms()),
        )
        executor = ToolExecutor(
            journal=store.journal, ledger=store.ledger, events=store.events, policy=policy, ids=self.ids, dice=dice
        )
        return models, executor, policy.version

    async def session(self, graph: Any, run: Run, **changes: Any) -> RunSession:
        governance = graph.governance
        models, executor, version = self.gate(governance.policies, governance.default_model)
        remaining = math.inf if run.remaining_seconds is None else run.remaining_seconds
        identity = RunIdentity(
            run_id=run.run_id, thread_id=run.thread_id, tenant_id=ACME, deadline_ms=None, policy_version=version
        )
        facts: dict[str, Any] = {
            "identity": identity,
            "owner": owner_of(run, "here"),
            "tenant": run.tenant.model_copy(update={"policy_version": version}),
            "graph_name": run.graph_name,
            "limits": run.limits,
            "deadline": Deadline.after_seconds(remaining, clock=self.clock),
            "budgets": (BudgetId(run.run_id), await self.store.ledger.tenant_budget(ACME)),
            "autonomy": governance.autonomy or self.autonomy,
            "store": self.store,
            "models": models,
            "executor": executor,
            "toolset": governance.toolset,
            "clock": self.clock,
            "ids": self.ids,
            "loop": asyncio.get_running_loop(),
            "still_ours": lambda: True,
            "default_model": governance.default_model,
            "node_slots": None if self.node_slots is None else asyncio.Semaphore(self.node_slots),
            "cleanup_seconds": self.cleanup_seconds,
        }
        return RunSession(**facts | changes)

    async def start(self, graph: Any, value: Any, *, limits: Limits | None = None, **options: Any) -> "Attempt":
        """A run's first attempt, driven until it ends or rests."""
        run = await self.admit(graph, value, limits=limits)
        return await self.drive(graph, run, value, **options)

    async def drive(self, graph: Any, run: Run, value: Any, *, context: Any = None, **changes: Any) -> "Attempt":
        session = await self.session(graph, run, **changes)
        attempt = Attempt(self, graph, run, session)
        await attempt.go(value, context=context)
        return attempt


@dataclass
class Attempt:
    """One attempt at a run, and what came of it."""

    desk: Desk
    graph: Any
    run: Run
    session: RunSession
    output: Any = None
    interrupts: tuple[Any, ...] = ()
    error: BaseException | None = None

    @property
    def config(self) -> RunnableConfig:
        return {"configurable": {"thread_id": self.run.thread_id, "__pregel_strict_resume": True}}

    @property
    def bound(self) -> Any:
        own = self.desk.saver_of
        return self.graph.copy(update={"checkpointer": own(self.session.owner) if own else self.desk.saver})

    async def go(self, value: Any, *, context: Any = None) -> None:
        self.error = None
        try:
            with entered_session(self.session):
                output = await self.bound.ainvoke(value, self.config, context=context, durability="sync", version="v2")
        except Exception as error:  # noqa: BLE001  # kept for the test to look at
            self.error = error
            return
        self.output, self.interrupts = output.value, output.interrupts

    async def rest(self) -> None:
        await self.desk.store.runs.rest(
            self.session.owner, next_action="decide", event=EventDraft(kind=EventKind.RUN_INTERRUPTED)
        )

    async def decide(self, approval: Approval, decision: str, **parts: Any) -> None:
        """What a person says about one of the questions, recorded as the runtime does."""
        terms = {"args": None, "message": None, "value": None} | parts
        ruling = rulings.ruling_of(decision, **terms)  # type: ignore[arg-type]
        await self.desk.store.approvals.decide(
            DANA,
            ACME,
            approval.id,
            ruling,
            decision=rulings.recorded_decision(approval, ruling),
            granted_digest=rulings.granted_digest(approval, ruling),
            event=EventDraft(kind=EventKind.APPROVAL_DECIDED),
        )

    async def resume(self) -> "Attempt":
        """The next attempt: claimed again, entered with what is decided, by interrupt id."""
        run = await self.desk.claimed(self.graph)
        assert run.run_id == self.run.run_id
        following = Attempt(self.desk, self.graph, run, await self.desk.session(self.graph, run))
        approvals = await self.desk.store.approvals.find(ACME, run_id=run.run_id, pending_only=False)
        asked = {interrupt.id for interrupt in self.interrupts}
        decided = {
            approval.interrupt_id: rulings.answer(approval)
            for approval in approvals
            if approval.interrupt_id in asked and approval.status is not ApprovalStatus.PENDING
        }
        await following.go(Command(resume=decided))
        return following

    async def inbox(self, *, pending_only: bool = True) -> list[Approval]:
        return list(await self.desk.store.approvals.find(ACME, run_id=self.run.run_id, pending_only=pending_only))

    async def events(self, *kinds: EventKind) -> list[Any]:
        found = await self.desk.store.events.read(ACME, self.run.run_id)
        return [event for event in found if not kinds or event.kind in kinds]

    async def nodes(self, kind: EventKind = EventKind.NODE_STARTED) -> list[str]:
        """The nodes with an event of this kind, in order."""
        return [event.node for event in await self.events(kind)]

    async def calls(self) -> list[Any]:
        return list(await self.desk.store.journal.of_run(ACME, self.run.run_id))

    async def status(self) -> RunStatus:
        return (await self.desk.store.runs.get(ACME, self.run.run_id)).status


@contextlib.contextmanager
def raising(attempt: Attempt):
    """Re-raise what an attempt ended with, for `pytest.raises`."""
    yield
    if attempt.error is not None:
        raise attempt.error
