"""Going back in a thread's history, and on from it: its checkpoints, their states, forks, and runs that are resumed."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from langgraph.types import StateSnapshot

from holdfast.contracts.errors import InvalidRequest, NotFound
from holdfast.contracts.ids import BudgetId, RunId, TenantId, uuid_text
from holdfast.contracts.limits import Limits
from holdfast.contracts.runs import Forked, Resumed, Run, RunRequest, owner_of
from holdfast.contracts.tenancy import Principal
from holdfast.policies.retention import NO_FORK, NO_RESUME, require_contents
from holdfast.policies.tenancy import effective_limits
from holdfast.policies.travel import require_own_checkpoints, require_resumable, require_room_left
from holdfast.runtime import inputs
from holdfast.runtime.entry import ATTEMPT_MARK, RUN_MARK
from holdfast.runtime.outputs import plain_output
from holdfast.runtime.registry import Graph, Registry
from holdfast.runtime.sessions import Doors, SaverFor


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What one task wrote into the state, as plain JSON."""

    node: str
    values: Any
    error: str | None = None
    """What it failed with, where it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """A checkpoint of a thread."""

    checkpoint_id: str
    at: datetime | None
    run_id: RunId | None
    """The run that wrote it."""
    attempt: int | None
    """Which attempt of that run; None where it was written before attempts were noted."""
    step: int | None
    """LangGraph's number of the superstep: -1 for the input."""
    source: str | None
    """`input`, `loop`, `update` or `fork`."""
    next: tuple[str, ...]
    """The nodes that come next."""
    written: tuple[Written, ...]
    """What the tasks wrote that led here from the checkpoint before."""


@dataclass(frozen=True, slots=True)
class _Thread:
    key: str
    latest: Run
    graph: Graph
    """Bound to a saver that reads the thread."""

    def config(self, checkpoint_id: str | None = None) -> Any:
        place = {"thread_id": self.latest.thread_id}
        return {"configurable": place if checkpoint_id is None else {**place, "checkpoint_id": checkpoint_id}}


class Travel:
    """The history of threads. Whether someone may travel in it has been asked before."""

    def __init__(self, *, doors: Doors, registry: Registry, saver_for: SaverFor, max_input_bytes: int) -> None:
        self._doors = doors
        self._registry = registry
        self._saver_for = saver_for
        self._max_input_bytes = max_input_bytes

    async def history(
        self, tenant_id: TenantId, thread: str, *, limit: int, before: str | None
    ) -> Sequence[HistoryEntry]:
        """The thread's checkpoints, newest first."""
        found = await self._thread(tenant_id, thread)
        if before is not None:
            await self._snapshot(found, before)
        start = None if before is None else found.config(before)
        # One more than is shown: what led to a checkpoint stands with the one before it.
        snapshots = [
            each async for each in found.graph.aget_state_history(found.config(), before=start, limit=limit + 1)
        ]
        by_id = {_checkpoint_id(each.config): each for each in snapshots}
        return [_entry(each, by_id.get(_checkpoint_id(each.parent_config))) for each in snapshots[:limit]]

    async def state(self, tenant_id: TenantId, thread: str, *, at: str | None) -> Any:
        """The state of the thread, latest or at a checkpoint, as plain JSON."""
        found = await self._thread(tenant_id, thread, anyones=at is None)
        if at is None:
            return plain_output((await found.graph.aget_state(found.config())).values)
        return plain_output((await self._snapshot(found, at)).values)

    async def fork(
        self,
        tenant_id: TenantId,
        thread: str,
        *,
        at: str | None,
        by: Principal,
        new_thread: str,
        run_id: RunId,
        values: Mapping[str, Any] | None,
        limits: Limits | None,
    ) -> RunRequest:
        """The request of a run that goes on from a copy of the thread's history up to a checkpoint."""
        found = await self._thread(tenant_id, thread)
        snapshot = await self._snapshot(found, at)
        origin = await self._writer_of(snapshot, found)
        require_contents(origin.run_id, origin.contents_pruned_at, NO_FORK)
        graph = self._registry.resolve(origin.graph_name, origin.graph_version)
        kind, data = inputs.checked_update(graph, values, max_bytes=self._max_input_bytes)
        forked = Forked(
            run_id=origin.run_id,
            checkpoint_id=_checkpoint_id(snapshot.config) or "",
            salt=self._doors.ids.new(),
            by=by.user_id,
        )
        request = await self._going_on(origin, limits)
        return replace(request, run_id=run_id, thread_key=new_thread, input=data, input_type=kind, origin=forked)

    async def resume(self, run: Run, *, by: Principal, run_id: RunId, limits: Limits | None) -> RunRequest:
        """The request of a run that goes on where `run` ended."""
        require_resumable(run.run_id, run.status, attached=run.attached, followed_by=None)
        require_contents(run.run_id, run.contents_pruned_at, NO_RESUME)
        self._registry.resolve(run.graph_name, run.graph_version)
        request = await self._going_on(run, limits)
        resumed = replace(
            request, run_id=run_id, origin=Resumed(run_id=run.run_id, worked_seconds=_worked(run), by=by.user_id)
        )
        before = await self._doors.store.ledger.state(run.tenant.tenant_id, BudgetId(run.run_id))
        require_room_left(run.run_id, request.limits, before, working_seconds=resumed.working_seconds)
        return resumed

    async def _going_on(self, origin: Run, limits: Limits | None) -> RunRequest:
        """On behalf of whom the origin was, under the policies of now, with its limits where no others are given."""
        terms = await self._doors.store.tenants.get(origin.tenant.tenant_id)
        graph: Any = self._registry.resolve(origin.graph_name, origin.graph_version)
        version = self._doors.gate_for(graph.governance.policies).policy_version
        return RunRequest(
            run_id=origin.run_id,
            thread_key=origin.thread_key,
            graph_name=origin.graph_name,
            graph_version=origin.graph_version,
            tenant=origin.tenant.model_copy(update={"policy_version": version}),
            input=origin.input,
            input_type=origin.input_type,
            context=origin.context,
            limits=effective_limits(terms, (limits or Limits()).over(origin.limits)),
            max_attempts=origin.max_attempts,
        )

    async def _thread(self, tenant_id: TenantId, thread: str, *, anyones: bool = False) -> _Thread:
        """The thread that is named by its key, or by the id of one of its runs."""
        key = await self._key(tenant_id, thread)
        runs = await self._doors.store.runs.find(tenant_id, thread_key=key, limit=1)
        if not runs:
            raise NotFound(f"tenant {tenant_id!r} has no thread {thread!r}")
        run = runs[0]
        if run.unreadable is not None:
            raise run.unreadable
        if not anyones:
            require_own_checkpoints(run.run_id, attached=run.attached)
        return _Thread(key, run, self._bound(run))

    async def _key(self, tenant_id: TenantId, thread: str) -> str:
        with suppress(InvalidRequest):  # not the id of a run, or of none that there is
            return (await self._doors.store.runs.get(tenant_id, RunId(uuid_text(thread, what="run")))).thread_key
        return thread

    def _bound(self, run: Run) -> Graph:
        graph = self._registry.resolve(run.graph_name, run.graph_version)
        return graph.copy(update={"checkpointer": self._saver_for(owner_of(run), graph)})

    async def _snapshot(self, thread: _Thread, checkpoint_id: str | None) -> StateSnapshot:
        """The thread's latest checkpoint, or the one of that id; `NotFound` where there is none."""
        snapshot = await thread.graph.aget_state(thread.config(checkpoint_id))
        if snapshot.created_at is None:
            which = "no checkpoint yet" if checkpoint_id is None else f"no checkpoint {checkpoint_id!r}"
            raise NotFound(f"thread {thread.key!r} has {which}", checkpoint_id=checkpoint_id)
        return snapshot

    async def _writer_of(self, snapshot: StateSnapshot, thread: _Thread) -> Run:
        """The run that wrote a checkpoint. In a fork's thread that may be a run of the original."""
        mark = (snapshot.metadata or {}).get(RUN_MARK)
        if mark is None:
            return thread.latest
        return await self._doors.store.runs.get(thread.latest.tenant.tenant_id, RunId(str(mark)))


def _entry(snapshot: StateSnapshot, before: StateSnapshot | None) -> HistoryEntry:
    metadata: Mapping[str, Any] = snapshot.metadata or {}
    return HistoryEntry(
        checkpoint_id=_checkpoint_id(snapshot.config) or "",
        at=None if snapshot.created_at is None else datetime.fromisoformat(snapshot.created_at),
        run_id=metadata.get(RUN_MARK),
        attempt=metadata.get(ATTEMPT_MARK),
        step=metadata.get("step"),
        source=metadata.get("source"),
        next=snapshot.next,
        written=() if before is None else tuple(_written(before)),
    )


def _written(snapshot: StateSnapshot) -> list[Written]:
    return [
        Written(node=task.name, values=plain_output(task.result), error=_told(task.error))
        for task in snapshot.tasks
        if task.result is not None or task.error is not None
    ]


def _told(error: Any) -> str | None:
    return None if error is None else str(error)


def _checkpoint_id(config: Any) -> str | None:
    return ((config or {}).get("configurable") or {}).get("checkpoint_id")


def _worked(run: Run) -> float:
    """What an ended run has used of its deadline, with those that it went on for."""
    limit, left = run.limits.deadline_seconds, run.remaining_seconds
    return 0.0 if limit is None or left is None else max(0.0, limit - left)
