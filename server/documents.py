"""Runs, calls, approvals, events and migrations as JSON documents: what `--json` prints. No inputs, no raw bytes."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from holdfast.checkpoints.migrating import Standing
from holdfast.contracts.approvals import Approval
from holdfast.contracts.calls import CallRecord
from holdfast.contracts.chain import Verification
from holdfast.contracts.events import Event
from holdfast.contracts.runs import Run, RunResult
from holdfast.runtime.replay import ReplayReport
from holdfast.runtime.runtime import RunReport
from holdfast.runtime.travel import HistoryEntry

Document = dict[str, Any]


def run_document(run: Run) -> Document:
    """A run as the store keeps it."""
    return {
        "run_id": run.run_id,
        "thread_id": run.thread_id,
        "thread": run.thread_key,
        "tenant_id": run.tenant.tenant_id,
        "user_id": run.tenant.user_id,
        "graph": run.graph_name,
        "graph_version": run.graph_version,
        "status": run.status.value,
        "dead": run.dead,
        "attempt": run.attempt,
        "forked_from": run.forked_from,
        "forked_at": run.forked_at,
        "resumed_from": run.resumed_from,
        "limits": run.limits.model_dump(mode="json"),
        "remaining_seconds": run.remaining_seconds,
        "output": run.output,
        "next_action": run.next_action,
        "legal_hold": None if run.legal_hold is None else run.legal_hold.model_dump(mode="json"),
        "error": None if run.cause is None else run.cause.model_dump(mode="json"),
        "contents_pruned_at": _time(run.contents_pruned_at),
        "unreadable": None if run.unreadable is None else str(run.unreadable),
        "created_at": run.created_at.isoformat(),
        "finished_at": _time(run.finished_at),
    }


def result_document(result: RunResult, *, thread: str) -> Document:
    """How a run stands, with what a person is asked."""
    return {
        **result.model_dump(mode="json", exclude={"approvals"}),
        "thread": thread,
        "approvals": [approval_document(each) for each in result.approvals],
    }


def report_document(report: RunReport) -> Document:
    """A run with its budget, calls and approvals."""
    return {
        **run_document(report.run),
        "served_by": report.served_by,
        "served": report.served,
        "usage": report.budget.spent.model_dump(mode="json"),
        "reserved": report.budget.reserved.model_dump(mode="json"),
        "calls": [call_document(each) for each in report.calls],
        "approvals": [approval_document(each) for each in report.approvals],
    }


def call_document(call: CallRecord) -> Document:
    """A call, without its request and answer."""
    return {
        "call_id": call.call_id,
        "kind": call.identity.kind,
        "name": call.identity.name,
        "model": call.model,
        "node": call.identity.site.node,
        "agent_name": call.agent_name,
        "status": call.status,
        "sends": call.sends,
        "usage": call.usage.model_dump(mode="json"),
        "latency_ms": call.latency_ms,
        "error_type": None if call.error_type is None else call.error_type.value,
        "error_message": call.error_message,
        "contents_pruned_at": _time(call.contents_pruned_at),
    }


def approval_document(approval: Approval) -> Document:
    """What a person is asked, and what became of it."""
    return approval.model_dump(mode="json")


def replay_document(report: ReplayReport) -> Document:
    """What became of a replay, and where it left the record."""
    stop = report.stop
    return {
        "run_id": report.run.run_id,
        "same": report.same,
        "differences": list(report.differences),
        "graph_version": report.graph_version,
        "recorded_version": report.run.graph_version,
        "status": report.status.value,
        "recorded_status": report.run.status.value,
        "stopped_at": None if stop is None else {"node": stop.node, "name": stop.name, "why": stop.why},
        "error": None if report.error is None else report.error.model_dump(mode="json"),
        "output": report.output,
        "calls": [call_document(each) for each in report.calls],
        "left_out": [call_document(each) for each in report.left_out],
    }


def verification_document(found: Verification) -> Document:
    """How a run's events stood the test; the head's hash is worth noting elsewhere."""
    head = found.head
    return {
        "run_id": found.run_id,
        "ok": found.ok,
        "events": found.events,
        "pruned_up_to": 0 if head is None else head.anchor_seq,
        "head": None if head is None else {"seq": head.seq, "hash": head.hash.hex()},
        "broken_at": found.broken_at,
        "broken": found.broken,
    }


def history_document(entry: HistoryEntry) -> Document:
    """A checkpoint of a thread."""
    return {
        "checkpoint_id": entry.checkpoint_id,
        "at": _time(entry.at),
        "run_id": entry.run_id,
        "attempt": entry.attempt,
        "step": entry.step,
        "source": entry.source,
        "next": list(entry.next),
        "written": [{"node": one.node, "values": one.values, "error": one.error} for one in entry.written],
    }


def event_documents(events: Sequence[Event]) -> list[Document]:
    """Events in order."""
    return [
        {
            "seq": event.seq,
            "at": event.at.isoformat(),
            "attempt": event.attempt,
            "kind": event.kind.value,
            "node": event.node,
            "call_id": event.call_id,
            "trace_id": event.trace_id,
            "span_id": event.span_id,
            "payload": dict(event.payload),
        }
        for event in events
    ]


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def standing_document(standing: Standing) -> Document:
    """What was applied to a database, and what is pending."""
    applied = [
        {
            "number": row["number"],
            "phase": row["phase"],
            "name": row["name"],
            "applied_at": row["applied_at"].isoformat(),
        }
        for row in standing.applied
    ]
    pending = [{"number": each.number, "phase": each.phase, "name": each.name} for each in standing.pending]
    return {"applied": applied, "pending": pending}
