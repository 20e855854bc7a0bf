"""Runs and their threads, on Postgres. A run's status changes under its row's lock, with its event, in one commit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from psycopg.types.json import Jsonb
from pydantic import ValidationError

from holdfast.checkpoints.admission import admit
from holdfast.checkpoints.database import Connection, Database
from holdfast.checkpoints.events import write_events, write_events_of
from holdfast.checkpoints.fence import hold_alone, lost
from holdfast.checkpoints.left_open import close_left_open
from holdfast.checkpoints.pen import Pen, Steps
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.records import Records, event_row
from holdfast.checkpoints.sealed_documents import RUNS, with_json
from holdfast.contracts.canonical import plain
from holdfast.contracts.errors import (
    BudgetExceeded,
    Conflict,
    InvalidRequest,
    KeyMissing,
    NotFound,
    RunCancelled,
    RuntimeErrorRecord,
    SealBroken,
    StoreUnavailable,
)
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import RunId, TenantId, ThreadId, uuid_text
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.ports import Ids
from holdfast.contracts.retention import LegalHold
from holdfast.contracts.runs import Owner, Run, RunRequest, RunStatus
from holdfast.contracts.tenancy import Principal, TenantContext
from holdfast.policies.refusal import refusal

_SQL = load_queries(__name__, "runs.sql")


class PostgresRuns:
    """`contracts.ports.Runs` on Postgres."""

    def __init__(self, database: Database, ids: Ids) -> None:
        self._database = database
        self._ids = ids

    async def admit(self, request: RunRequest) -> Run:
        run_id = RunId(uuid_text(request.run_id, what="run"))
        async with self._database.tenant(request.tenant.tenant_id) as conn:
            await admit(conn, request, run_id=run_id, new_thread=self._ids.new(), vault=self._database.vault)
            return await _load(conn, request.tenant.tenant_id, run_id)

    async def get(self, tenant_id: TenantId, run_id: RunId) -> Run:
        run_id = RunId(uuid_text(run_id, what="run"))
        async with self._database.tenant(tenant_id) as conn:
            return await _load(conn, tenant_id, run_id)

    async def find(
        self,
        tenant_id: TenantId,
        *,
        thread_key: str | None = None,
        status: RunStatus | None = None,
        limit: int = 100,
    ) -> Sequence[Run]:
        wanted = {"tenant_id": tenant_id, "thread_key": thread_key, "status": status, "limit": limit}
        async with self._database.tenant(tenant_id) as conn:
            found = await (await conn.execute(_SQL["find_runs"], wanted)).fetchall()
            return (await load_runs(conn, [str(row["run_id"]) for row in found]))[::-1]

    async def statuses(self, tenant_id: TenantId, run_ids: Sequence[RunId]) -> Mapping[RunId, RunStatus]:
        wanted = {"tenant_id": tenant_id, "run_ids": [uuid_text(run_id, what="run") for run_id in run_ids]}
        async with self._database.tenant(tenant_id) as conn:
            found = await (await conn.execute(_SQL["statuses_of_runs"], wanted)).fetchall()
        return {RunId(row["run_id"]): RunStatus(row["status"]) for row in found}

    async def thread_id(self, tenant_id: TenantId, thread_key: str) -> ThreadId:
        wanted = {"tenant_id": tenant_id, "thread_key": thread_key}
        async with self._database.tenant(tenant_id) as conn:
            row = await (await conn.execute(_SQL["find_thread"], wanted)).fetchone()
        if row is None:
            raise NotFound(f"tenant {tenant_id!r} has no thread {thread_key!r}", thread_key=thread_key)
        return ThreadId(str(row["thread_id"]))

    async def request_cancel(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, reason: str) -> Run:
        run_id = RunId(uuid_text(run_id, what="run"))
        if not principal.may_act_for(tenant_id):
            raise _no_run(run_id)
        asked = _asked_by({"by": principal.user_id, "reason": reason})
        async with self._database.tenant(tenant_id) as conn:
            state = await _lock_run(conn, tenant_id, run_id)
            status = RunStatus(state["status"])
            if status.final:
                raise Conflict(f"run {run_id} is {status} already, so it cannot be cancelled", status=status)
            drafts = await _ask_to_stop(conn, run_id, asked)
            if status is not RunStatus.RUNNING:
                drafts += await _cancel(conn, tenant_id, run_id, state["thread_id"], asked)
            await write_events(conn, tenant_id=tenant_id, run_id=run_id, attempt=state["attempt"], drafts=drafts)
            return await _load(conn, tenant_id, run_id)

    async def reattach(self, principal: Principal, tenant_id: TenantId, run_id: RunId, *, served_by: str) -> Run:
        run_id = RunId(uuid_text(run_id, what="run"))
        if not principal.may_act_for(tenant_id):
            raise _no_run(run_id)
        async with self._database.tenant(tenant_id) as conn:
            state = await _lock_run(conn, tenant_id, run_id)
            reattached = await (await conn.execute(_SQL["reattach_run"], {"run_id": run_id})).fetchone()
            if reattached is None:
                raise Conflict(
                    f"run {run_id} is {state['status']}; only an attached run that rests goes on in its host"
                )
            epoch, attempt = reattached["epoch"], reattached["attempt"]
            facts = {"epoch": epoch, "attempt": attempt, "graph_version": served_by}
            claimed = EventDraft(kind=EventKind.RUN_CLAIMED, payload=facts)
            await write_events(conn, tenant_id=tenant_id, run_id=run_id, attempt=attempt, drafts=[claimed])
            return await _load(conn, tenant_id, run_id)

    async def begin_step(self, owner: Owner, *, node: str, task_id: str, event: EventDraft) -> bool:
        event = replace(event, node=node, task_id=task_id)
        if owner.attached:
            return await self._begin_attached(owner, task_id, event)
        pen = self._database.writer.pen(owner)
        pen.require()
        steps = pen.steps or await self._steps_so_far(owner, pen)
        if not steps.begin(task_id):
            assert steps.limit is not None, "nothing is refused where there is no limit"
            raise _steps_used_up(owner, steps.limit)
        self._database.writer.later(pen, Records(events=[event_row(event, owner.attempt)]))
        return steps.cancel_requested

    async def _steps_so_far(self, owner: Owner, pen: Pen) -> Steps:
        async with self._database.owned(owner) as conn:
            found = await (await conn.execute(_SQL["steps_so_far"], {"run_id": owner.run_id})).fetchone()
        if found is None:
            raise _no_run(owner.run_id)
        if pen.steps is None:  # another task of the run may have been quicker
            pen.steps = Steps(found["spent_steps"], found["max_steps"], set(found["begun"]), found["cancel_requested"])
            self._database.writer.keep(pen)
        return pen.steps

    async def _begin_attached(self, owner: Owner, task_id: str, event: EventDraft) -> bool:
        async with self._database.owned(owner) as conn:
            found = await conn.execute(_SQL["count_step"], {"run_id": owner.run_id, "task_id": task_id})
            step = await found.fetchone()
            if step is None:
                raise _no_run(owner.run_id)
            if not step["counted"] and not step["known"]:
                raise _steps_used_up(owner, step["max_steps"])
            await write_events_of(conn, owner, [event])
            return bool(step["cancel_requested"])

    async def rest(self, owner: Owner, *, next_action: str, event: EventDraft) -> RunStatus:
        await self._database.writer.catch_up(owner, ending=True)
        async with self._database.tenant(owner.tenant_id) as conn:
            await _hold_to_end(conn, owner)
            found = await conn.execute(_SQL["park_run"], {"run_id": owner.run_id, "next_action": next_action})
            parked = await found.fetchone()
            assert parked is not None, "the run's row is locked"
            await _drop_lease(conn, owner)
            status = RunStatus(parked["status"])
            queued = [EventDraft(kind=EventKind.RUN_QUEUED)] if status is RunStatus.QUEUED else []
            await write_events_of(conn, owner, [event, *queued])
            return status

    async def finish(
        self,
        owner: Owner,
        status: RunStatus,
        *,
        output: Any,
        cause: RuntimeErrorRecord | None,
        event: EventDraft,
    ) -> None:
        if not status.final:
            raise InvalidRequest(f"a run does not end as {status}; use rest or release")
        await self._database.writer.catch_up(owner, ending=True)
        async with self._database.tenant(owner.tenant_id) as conn:
            state = await _lock_to_end(conn, owner, status)
            if state is None:
                return
            if status is RunStatus.CANCELLED and state["cancel_requested"] is not None:
                cause = _asked_by(state["cancel_requested"]).record(run_id=owner.run_id, step_name="request_cancel")
            await _end(conn, owner.tenant_id, owner.run_id, status, output=output, cause=cause)
            drafts = await close_left_open(conn, owner.tenant_id, owner.run_id, owner.thread_id)
            await _drop_lease(conn, owner)
            await write_events_of(conn, owner, [*drafts, event])

    async def release(self, owner: Owner, *, event: EventDraft) -> None:
        await self._database.writer.catch_up(owner, ending=True)
        async with self._database.tenant(owner.tenant_id) as conn:
            await _hold_to_end(conn, owner)
            await conn.execute(_SQL["requeue_run"], {"run_id": owner.run_id})
            await _drop_lease(conn, owner)
            await write_events_of(conn, owner, [event])


async def load_runs(conn: Connection, run_ids: Sequence[str]) -> Sequence[Run]:
    """The runs of these ids that the transaction's tenants have, oldest first. One whose contents cannot be opened
    comes without them: it must not keep the others from whoever works on them or looks at them."""
    found = await conn.execute(_SQL["load_runs"], {"run_ids": list(run_ids)})
    return [_as_far_as_readable(conn, row) for row in await found.fetchall()]


def _as_far_as_readable(conn: Connection, row: Mapping[str, Any]) -> Run:
    without_contents = {**row, **dict.fromkeys((*RUNS.documents, *RUNS.texts))}
    try:
        return _run(conn.documents.opened(RUNS, row))
    except (KeyMissing, SealBroken) as error:
        return replace(_run(without_contents), unreadable=error)
    except ValidationError as error:
        of_newer_code = StoreUnavailable(
            f"run {row['run_id']} has what this version of holdfast does not know ({error.errors()[0]['msg']}); a "
            "worker of a newer version goes on with it",
            run_id=str(row["run_id"]),
        )
        return replace(_run({**without_contents, "limits": {}}), unreadable=of_newer_code)


def _run(row: Mapping[str, Any]) -> Run:
    cause = row["cause"]
    return Run(
        run_id=RunId(str(row["run_id"])),
        thread_id=ThreadId(str(row["thread_id"])),
        thread_key=row["thread_key"],
        tenant=TenantContext.model_validate(row["principal"]),
        graph_name=row["graph_name"],
        graph_version=row["graph_version"],
        status=RunStatus(row["status"]),
        input=row["input"] or b"",
        input_type=row["input_type"],
        context=row["context"],
        limits=Limits.model_validate(row["limits"]),
        remaining_seconds=row["remaining_seconds"],
        epoch=row["epoch"],
        attempt=row["attempt"],
        takeovers=row["takeovers"],
        parked=row["parked"],
        max_attempts=row["max_attempts"],
        output=row["output"],
        next_action=row["next_action"],
        cause=None if cause is None else RuntimeErrorRecord.model_validate(cause),
        cancel_requested=row["cancel_requested"] is not None,
        worker_id=row["worker_id"],
        trace_parent=row["trace_parent"],
        attached=row["attached"],
        forked_from=_run_id(row["forked_from"]),
        forked_at=row["forked_at"],
        resumed_from=_run_id(row["resumed_from"]),
        fork=row["fork"],
        legal_hold=None if row["legal_hold"] is None else LegalHold.model_validate(row["legal_hold"]),
        contents_pruned_at=row["contents_pruned_at"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def _run_id(value: Any) -> RunId | None:
    return None if value is None else RunId(str(value))


async def _load(conn: Connection, tenant_id: TenantId, run_id: RunId) -> Run:
    runs = await load_runs(conn, [run_id])
    if not runs or runs[0].tenant.tenant_id != tenant_id:
        raise _no_run(run_id)
    if runs[0].unreadable is not None:
        raise runs[0].unreadable
    return runs[0]


async def _lock_run(conn: Connection, tenant_id: TenantId, run_id: RunId) -> dict[str, Any]:
    row = await (await conn.execute(_SQL["lock_run"], {"tenant_id": tenant_id, "run_id": run_id})).fetchone()
    if row is None:
        raise _no_run(run_id)
    return row


async def _hold_to_end(conn: Connection, owner: Owner) -> None:
    """The fence for the end of an attempt; the run's row is locked too, against decisions and cancellations."""
    if not await hold_alone(conn, owner):
        raise lost(owner)
    await _lock_run(conn, owner.tenant_id, owner.run_id)


async def _lock_to_end(conn: Connection, owner: Owner, status: RunStatus) -> dict[str, Any] | None:
    """The state of the run, which is held; None where its owner has ended it before, with the same status."""
    held = await hold_alone(conn, owner)
    state = await _lock_run(conn, owner.tenant_id, owner.run_id)
    if held:
        return state
    ended = RunStatus(state["status"])
    if not ended.final or state["epoch"] != owner.epoch:
        raise lost(owner)
    if ended is not status:
        raise Conflict(f"run {owner.run_id} ended as {ended}, so it cannot end as {status}", status=ended)
    return None


def _asked_by(asked: Mapping[str, str]) -> RunCancelled:
    return RunCancelled(f"cancelled by {asked['by']!r}: {asked['reason']}", **asked)


async def _ask_to_stop(conn: Connection, run_id: RunId, asked: RunCancelled) -> list[EventDraft]:
    noted = await conn.execute(_SQL["ask_to_stop"], {"run_id": run_id, "cancel": Jsonb(plain(asked.facts))})
    return [EventDraft(kind=EventKind.RUN_CANCEL_REQUESTED, payload=asked.facts)] if noted.rowcount else []


async def _cancel(
    conn: Connection, tenant_id: TenantId, run_id: RunId, thread_id: ThreadId, asked: RunCancelled
) -> list[EventDraft]:
    """End a run that nobody works on."""
    cause = asked.record(run_id=run_id, step_name="request_cancel")
    await _end(conn, tenant_id, run_id, RunStatus.CANCELLED, output=None, cause=cause)
    left = await close_left_open(conn, tenant_id, run_id, thread_id)
    return [*left, EventDraft(kind=EventKind.RUN_CANCELLED, payload=asked.facts)]


async def _end(
    conn: Connection,
    tenant_id: TenantId,
    run_id: RunId,
    status: RunStatus,
    *,
    output: Any,
    cause: RuntimeErrorRecord | None,
) -> None:
    told = {"output": plain(output), "cause": plain(cause)}
    stored = conn.documents.sealed(RUNS, tenant_id, run_id, told)
    await conn.execute(_SQL["end_run"], {"run_id": run_id, "status": status, **with_json(RUNS, stored)})


async def _drop_lease(conn: Connection, owner: Owner) -> None:
    await conn.execute(_SQL["drop_lease"], {"run_id": owner.run_id, "epoch": owner.epoch})


def _no_run(run_id: str) -> NotFound:
    return NotFound(f"there is no run {run_id} here; see that the id and the tenant are right", run_id=run_id)


def _steps_used_up(owner: Owner, limit: int) -> BudgetExceeded:
    refused = refusal(
        owner.run_id,
        "run",
        limits=Limits(max_steps=limit),
        spent=Usage(steps=limit),
        reserved=Usage(),
        requested=Usage(steps=1),
    )
    assert refused is not None, "the step was not counted"
    return refused
