"""Makes the session of an attempt: what the middleware and the doors will ask for."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

from holdfast.contracts.deadline import Clock, Deadline
from holdfast.contracts.ids import BudgetId
from holdfast.contracts.ports import Ids, Store
from holdfast.contracts.runs import Owner, Run, RunIdentity
from holdfast.contracts.tenancy import Principal
from holdfast.contracts.tools import ToolTerms
from holdfast.contracts.verdicts import Autonomy
from holdfast.gateway.models import ModelGateway
from holdfast.gateway.tools import ToolExecutor
from holdfast.nodes.session import RunSession
from holdfast.runtime.registry import Graph

SaverFor = Callable[[Owner, Graph], BaseCheckpointSaver[Any]]
"""Makes the checkpointer of a run's attempt at a graph."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The two doors under one set of policies."""

    models: ModelGateway
    executor: ToolExecutor
    policy_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """The process's store and gates, from which every session is made."""

    store: Store
    gate_for: Callable[[tuple[str, ...]], Gate]
    """The doors under the process's policies and those texts of the graph's own."""
    silent_gate_for: Callable[[Store, tuple[str, ...]], Gate]
    """The same doors, but with nobody behind them, and answering from another store."""
    clock: Clock
    ids: Ids
    autonomy: Autonomy
    node_slots: int
    """How many nodes of one run may work at once."""
    cleanup_seconds: float
    tools: Mapping[str, ToolTerms] = field(default_factory=dict)
    """The configuration's terms of tools by name, over what their authors declared."""
    approval_expires_seconds: float = 604_800.0
    """How long a person has to decide."""

    async def session(
        self,
        graph: Graph,
        run: Run,
        owner: Owner,
        *,
        still_ours: Callable[[], bool],
        approver: Principal | None = None,
    ) -> RunSession:
        """The session of one attempt at `run`. The deadline becomes monotonic here: from now on no jump of the
        wall clock can move it."""
        governance: Any = graph.governance  # type: ignore[attr-defined]  # the registry admits governed graphs only
        gate = self.gate_for(governance.policies)
        remaining = math.inf if run.remaining_seconds is None else run.remaining_seconds
        tenant_id = run.tenant.tenant_id
        return RunSession(
            identity=RunIdentity(
                run_id=run.run_id,
                thread_id=run.thread_id,
                tenant_id=tenant_id,
                deadline_ms=None if run.remaining_seconds is None else round(run.remaining_seconds * 1000),
                policy_version=gate.policy_version,
            ),
            owner=owner,
            tenant=run.tenant.model_copy(update={"policy_version": gate.policy_version}),
            graph_name=run.graph_name,
            limits=run.limits,
            deadline=Deadline.after_seconds(remaining, clock=self.clock),
            budgets=(BudgetId(run.run_id), await self.store.ledger.tenant_budget(tenant_id)),
            autonomy=governance.autonomy or self.autonomy,
            store=self.store,
            models=gate.models,
            executor=gate.executor,
            toolset=governance.toolset.governed_by(self.tools),
            clock=self.clock,
            ids=self.ids,
            loop=asyncio.get_running_loop(),
            still_ours=still_ours,
            default_model=governance.default_model,
            fork=run.fork,
            trace_parent=run.trace_parent,
            node_slots=asyncio.Semaphore(self.node_slots),
            cleanup_seconds=self.cleanup_seconds,
            approver=approver,
            approval_expires_seconds=self.approval_expires_seconds,
        )
