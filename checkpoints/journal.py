"""The journal on Postgres: each intent and each outcome is one fenced commit, with its money and its event."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from psycopg.types.json import Jsonb

from holdfast.checkpoints.database import Connection, Database
from holdfast.checkpoints.events import write_events
from holdfast.checkpoints.fence import hold
from holdfast.checkpoints.ledger import reserve, settle, usage_from_json, usage_to_json
from holdfast.checkpoints.queries import load_queries
from holdfast.contracts.calls import (
    CallIdentity,
    CallIntent,
    CallOutcome,
    CallRecord,
    CallSite,
    Fresh,
    Opened,
    OutcomeStatus,
    Recorded,
    Unknown,
)
from holdfast.contracts.canonical import canonical
from holdfast.contracts.errors import Conflict, ErrorType, InvariantViolated, NotFound
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import ApprovalId, BudgetId, CallId, RunId, TenantId, ThreadId, uuid_text
from holdfast.contracts.limits import Usage
from holdfast.contracts.ports import Ids
from holdfast.contracts.runs import Owner
from holdfast.contracts.tools import Effect
from holdfast.policies.refusal import grant_refusal
from holdfast.policies.replay import counts_as_no_outcome

_SQL = load_queries(__name__, "journal.sql")
_WITHOUT_OUTCOME = frozenset({"open", "unknown"})

Row = Mapping[str, Any]


class PostgresJournal:
    """`contracts.ports.Journal` on Postgres."""

    def __init__(self, database: Database, ids: Ids) -> None:
        self._database = database

    async def open(self, owner: Owner, intent: CallIntent, *, event: EventDraft) -> Opened:
        async with self._database.tenant(owner.tenant_id) as conn:
            await hold(conn, owner)
            opened = await _execute(conn, "insert_intent", _intent_columns(owner, intent))
            granted_before = None
            if opened is None:
                # It was there, or another writer of ours has just committed it: the unique constraint has waited.
                found = await _existing(conn, owner, intent)
                record = _record(found)
                if not counts_as_no_outcome(record, for_run=owner.run_id):
                    return Unknown(record) if record.status in _WITHOUT_OUTCOME else Recorded(record)
                granted_before = found["grant_id"]
                again = _intent_columns(owner, intent) | {"call_id": record.call_id}
                opened = await _changed(conn, "reopen_call", again)
            record = _record(opened)
            drafts = [replace(event, call_id=record.call_id)]
            if intent.grant is not None and str(granted_before) != intent.grant:
                drafts.insert(0, await _use_grant(conn, owner, intent, intent.grant, record.call_id))
            await reserve(conn, owner.tenant_id, intent.budgets, intent.reservation)
            await _write(conn, owner, drafts)
            return Fresh(record)

    async def resend(self, owner: Owner, call_id: CallId, *, reservation: Usage, event: EventDraft) -> CallRecord:
        async with self._database.tenant(owner.tenant_id) as conn:
            await hold(conn, owner)
            row = await _locked(conn, owner, call_id)
            if row["status"] not in _WITHOUT_OUTCOME:
                raise Conflict(f"call {call_id} has an outcome ({row['status']}); it is not sent again")
            before, path, last = usage_from_json(row["reserved"]), _path(row), _last_run(row)
            paying = [BudgetId(owner.run_id) if budget == BudgetId(last) else budget for budget in path]
            changes = {
                "call_id": call_id,
                "run_id": owner.run_id,
                "epoch": owner.epoch,
                "budgets": paying,
                "reserved": Jsonb(usage_to_json(reservation)),
            }
            resent = await _changed(conn, "resend_call", changes)
            await settle(conn, owner.tenant_id, path, reserved=before, used=before)
            await reserve(conn, owner.tenant_id, paying, reservation)
            await _write(conn, owner, [replace(event, call_id=call_id)])
            return _record(resent)

    async def close(self, owner: Owner, outcome: CallOutcome, *, event: EventDraft) -> CallRecord:
        async with self._database.tenant(owner.tenant_id) as conn:
            await hold(conn, owner)
            row = await _locked(conn, owner, outcome.call_id)
            if row["status"] not in _WITHOUT_OUTCOME or row["status"] == outcome.status.value:
                return _record(row)
            closed = await _changed(conn, "close_call", _outcome_columns(outcome))
            if outcome.status is not OutcomeStatus.UNKNOWN:
                reserved = usage_from_json(row["reserved"])
                await settle(conn, owner.tenant_id, _path(row), reserved=reserved, used=outcome.usage)
            await _write(conn, owner, [replace(event, call_id=outcome.call_id)])
            return _record(closed)

    async def find(self, tenant_id: TenantId, thread_id: ThreadId, key: str) -> CallRecord | None:
        wanted = {
            "tenant_id": tenant_id,
            "thread_id": uuid_text(thread_id, what="thread"),
            "identity_key": key,
        }
        async with self._database.tenant(tenant_id) as conn:
            row = await _execute(conn, "find_call", wanted)
        return None if row is None else _record(row)

    async def of_run(self, tenant_id: TenantId, run_id: RunId) -> Sequence[CallRecord]:
        wanted = {"tenant_id": tenant_id, "run_id": uuid_text(run_id, what="run")}
        async with self._database.tenant(tenant_id) as conn:
            rows = await (await conn.execute(_SQL["calls_of_run"], wanted)).fetchall()
        return [_record(row) for row in rows]


async def _execute(conn: Connection, query: str, values: Row) -> Row | None:
    return await (await conn.execute(_SQL[query], values)).fetchone()


async def _changed(conn: Connection, query: str, values: Row) -> Row:
    """The row after a change of a call that this transaction has locked."""
    if (row := await _execute(conn, query, values)) is None:
        raise InvariantViolated(f"call {values['call_id']} was locked and is gone", call_id=str(values["call_id"]))
    return row


async def _existing(conn: Connection, owner: Owner, intent: CallIntent) -> Row:
    wanted = {"tenant_id": owner.tenant_id, "thread_id": owner.thread_id, "identity_key": intent.identity.key}
    if (row := await _execute(conn, "lock_call_by_key", wanted)) is None:
        raise InvariantViolated(f"the intent of {intent.identity.name} could be neither written nor found")
    return row


async def _locked(conn: Connection, owner: Owner, call_id: CallId) -> Row:
    wanted = {
        "tenant_id": owner.tenant_id,
        "thread_id": owner.thread_id,
        "call_id": uuid_text(call_id, what="call"),
    }
    if (row := await _execute(conn, "lock_call", wanted)) is None:
        raise NotFound(f"the thread of run {owner.run_id} has no call {call_id}", call_id=call_id)
    return row


async def _use_grant(
    conn: Connection, owner: Owner, intent: CallIntent, grant: ApprovalId, call_id: CallId
) -> EventDraft:
    """Use up the intent's grant and return the event of it; raises `PolicyDenied` when it is none for this call."""
    wanted = {
        "tenant_id": owner.tenant_id,
        "thread_id": owner.thread_id,
        "approval_id": uuid_text(grant, what="approval"),
        "identity_key": intent.identity.key,
        "call_id": call_id,
    }
    name, site = intent.identity.name, intent.identity.site
    if await _execute(conn, "use_grant", wanted) is None:
        seen = await _execute(conn, "why_no_grant", wanted) or {"status": None, "used": False, "same_call": False}
        raise grant_refusal(grant, name, status=seen["status"], same_call=seen["same_call"], used=seen["used"])
    return EventDraft(
        kind=EventKind.APPROVAL_USED,
        node=site.node,
        task_id=site.task_id,
        call_id=call_id,
        payload={"approval_id": grant, "name": name},
    )


async def _write(conn: Connection, owner: Owner, drafts: Sequence[EventDraft]) -> None:
    await write_events(conn, tenant_id=owner.tenant_id, run_id=owner.run_id, attempt=owner.attempt, drafts=drafts)


def _intent_columns(owner: Owner, intent: CallIntent) -> dict[str, Any]:
    identity, site = intent.identity, intent.identity.site
    return {
        "call_id": uuid_text(intent.call_id, what="call"),
        "tenant_id": owner.tenant_id,
        "run_id": owner.run_id,
        "thread_id": owner.thread_id,
        "identity_key": identity.key,
        "checkpoint_ns": site.checkpoint_ns,
        "task_id": site.task_id,
        "node": site.node,
        "checkpoint_id": site.checkpoint_id,
        "kind": identity.kind,
        "name": identity.name,
        "occurrence": identity.occurrence,
        "fork": identity.fork,
        "agent_name": intent.agent_name,
        "request_digest": identity.request_digest,
        "request": canonical(intent.request),
        "effect": intent.effect.value,
        "idempotent": intent.idempotent,
        "budgets": list(intent.budgets),
        "reserved": Jsonb(usage_to_json(intent.reservation)),
        "model": intent.model,
        "prompt_version": intent.prompt_version,
        "policy_version": intent.policy_version,
        "timeout_ms": round(intent.timeout_seconds * 1000),
        "epoch": owner.epoch,
    }


def _outcome_columns(outcome: CallOutcome) -> dict[str, Any]:
    unknown = outcome.status is OutcomeStatus.UNKNOWN
    return {
        "call_id": outcome.call_id,
        "status": outcome.status.value,
        "used": None if unknown else Jsonb(usage_to_json(outcome.usage)),
        "response": None if outcome.response is None else canonical(outcome.response),
        "error_type": None if outcome.error_type is None else outcome.error_type.value,
        "error_message": outcome.error_message,
        "error_facts": Jsonb(json.loads(canonical(outcome.error_facts))),
        "latency_ms": outcome.latency_ms,
    }


def _record(row: Row) -> CallRecord:
    sends = [usage_from_json(send["used"]) for send in row["earlier"]]
    if row["used"] is not None:
        sends.append(usage_from_json(row["used"]))
    return CallRecord(
        call_id=CallId(str(row["call_id"])),
        tenant_id=TenantId(row["tenant_id"]),
        run_id=RunId(str(row["run_id"])),
        last_run_id=_last_run(row),
        identity=_identity(row),
        agent_name=row["agent_name"],
        request=json.loads(row["request"]),
        effect=Effect(row["effect"]),
        idempotent=row["idempotent"],
        status=row["status"],
        reservation=usage_from_json(row["reserved"]),
        usage=sum(sends, start=Usage()),
        response=None if row["response"] is None else json.loads(row["response"]),
        error_type=None if row["error_type"] is None else ErrorType(row["error_type"]),
        error_message=row["error_message"],
        error_facts=row["error_facts"] or {},
        sends=row["sends"],
        latency_ms=row["latency_ms"],
        model=row["model"],
        prompt_version=row["prompt_version"],
        policy_version=row["policy_version"],
        opened_at=row["opened_at"],
        closed_at=row["closed_at"],
    )


def _identity(row: Row) -> CallIdentity:
    site = CallSite(
        thread_id=ThreadId(str(row["thread_id"])),
        checkpoint_ns=row["checkpoint_ns"],
        task_id=row["task_id"],
        node=row["node"],
        checkpoint_id=row["checkpoint_id"],
    )
    return CallIdentity(
        site=site,
        kind=row["kind"],
        name=row["name"],
        request_digest=row["request_digest"],
        occurrence=row["occurrence"],
        fork=row["fork"],
    )


def _last_run(row: Row) -> RunId:
    """The run that sent a call last: a resumed one may have sent it again for the one that opened it."""
    return RunId(str(row["sent_by"] or row["run_id"]))


def _path(row: Row) -> list[BudgetId]:
    return [BudgetId(str(budget_id)) for budget_id in row["budgets"]]
