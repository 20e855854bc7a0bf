"""What the command line shows to a person: tables, a line per step, and what to type next."""

import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.checkpoints.migrating import FINISH, UPGRADE, Standing
from holdfast.checkpoints.schema import Phase
from holdfast.contracts.approvals import Approval, ApprovalKind
from holdfast.contracts.calls import CallRecord
from holdfast.contracts.chain import Verification
from holdfast.contracts.errors import RuntimeErrorRecord
from holdfast.contracts.events import Event
from holdfast.contracts.limits import BudgetState, Limits, Usage
from holdfast.contracts.retention import LegalHold
from holdfast.contracts.runs import Run, RunResult, RunStatus
from holdfast.runtime.replay import ReplayReport
from holdfast.runtime.runtime import RunReport
from holdfast.runtime.travel import HistoryEntry

_LONGEST_WRITTEN = 200
"""Characters of what a task wrote that are shown to a person; `--json` has all."""
_COLOURS = {
    RunStatus.QUEUED: "cyan",
    RunStatus.RUNNING: "blue",
    RunStatus.INTERRUPTED: "yellow",
    RunStatus.COMPLETED: "green",
    RunStatus.FAILED: "red",
    RunStatus.CANCELLED: "magenta",
}


# Of an event's facts, those that a person follows a run by; `--json` has all.
_SHOWN_FACTS = (
    *("agent_name", "tool_name", "specialist", "share", "decision", "by", "rule", "status"),
    *("error_type", "reason", "message", "input_tokens", "output_tokens", "cost_usd", "latency_ms"),
)

UNSERVED = "start a worker with that code, declare the version in govern(…, compatible=…), or cancel the run"
"""What to do about a run that no worker goes on with."""


def json_document(console: Console, document: Any) -> None:
    """One JSON document, and nothing else."""
    console.print(json.dumps(document, indent=2, ensure_ascii=False), markup=False, highlight=False, soft_wrap=True)


def standing(console: Console, found: Standing) -> None:
    """A line for each migration, and how to apply those that wait."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in found.applied:
        applied_at = row["applied_at"].astimezone(UTC).strftime("%Y-%m-%d %H:%M")
        table.add_row(f"{row['number']:04}", row["phase"], row["name"], Text(applied_at))
    for migration in found.pending:
        how = UPGRADE if migration.phase is Phase.PRE else FINISH
        table.add_row(f"{migration.number:04}", migration.phase, migration.name, Text(f"pending; {how}", "yellow"))
    console.print(table)


def json_line(console: Console, document: Any) -> None:
    """One JSON document of many, on a line of its own."""
    console.print(json.dumps(document, ensure_ascii=False), markup=False, highlight=False, soft_wrap=True)


def runs(console: Console, found: Sequence[Run], *, unserved: Sequence[Run] = ()) -> None:
    """A line for each run; those in `unserved` are said to wait for a worker that is not there."""
    if not found:
        console.print("no runs")
        return
    table = Table(box=None, pad_edge=False)
    named = any(run.thread_key != run.run_id for run in found)  # a thread that nobody named is called like its run
    for heading in ("run", "status", "graph", *(("thread",) if named else ()), "admitted", ""):
        table.add_column(heading, no_wrap=heading in {"run", "status", "admitted"}, overflow="fold")
    for run in found:
        cause = run.cause.error_type.value if run.cause is not None else ("asks" if run.next_action else "")
        cause = "dead: its workers were lost" if run.dead else cause
        cause = "cannot be opened here: `holdfast show` says why" if run.unreadable is not None else cause
        if run in unserved:
            cause = f"no worker for version {run.graph_version}"
        admitted = run.created_at.astimezone(UTC).strftime("%m-%d %H:%M")
        thread = (run.thread_key if run.thread_key != run.run_id else "",) if named else ()
        table.add_row(run.run_id, _status(run.status), run.graph_name, *thread, admitted, Text(cause))
    console.print(table)
    if unserved:
        console.print(Text(f"\nno worker that is there goes on with {_those(unserved)}: {UNSERVED}"), soft_wrap=True)


def report(console: Console, report: RunReport) -> None:
    """All there is to know of a run."""
    run = report.run
    _facts(
        console,
        {
            "run": run.run_id,
            "graph": f"{run.graph_name} (version {run.graph_version}){_served_by(report)}",
            "tenant": run.tenant.tenant_id + (f", for {run.tenant.user_id}" if run.tenant.user_id else ""),
            "thread": run.thread_key,
            "status": Text.assemble(_status(run.status), ": dead") if run.dead else _status(run.status),
            **({} if run.legal_hold is None else {"legal hold": _held(run.legal_hold)}),
            **({} if run.contents_pruned_at is None else {"contents": _pruned(run.contents_pruned_at)}),
            "attempt": f"{run.attempt} (at most {run.max_attempts} workers in a row may be lost)",
        },
    )
    console.print()
    budget(console, report.budget, run.limits, run.remaining_seconds)
    if report.calls:
        console.print()
        calls(console, report.calls)
    if report.approvals:
        console.print()
        approvals(console, report.approvals)
    if not report.served:
        what = f"no worker that is there goes on with version {run.graph_version} of {run.graph_name}"
        console.print(Text(f"\n{what}: {UNSERVED}"), soft_wrap=True)
    _ending(console, run.output, _advice(run), None if run.cause is None else _cause(run.cause))


def budget(console: Console, state: BudgetState, limits: Limits, remaining_seconds: float | None) -> None:
    """Limits as they hold, defaults included, with what is spent and reserved."""
    table = Table(box=None, pad_edge=False)
    for heading in ("limit", "at most", "spent", "reserved"):
        table.add_column(heading, justify="left" if heading == "limit" else "right")
    spent, reserved = state.spent, state.reserved
    for name, most, used, held in (
        ("model calls", limits.max_model_calls, spent.model_calls, reserved.model_calls),
        ("tool calls", limits.max_tool_calls, spent.tool_calls, reserved.tool_calls),
        ("tokens", limits.max_tokens, spent.tokens_used, reserved.tokens_used),
        ("cost", _dollars(limits.max_cost_usd), _spent(spent), _spent(reserved)),
        ("steps", limits.max_steps, spent.steps, 0),
    ):
        table.add_row(name, _most(most), str(used), str(held))
    seconds = limits.deadline_seconds
    left = "" if remaining_seconds is None else f"{max(0.0, remaining_seconds):.1f} s left"
    table.add_row("working time", "unlimited" if seconds is None else f"{seconds:g} s", left, "")
    console.print(table)


def calls(console: Console, made: Sequence[CallRecord]) -> None:
    """A line for each model and tool call."""
    table = Table(box=None, pad_edge=False)
    for heading in ("call", "node", "agent", "status", "sends", "tokens", "cost", "ms"):
        table.add_column(heading, justify="right" if heading in {"sends", "tokens", "cost", "ms"} else "left")
    for call in made:
        name = call.model or call.identity.name
        status = call.status if call.error_type is None else f"{call.status}: {call.error_type.value}"
        status += "" if call.contents_pruned_at is None else ", pruned"
        table.add_row(
            f"{call.identity.kind} {name}",
            call.identity.site.node,
            call.agent_name,
            status,
            str(call.sends),
            str(call.usage.tokens_used or ""),
            _spent(call.usage) if call.identity.kind == "model" else "",
            str(call.latency_ms if call.latency_ms is not None else ""),
        )
    console.print(table)


def approvals(console: Console, asked: Sequence[Approval]) -> None:
    """What people are or were asked."""
    for approval in asked:
        who = f" by {approval.decided_by}" if approval.decided_by else ""
        console.print(Text(f"{approval.status.value}{who}: {_question(approval)}"), soft_wrap=True)


def history(console: Console, entries: Sequence[HistoryEntry]) -> None:
    """A line for each checkpoint, newest first, and below it what was written to get there."""
    for entry in entries:
        when = "" if entry.at is None else f"{entry.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
        line = Text.assemble((entry.checkpoint_id, "bold"), f"  {when}  step {entry.step}  {entry.source}")
        line.append(f"  next: {', '.join(entry.next) or 'nothing'}")
        if entry.run_id is not None:
            line.append(f"  run {entry.run_id}" + (f" attempt {entry.attempt}" if entry.attempt else ""), style="dim")
        console.print(line, soft_wrap=True)
        for one in entry.written:
            wrote = json.dumps(one.values, ensure_ascii=False, default=str) if one.error is None else one.error
            console.print(Text(f"    {one.node}: {_shortened(wrote)}", style="dim"), soft_wrap=True)


def replay(console: Console, report: ReplayReport) -> None:
    """Call by call, what was answered from the record; and what is not as it was recorded."""
    for call in report.calls:
        line = Text.assemble("replayed  ", (call.identity.site.node, "bold"), f"  {call.identity.name}  {call.status}")
        console.print(line, soft_wrap=True)
    for difference in report.differences:
        console.print(Text(f"differs   {difference}", style="red"), soft_wrap=True)
    run, version = report.run, report.graph_version
    code = (
        "the recorded version"
        if version == run.graph_version
        else f"version {version}, recorded with {run.graph_version}"
    )
    verdict = "does the same" if report.same else "does not do the same"
    console.print(Text(f"run {run.run_id} ({run.status.value}): {code} of {run.graph_name} {verdict}"), soft_wrap=True)


def events(console: Console, log: Sequence[Event]) -> None:
    """A line for each event."""
    for event in log:
        event_line(console, event)


def verification(found: Verification) -> str:
    """One line on whether a run's events are what was written."""
    head = found.head
    if head is None or not found.ok:
        return f"run {found.run_id} BROKEN: {found.broken}"
    pruned = f"; those up to {head.anchor_seq} were pruned" if head.anchor_seq else ""
    return f"run {found.run_id}: {_count(found.events, 'event')} verified{pruned}; head {head.seq} {head.hash.hex()}"


def event_line(console: Console, event: Event) -> None:
    """One event as it commits."""
    line = Text(f"{event.seq:>4}  {event.at.strftime('%H:%M:%S.%f')[:-3]}  ", style="dim")
    style = "red" if event.kind.value.endswith(("failed", "refused", "unknown")) else "default"
    line.append(f"{event.kind.value:<22}", style=style)
    line.append(f"{event.node or '':<18}", style="bold")
    line.append(_payload(event))
    console.print(line, soft_wrap=True)


def draining(report: RunReport) -> Text:
    """One line on what a run has left."""
    run, spent = report.run, report.budget.spent
    parts = [
        run.status.value,
        f"{spent.model_calls}/{_most(run.limits.max_model_calls)} model calls",
        f"{spent.tool_calls}/{_most(run.limits.max_tool_calls)} tool calls",
        f"{_spent(spent)} of {_dollars(run.limits.max_cost_usd) or 'unlimited'}",
    ]
    if run.remaining_seconds is not None:
        parts.append(f"{max(0.0, run.remaining_seconds):.0f} s left")
    return Text(" · ".join(parts))


def outcome(console: Console, result: RunResult) -> None:
    """How a run stands, and the command to type where a person must decide."""
    console.print(Text.assemble("run ", result.run_id, " ", _status(result.status)))
    used = result.usage
    console.print(
        Text(
            f"used {_count(used.model_calls, 'model call')}, {_count(used.tool_calls, 'tool call')}, "
            f"{_count(used.tokens_used, 'token')}, {_spent(used)}, {_count(used.steps, 'step')}"
        )
    )
    for approval in result.approvals:
        console.print(Text(f"\nasked: {_question(approval)}"), soft_wrap=True)
        for command in commands_for(approval):
            console.print(Text(f"    {command}"), soft_wrap=True)
    _ending(console, result.output, None if result.approvals else result.next_action, None)


def commands_for(approval: Approval) -> list[str]:
    """What to type to decide."""
    if approval.kind is ApprovalKind.QUESTION and "respond" in approval.allowed:
        return [f"holdfast approve {approval.id} --by YOU --answer {shlex.quote('<answer>')}"]
    allowed = {
        "approve": f"holdfast approve {approval.id} --by YOU",
        "reject": f"holdfast reject {approval.id} --by YOU --message {shlex.quote('<why>')}",
    }
    return [command for decision, command in allowed.items() if decision in approval.allowed]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_WRITTEN else f"{text[:_LONGEST_WRITTEN]}… ({len(text)} characters)"


_ASKED = {
    ApprovalKind.RECONCILE: "did this happen?",
    ApprovalKind.MISMATCH: "may this stand, though it is not asked for any more?",
}


def _question(approval: Approval) -> str:
    if approval.contents_pruned_at is not None:
        return f"{approval.tool_name or approval.node} ({_pruned(approval.contents_pruned_at)})"
    if approval.tool_name is None:
        return f"{approval.node}: {json.dumps(approval.payload, ensure_ascii=False, default=str)}"
    args = json.dumps(approval.args or {}, ensure_ascii=False, default=str)
    what = _ASKED.get(approval.kind, "may this be done?")
    rule = f" (rule {approval.rule})" if approval.rule else ""
    return f"{what} {approval.tool_name} {args}{rule}"


def _ending(console: Console, output: Any, next_action: str | None, error: str | None) -> None:
    if error is not None:
        console.print(Text(f"\ncause: {error}"), soft_wrap=True)
    if next_action is not None:
        console.print(Text(f"\nnext: {next_action}"), soft_wrap=True)
    if output is not None:
        console.print()
        json_document(console, output)


def _advice(run: Run) -> str | None:
    """What a person can do next, if anything."""
    if not run.dead:
        return run.next_action
    return (
        f"see with `holdfast events {run.run_id}`, and in the workers' logs, how far each of them came (memory and "
        f"blocking code are the usual causes); then `holdfast resume {run.run_id} --by YOU` goes on where it stopped"
    )


def _cause(cause: RuntimeErrorRecord) -> str:
    """What ended the run, and where: the type, the step, the words, and the line that raised it where one did."""
    place = cause.metadata.get("raised_at")
    return f"{cause.error_type.value} in {cause.step_name}: {cause.message}" + (f"\n  at {place}" if place else "")


def _served_by(report: RunReport) -> str:
    if report.served_by in {None, report.run.graph_version}:
        return ""
    return f", last served by version {report.served_by}"


def _those(runs: Sequence[Run]) -> str:
    versions = sorted({run.version for run in runs})
    return ", ".join(f"version {each.version} of {each.name}" for each in versions)


def _held(hold: LegalHold) -> str:
    return f"by {hold.by} since {hold.since:%Y-%m-%d}: {hold.reason}"


def _pruned(at: datetime) -> str:
    return f"pruned on {at.astimezone(UTC):%Y-%m-%d %H:%M}Z by its tenant's terms of retention"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _facts(console: Console, facts: dict[str, str | Text]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)


def _status(status: RunStatus) -> Text:
    return Text(status.value, style=_COLOURS[status])


def _payload(event: Event) -> str:
    facts = {name: event.payload.get(name) for name in _SHOWN_FACTS}
    return "  ".join(f"{name}={value}" for name, value in facts.items() if value not in (None, "", {}, []))


def _most(limit: int | str | None) -> str:
    return "unlimited" if limit is None else str(limit)


def _spent(usage: Usage) -> str:
    return "price unknown" if usage.cost_usd is None else str(_dollars(usage.cost_usd))


def _dollars(amount: Decimal | None) -> str | None:
    return None if amount is None else f"${amount:.4f}"
