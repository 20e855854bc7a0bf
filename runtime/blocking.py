"""The same runtime for scripts without a loop: every call waits for its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from anyio.from_thread import BlockingPortal

from holdfast.contracts.approvals import Approval, DecisionType
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import Run, RunResult
from holdfast.contracts.tenancy import Principal
from holdfast.runtime.runtime import RunHandle, Runtime


@dataclass(frozen=True, slots=True)
class BlockingRun:
    """A run, for code that waits."""

    handle: RunHandle
    _portal: BlockingPortal = field(repr=False)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.handle.run_id

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait until the run rests; see `RunHandle.result`."""
        return self._portal.call(self.handle.result, timeout)


class BlockingRuntime:
    """`Runtime` behind a thread of its own. Made by `holdfast.open_blocking_runtime()`; see `Runtime` for the words."""

    def __init__(self, runtime: Runtime, portal: BlockingPortal) -> None:
        self._runtime = runtime
        self._portal = portal

    def start(
        self,
        graph: Any,
        input: Any,  # noqa: A002  # LangGraph's word
        *,
        tenant: str,
        user: str | Principal | None = None,
        thread: str | None = None,
        limits: Limits | None = None,
        context: Any = None,
    ) -> BlockingRun:
        """Admit a run; see `Runtime.start`."""
        start = partial(
            self._runtime.start,
            graph,
            input,
            tenant=tenant,
            user=user,
            thread=thread,
            limits=limits,
            context=context,
        )
        return BlockingRun(self._portal.call(start), self._portal)

    def runs(self, *, tenant: str, thread: str | None = None) -> Sequence[Run]:
        """The tenant's runs, newest first."""
        return self._portal.call(partial(self._runtime.runs, tenant=tenant, thread=thread))

    def approvals(self, *, tenant: str, thread: str | None = None) -> Sequence[Approval]:
        """What the tenant's people are asked, oldest first."""
        return self._portal.call(partial(self._runtime.approvals, tenant=tenant, thread=thread))

    def decide(
        self,
        approval_id: str,
        decision: DecisionType,
        *,
        by: str | Principal,
        args: Mapping[str, Any] | None = None,
        message: str | None = None,
        value: Any = None,
    ) -> Approval:
        """Decide what a person was asked; see `Runtime.decide`."""
        decide = partial(self._runtime.decide, approval_id, decision, by=by, args=args, message=message, value=value)
        return self._portal.call(decide)

    def cancel(self, run_id: str, *, tenant: str, by: str | Principal, reason: str = "") -> Run:
        """Ask a run to stop; see `Runtime.cancel`."""
        return self._portal.call(partial(self._runtime.cancel, run_id, tenant=tenant, by=by, reason=reason))
