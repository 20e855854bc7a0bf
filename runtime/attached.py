"""Attached runs: another engine hosts the governed graph; we keep its journal, ledger, policy and inbox."""

from dataclasses import dataclass
from typing import Any

from langgraph.types import Command

from holdfast.contracts.classification import translated
from holdfast.contracts.errors import Conflict, InvalidRequest, RunCancelled
from holdfast.contracts.ids import RunId, TenantId
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import Run, RunRequest, RunStatus, owner_of
from holdfast.contracts.tenancy import Principal, TenantContext
from holdfast.nodes.hosting import AttachedOutcome, AttachedRequest
from holdfast.nodes.session import RunSession
from holdfast.policies.compatibility import serves
from holdfast.policies.tenancy import effective_limits
from holdfast.runtime import inputs
from holdfast.runtime.endings import Cancelled, Completed, Ending, Failed, Rested, record
from holdfast.runtime.outputs import plain_output
from holdfast.runtime.sessions import Doors
from holdfast.telemetry.spans import trace_parent


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedTerms:
    """On whose behalf a host's invocations run."""

    tenant_id: TenantId | None
    """None: there are several tenants, and none of them is meant; nothing can be hosted then."""
    principal: Principal
    limits: Limits | None = None
    """None: the tenant's defaults."""


class Attachments:
    """The process's attached host (`nodes.hosting.AttachedHost`). Ownership is the host's: there is no lease here,
    and G1 and G2 are not promised."""

    def __init__(self, *, doors: Doors, terms: AttachedTerms, worker_id: str) -> None:
        self._doors = doors
        self._terms = terms
        self._worker_id = worker_id

    async def open(self, request: AttachedRequest) -> RunSession:
        """The session of a new run, or of the one that rests on the host's thread when this goes on with it."""
        key = self._thread_key(request)
        run = await self._resting(key) if _goes_on(request.input) else None
        run = await self._admit(request, key) if run is None else await self._reattached(request, run)
        return await self._doors.session(
            request.graph, run, owner_of(run, self._worker_id), still_ours=lambda: True, approver=self._terms.principal
        )

    async def close(self, session: RunSession, outcome: AttachedOutcome) -> None:
        """Record how the invocation ended."""
        await record(self._doors.store.runs, session.owner, _ending(session, outcome))

    async def _admit(self, request: AttachedRequest, key: str) -> Run:
        terms = self._terms
        tenant = await self._doors.store.tenants.get(self._tenant_id())
        governance = request.graph.governance
        value = None if isinstance(request.input, Command) else request.input
        kind, data = inputs.stored(value)
        return await self._doors.store.runs.admit(
            RunRequest(
                run_id=RunId(self._doors.ids.new()),
                thread_key=key,
                graph_name=governance.name,
                graph_version=governance.version,
                tenant=TenantContext(
                    tenant_id=tenant.tenant_id,
                    user_id=terms.principal.user_id,
                    roles=terms.principal.roles,
                    data_scopes=terms.principal.data_scopes,
                    policy_version=self._doors.gate_for(governance.policies).policy_version,
                ),
                input=data,
                input_type=kind,
                context=None,
                limits=effective_limits(tenant, terms.limits),
                trace_parent=trace_parent(),
                attached=True,
            )
        )

    async def _reattached(self, request: AttachedRequest, run: Run) -> Run:
        """A run that rests, under the code that its host has now. Raises `Conflict` for code that is not compatible
        with the code that started it."""
        own = request.graph.governance
        if not serves(own.served, run.version):
            raise Conflict(
                f"run {run.run_id} rests on this thread, and was started by graph {run.graph_name!r} of version "
                f"{run.graph_version!r}; this is {own.name!r} of version {own.version!r}, which does not declare that "
                "one compatible. Host the code that started it, declare it with govern(…, compatible=…), or cancel it",
                run_id=run.run_id,
            )
        principal, tenant_id = self._terms.principal, run.tenant.tenant_id
        return await self._doors.store.runs.reattach(principal, tenant_id, run.run_id, served_by=own.version)

    async def _resting(self, key: str) -> Run | None:
        runs = await self._doors.store.runs.find(
            self._tenant_id(), thread_key=key, status=RunStatus.INTERRUPTED, limit=1
        )
        return runs[0] if runs and runs[0].attached else None

    def _tenant_id(self) -> TenantId:
        if self._terms.tenant_id is None:
            raise InvalidRequest(
                "there are several tenants: say whose run it is when a graph is invoked by itself or by another engine "
                "(attached_tenant, HOLDFAST_ATTACHED_TENANT), or start it with Runtime.start(…, tenant=…)"
            )
        return self._terms.tenant_id

    def _thread_key(self, request: AttachedRequest) -> str:
        key = (request.config.get("configurable") or {}).get("thread_id")
        return f"attached:{key}" if key else f"attached:{self._doors.ids.new()}"


def _goes_on(value: Any) -> bool:
    return value is None or isinstance(value, Command)


def _ending(session: RunSession, outcome: AttachedOutcome) -> Ending:
    output = plain_output(outcome.output)
    match outcome.status:
        case RunStatus.COMPLETED:
            return Completed(output)
        case RunStatus.INTERRUPTED:
            return Rested(1)
        case RunStatus.CANCELLED:
            stop = outcome.error
            return Cancelled(stop if isinstance(stop, RunCancelled) else RunCancelled("the host stopped it"), output)
        case _:
            error = outcome.error or RuntimeError("the host did not say why")
            return Failed(translated(error), session.step_of(error), output)
