"""The journal on Postgres: each intent and each outcome is one fenced commit, with its money and its event.

An intent that is new, and an outcome of what was opened here, are committed together with whatever else the runs of
this process have to write (`writer.py`). All that is out of the ordinary has a transaction of its own: a call that is
recorded already, a grant to be used up, a budget that is locked or may have no room.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import orjson
from psycopg.types.json import Jsonb

from holdfast.checkpoints.database import Connection, Database
from holdfast.checkpoints.events import write_events_of
from holdfast.checkpoints.ledger import reserve, settle, usage_from_json, usage_to_json
from holdfast.checkpoints.moves import Move, amounts
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.records import Records, close_row, event_row, open_row
from holdfast.checkpoints.sealed_documents import CALLS, Documents
from holdfast.checkpoints.writer import Handed
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
    opened_now,
)
from holdfast.contracts.canonical import canonical
from holdfast.contracts.errors import (
    Conflict,
    ErrorType,
    HoldfastError,
    InvariantViolated,
    NotFound,
    TransientDependency,
)
from holdfast.contracts.events import EventDraft, EventKind
from holdfast.contracts.ids import ApprovalId, BudgetId, CallId, RunId, TenantId, ThreadId, uuid_text
from holdfast.contracts.limits import Usage
from holdfast.contracts.runs import Owner
from holdfast.contracts.tools import Effect
from holdfast.policies.refusal import grant_refusal
from holdfast.policies.replay import counts_as_no_outcome, require_recorded

_SQL = load_queries(__name__, "journal.sql")
_WITHOUT_OUTCOME = frozenset({"open", "unknown"})
_MOST_REMEMBERED = 10_000
"""Open calls; of those beyond, the oldest are read again when they are closed."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Open:
    """A call that was opened here, and the budgets that pay for it."""

    record: CallRecord
    budgets: Sequence[BudgetId]


class PostgresJournal:
    """`contracts.ports.Journal` on Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer = database.writer
        self._open: OrderedDict[CallId, _Open] = OrderedDict()
        """What was opened here and is not closed yet: a call is closed without being read again."""

    async def open(self, owner: Owner, intent: CallIntent, *, event: EventDraft) -> Opened:
        if owner.attached or intent.grant is not None:
            return await self._open_alone(owner, intent, event)
        facts = _intent_facts(owner, intent)
        opened_at = await self._opened_together(owner, intent, facts, event)
        if opened_at is None:
            return await self._open_alone(owner, intent, event)
        request = orjson.loads(facts["request"])
        record = opened_now(
            intent, tenant_id=owner.tenant_id, run_id=owner.run_id, request=request, opened_at=opened_at
        )
        return Fresh(self._remembered(record, intent.budgets))

    async def resend(self, owner: Owner, call_id: CallId, *, reservation: Usage, event: EventDraft) -> CallRecord:
        async with self._database.owned(owner) as conn:
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
            await write_events_of(conn, owner, [replace(event, call_id=call_id)])
        return self._remembered(_record(resent), paying)

    async def close(self, owner: Owner, outcome: CallOutcome, *, event: EventDraft) -> CallRecord:
        opened = self._open.pop(outcome.call_id, None)
        if opened is not None and not owner.attached and outcome.status is not OutcomeStatus.UNKNOWN:
            closed = await self._closed_together(owner, opened, outcome, event)
            if closed is not None:
                return closed
        return await self._close_alone(owner, outcome, event)

    async def find(self, tenant_id: TenantId, thread_id: ThreadId, key: str) -> CallRecord | None:
        wanted = {
            "tenant_id": tenant_id,
            "thread_id": uuid_text(thread_id, what="thread"),
            "identity_key": key,
        }
        async with self._database.tenant(tenant_id) as conn:
            row = await _execute(conn, "find_call", wanted)
        return None if row is None else _record(row)

    async def of_task(self, tenant_id: TenantId, thread_id: ThreadId, task_id: str) -> Mapping[str, CallRecord]:
        rows = await self._database.reader.calls(tenant_id, thread_id, task_id)
        opened = (self._database.documents.opened(CALLS, row) for row in rows)
        return {record.identity.key: record for record in map(_record, opened)}

    async def of_run(self, tenant_id: TenantId, run_id: RunId) -> Sequence[CallRecord]:
        wanted = {"tenant_id": tenant_id, "run_id": uuid_text(run_id, what="run")}
        async with self._database.tenant(tenant_id) as conn:
            rows = await (await conn.execute(_SQL["calls_of_run"], wanted)).fetchall()
            return [_record(conn.documents.opened(CALLS, row)) for row in rows]

    async def _opened_together(
        self, owner: Owner, intent: CallIntent, facts: Mapping[str, Any], event: EventDraft
    ) -> datetime | None:
        """When the intent was committed; None where it must be looked at alone."""
        await self._writer.admit()
        stored = self._database.documents.sealed(CALLS, owner.tenant_id, facts["call_id"], facts)
        records = Records(
            opens=[open_row(stored)],
            events=[event_row(event, owner.attempt, call_id=intent.call_id)],
            moves=[Move(intent.budgets, reserved=amounts(facts["reserved"]))],
        )
        handed = self._writer.hand_in(self._writer.pen(owner), records=records)
        try:
            return await self._writer.answer(handed)
        except asyncio.CancelledError:
            if not self._writer.withdraw(handed):
                await self._take_back(owner, intent, handed)
            raise

    async def _take_back(self, owner: Owner, intent: CallIntent, handed: Handed) -> None:
        """Nobody sends what was being opened when its task was cancelled: it must not stay in doubt."""
        with suppress(HoldfastError):
            if await self._writer.answer(handed) is not None:
                unsent = TransientDependency(f"{intent.identity.name} was cancelled before it was sent")
                outcome = CallOutcome(
                    call_id=intent.call_id,
                    status=OutcomeStatus.FAILED,
                    usage=Usage(),
                    error_type=unsent.error_type,
                    error_message=unsent.message,
                )
                kind = EventKind.MODEL_FAILED if intent.identity.kind == "model" else EventKind.TOOL_FAILED
                site = intent.identity.site
                told = EventDraft(kind=kind, node=site.node, task_id=site.task_id, payload={"reason": "never sent"})
                await self._close_alone(owner, outcome, told)

    async def _closed_together(
        self, owner: Owner, opened: "_Open", outcome: CallOutcome, event: EventDraft
    ) -> CallRecord | None:
        """The record with its outcome; None where it must be looked at alone."""
        await self._writer.admit()
        facts = _outcome_facts(owner, outcome)
        stored = self._database.documents.sealed(CALLS, owner.tenant_id, outcome.call_id, facts)
        record = opened.record
        reserved, used = amounts(usage_to_json(record.reservation)), amounts(facts["used"])
        records = Records(
            closes=[close_row(stored, opened.budgets)],
            events=[event_row(event, owner.attempt, call_id=outcome.call_id)],
            moves=[Move(opened.budgets, reserved=reserved, used=used)],
        )
        closed_at = await self._writer.answer(self._writer.hand_in(self._writer.pen(owner), records=records))
        if closed_at is None:
            return None
        return replace(
            record,
            status=outcome.status.value,
            usage=outcome.usage if record.sends == 1 else record.usage + outcome.usage,
            response=None if facts["response"] is None else orjson.loads(facts["response"]),
            error_type=outcome.error_type,
            error_message=outcome.error_message,
            error_facts=facts["error_facts"],
            latency_ms=outcome.latency_ms,
            closed_at=closed_at,
        )

    async def _open_alone(self, owner: Owner, intent: CallIntent, event: EventDraft) -> Opened:
        async with self._database.owned(owner) as conn:
            columns = _intent_columns(conn.documents, owner, intent)
            opened = await _execute(conn, "insert_intent", columns)
            granted_before = None
            if opened is None:
                # It was there, or another writer of ours has just committed it: the unique constraint has waited.
                found = await _existing(conn, owner, intent)
                record = _record(found)
                require_recorded(record)
                if _is_this_one(found, owner, intent):
                    return Fresh(self._remembered(record, intent.budgets))
                if not counts_as_no_outcome(record, for_run=owner.run_id):
                    return Unknown(record) if record.status in _WITHOUT_OUTCOME else Recorded(record)
                granted_before = found["grant_id"]
                opened = await _changed(conn, "reopen_call", columns | {"call_id": record.call_id})
            record = _record(opened)
            drafts = [replace(event, call_id=record.call_id)]
            if intent.grant is not None and str(granted_before) != intent.grant:
                drafts.insert(0, await _use_grant(conn, owner, intent, intent.grant, record.call_id))
            await reserve(conn, owner.tenant_id, intent.budgets, intent.reservation)
            await write_events_of(conn, owner, drafts)
        return Fresh(self._remembered(record, intent.budgets))

    async def _close_alone(self, owner: Owner, outcome: CallOutcome, event: EventDraft) -> CallRecord:
        async with self._database.owned(owner) as conn:
            row = await _locked(conn, owner, outcome.call_id)
            if row["status"] not in _WITHOUT_OUTCOME or row["status"] == outcome.status.value:
                return _record(row)
            closed = await _changed(conn, "close_call", _outcome_columns(conn.documents, owner, outcome))
            if outcome.status is not OutcomeStatus.UNKNOWN:
                reserved = usage_from_json(row["reserved"])
                await settle(conn, owner.tenant_id, _path(row), reserved=reserved, used=outcome.usage)
            await write_events_of(conn, owner, [replace(event, call_id=outcome.call_id)])
            return _record(closed)

    def _remembered(self, record: CallRecord, budgets: Sequence[BudgetId]) -> CallRecord:
        self._open[record.call_id] = _Open(record, budgets)
        if len(self._open) > _MOST_REMEMBERED:
            self._open.popitem(last=False)
        return record


async def _execute(conn: Connection, query: str, values: Row) -> Row | None:
    row = await (await conn.execute(_SQL[query], values)).fetchone()
    return conn.documents.opened(CALLS, row) if row is not None and CALLS.key in row else row


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


def _is_this_one(row: Row, owner: Owner, intent: CallIntent) -> bool:
    """Whether the row is of this very intent: it was committed, and the answer was lost on its way here."""
    return str(row["call_id"]) == intent.call_id and row["status"] == "open" and row["epoch"] == owner.epoch


def _intent_facts(owner: Owner, intent: CallIntent) -> dict[str, Any]:
    """The columns of an intent, as JSON has them. Raises `InvalidRequest` for a request that is not JSON."""
    identity, site = intent.identity, intent.identity.site
    return {
        "call_id": uuid_text(intent.call_id, what="call"),
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
        "reserved": usage_to_json(intent.reservation),
        "model": intent.model,
        "prompt_version": intent.prompt_version,
        "policy_version": intent.policy_version,
        "timeout_ms": round(intent.timeout_seconds * 1000),
    }


def _intent_columns(documents: Documents, owner: Owner, intent: CallIntent) -> dict[str, Any]:
    facts = _intent_facts(owner, intent)
    facts = documents.sealed(CALLS, owner.tenant_id, facts["call_id"], facts)
    whose = {"tenant_id": owner.tenant_id, "run_id": owner.run_id, "epoch": owner.epoch}
    return facts | whose | {"reserved": Jsonb(facts["reserved"])}


def _outcome_facts(owner: Owner, outcome: CallOutcome) -> dict[str, Any]:
    """The columns of an outcome, as JSON has them. Raises `InvalidRequest` for a response that is not JSON."""
    unknown = outcome.status is OutcomeStatus.UNKNOWN
    return {
        "call_id": outcome.call_id,
        "thread_id": owner.thread_id,
        "status": outcome.status.value,
        "used": None if unknown else usage_to_json(outcome.usage),
        "response": None if outcome.response is None else canonical(outcome.response),
        "error_type": None if outcome.error_type is None else outcome.error_type.value,
        "error_message": outcome.error_message,
        "error_facts": json.loads(canonical(outcome.error_facts)) if outcome.error_facts else {},
        "latency_ms": outcome.latency_ms,
    }


def _outcome_columns(documents: Documents, owner: Owner, outcome: CallOutcome) -> dict[str, Any]:
    facts = documents.sealed(CALLS, owner.tenant_id, outcome.call_id, _outcome_facts(owner, outcome))
    used = None if facts["used"] is None else Jsonb(facts["used"])
    return facts | {"used": used, "error_facts": Jsonb(facts["error_facts"])}


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
        request={} if row["request"] is None else json.loads(row["request"]),
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
        contents_pruned_at=row["contents_pruned_at"],
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
