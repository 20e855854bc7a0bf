"""What the demo draws: the run as its events tell it, the question to the person, the money and the checks."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import zip_longest
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from holdfast.contracts.approvals import Approval
from holdfast.contracts.calls import CallRecord
from holdfast.contracts.events import Event, EventKind
from holdfast.contracts.limits import BudgetState
from holdfast.contracts.runs import Run, RunResult, RunStatus
from holdfast.graphs.refund_desk.store import PaidRefund
from holdfast.runtime.runtime import RunReport

_WIDTH = 100
_BAR = 36
_DONE, _FAILED, _PAUSED, _AHEAD = Text("✓", "green"), Text("✗", "red"), Text("⏸", "yellow"), Text("·", "dim")
_SPINNER = Spinner("dots", style="cyan")
_MARKS: dict[EventKind, RenderableType] = {
    EventKind.NODE_STARTED: _SPINNER,
    EventKind.NODE_COMPLETED: _DONE,
    EventKind.NODE_INTERRUPTED: _PAUSED,
    EventKind.NODE_FAILED: _FAILED,
}

_FOUND: dict[EventKind, str] = {
    EventKind.TOOL_RETRIED: "asked the provider again with the same key: it had paid, once",
    EventKind.CALL_RECONCILED: "found out what had become of it",
}


def opening(email: str, *, model: str | None) -> RenderableType:
    """The e-mail that is to be handled, and by which model."""
    who = f"by {model}" if model and not model.startswith("scripted:") else "offline, by a scripted model"
    told = Text(f"A supervisor and three specialists handle it, {who}.\n", "dim")
    return Group(Text(), _panel(Text(email.strip()), title="an e-mail comes in", style="blue"), told)


def progress(
    report: RunReport,
    events: Sequence[Event],
    state: Mapping[str, Any],
    *,
    nodes: Sequence[str],
    killed: int | None = None,
) -> RenderableType:
    """The run as it stands: its steps and agents, what is left of its budget and its time, and what became of a worker
    that was `killed` (its process id)."""
    steps = Table.grid(padding=(0, 1), expand=True)
    steps.add_column(width=2)
    steps.add_column(width=17, no_wrap=True)
    steps.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    steps.add_column(width=7, justify="right", no_wrap=True)
    steps.add_column(width=8, justify="right", no_wrap=True)
    for node in nodes:
        _step(steps, node, report.calls, [event for event in events if event.node == node], state)
    lost = [] if killed is None else [Text(), *_lost(killed, report.run, events)]
    body = Group(steps, Text(), _budget(report.budget), _deadline(report.run), *lost)
    return _panel(body, title=f"run {report.run.run_id}", style="cyan", subtitle=_standing(report.run))


def question(approval: Approval) -> RenderableType:
    """What the person is asked."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for name, value in sorted((approval.args or {}).items()):
        facts.add_row(name, str(value))
    facts.add_row("rule", approval.rule or "")
    heading = Text.assemble("May ", (str(approval.tool_name), "bold"), " be called with exactly this?\n")
    return _panel(Group(heading, facts), title="a person is asked", style="yellow")


def money(report: RunReport) -> RenderableType:
    """What each agent has used."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("agent", "model calls", "tool calls", "tokens", "cost"):
        table.add_column(heading, justify="left" if heading == "agent" else "right", min_width=13)
    for agent, calls in _by_agent(report.calls).items():
        models = sum(call.identity.kind == "model" for call in calls)
        tokens = sum(call.usage.tokens_used for call in calls)
        table.add_row(agent, str(models), str(len(calls) - models), str(tokens), _dollars(_cost(calls)))
    spent = report.budget.spent
    total = (str(spent.model_calls), str(spent.tool_calls), str(spent.tokens_used), _dollars(spent.cost_usd))
    table.add_section()
    table.add_row("the run", *total, style="bold")
    return table


def reply(output: Mapping[str, Any]) -> RenderableType:
    """What the customer is written."""
    answer = output["reply"]
    return _panel(Text(f"Subject: {answer['subject']}\n\n{answer['body']}"), title="the reply", style="green")


def failure(result: RunResult) -> RenderableType:
    """How a run ended that did not complete."""
    cause = "" if result.error is None else f"{result.error.error_type}: {result.error.message}"
    return _panel(Text(cause), title=f"the run {result.status}", style="red")


def checks(found: Mapping[str, Sequence[str]], refunds: Sequence[PaidRefund], *, expected: int) -> RenderableType:
    """What was promised, and whether it holds: the rules of the database, and the rows of the outside ledger."""
    rules = Table.grid(padding=(0, 2))
    rows = [Text.assemble(_FAILED if rows else _DONE, " ", name.replace("_", " ")) for name, rows in found.items()]
    for left, right in zip_longest(rows[: (len(rows) + 1) // 2], rows[(len(rows) + 1) // 2 :], fillvalue=Text()):
        rules.add_row(left, right)
    broken = [Text(f"    {violation}", "red") for violations in found.values() for violation in violations]
    count = {0: "no refund", 1: "exactly one refund"}.get(len(refunds), f"{len(refunds)} refunds")
    ledger = Text.assemble(
        _DONE if len(refunds) == expected else _FAILED, " in the shop's own ledger: ", (count, "bold")
    )
    paid = [Text(f"  {_row(refund)}", "dim") for refund in refunds]
    heading = Text("what must hold in the database, asked of its rows", "bold")
    return Group(Text(), heading, rules, *broken, Text(), ledger, *paid, Text())


def _row(refund: PaidRefund) -> str:
    key = refund.idempotency_key[:16]
    return f"{refund.refund_id}  order {refund.order_id}  ${refund.amount_usd}  idempotency key {key}…"


def _step(
    table: Table, node: str, calls: Sequence[CallRecord], events: Sequence[Event], state: Mapping[str, Any]
) -> None:
    mine = [call for call in calls if call.identity.site.node == node]
    agents = _by_agent(mine)
    started = [event.at for event in events if event.kind is EventKind.NODE_STARTED]
    last = next((event for event in reversed(events) if event.kind in _MARKS), None)
    mark = _AHEAD if last is None else _MARKS[last.kind]
    ended = last.at if last is not None and last.kind is EventKind.NODE_COMPLETED else None
    told = Text("waits for a person", "yellow") if mark is _PAUSED else Text(_told(node, state) if ended else "")
    name = Text(node, "bold" if last is not None else "dim")
    # What a person takes to decide is not the step's own time: only the last try counts.
    table.add_row(mark, name, told, _seconds(started[-1:], ended), _dollars(_cost(mine)) if mine else "")
    if len(agents) > 1:
        for agent in sorted(agents):
            branch = "└" if agent == max(agents) else "├"
            _specialist(table, f"{branch} {agent}", agents[agent], unfinished=mark, finding=_finding(agent, state))


def _specialist(
    table: Table, name: str, calls: Sequence[CallRecord], *, unfinished: RenderableType, finding: str
) -> None:
    """A specialist's row: what it is doing, then what it found. Its last call is the model's answer."""
    under_way = next((call for call in calls if call.status == "open"), None)
    answered = next((call for call in calls if call.identity.kind == "model" and call.status == "returned"), None)
    doing = "" if under_way is None else _doing(under_way)
    table.add_row(
        unfinished if answered is None else _DONE,
        Text(name),
        Text(finding or doing, "default" if finding else "dim"),
        _seconds([call.opened_at for call in calls], None if answered is None else answered.closed_at),
        _dollars(_cost(calls)),
    )


def _doing(call: CallRecord) -> str:
    return "asks the model" if call.identity.kind == "model" else f"calls {call.identity.name}"


def _told(node: str, state: Mapping[str, Any]) -> str:
    """What a step has found, in a few words. Its event may be seen a moment before its checkpoint."""
    claim, decision, refund, reply = (state.get(key) for key in ("claim", "decision", "refund", "reply"))
    match node:
        case "read_email" if claim:
            return f"order {claim['order_id'] or 'unknown'}, ${claim['amount_usd'] or '?'}, {claim['reason']}"
        case "investigate":
            return "three specialists, side by side"
        case "decide" if decision:
            amount = f" ${decision['amount_usd']}" if decision["action"] == "refund" else ""
            return f"{decision['action']}{amount}"
        case "issue_refund" if refund:
            return f"{refund['status']} ${refund['amount_usd']} {refund['refund_id'] or ''}"
        case "write_reply" if reply:
            return str(reply["subject"])
    return ""


def _finding(agent: str, state: Mapping[str, Any]) -> str:
    return str(state.get("findings", {}).get(agent, {}).get("summary", ""))


def _budget(state: BudgetState) -> RenderableType:
    limit, spent, reserved = state.limits.max_cost_usd, state.spent.cost_usd, state.reserved.cost_usd
    if not limit or spent is None or reserved is None:
        return Text(f"budget    {_dollars(spent)}")
    bar = _bar(float(spent / limit), float(reserved / limit), "green")
    held = f", {_dollars(reserved)} reserved" if reserved else ""
    return Text.assemble(("budget    ", "dim"), bar, f"  {_dollars(spent)} of {_dollars(limit)} spent{held}")


def _deadline(run: Run) -> RenderableType:
    limit, left = run.limits.deadline_seconds, run.remaining_seconds
    if not limit or left is None:
        return Text()
    stands = "; the clock stands still" if run.status is RunStatus.INTERRUPTED else ""
    bar = _bar(1 - max(0.0, left) / limit, 0, "magenta")
    return Text.assemble(("deadline  ", "dim"), bar, f"  {max(0.0, left):.0f} s of {limit:.0f} s left{stands}")


def _lost(pid: int, run: Run, events: Sequence[Event]) -> Sequence[RenderableType]:
    """A worker's death, and who went on."""
    death = Text.assemble(
        _FAILED, (f" worker {pid} was killed with SIGKILL in the middle of the refund: ", "red"),
        "paid, and not written down",
    )  # fmt: skip
    claims = [event for event in events if event.kind is EventKind.RUN_CLAIMED]
    dead = next((claim for claim in claims if f":{pid}:" in str(claim.payload.get("worker_id"))), None)
    later = [claim for claim in claims if f":{pid}:" not in str(claim.payload.get("worker_id"))]
    if dead is None or not later or later[-1].attempt != run.attempt:
        return death, Text("  its lease runs out; nobody else may go on until it has", "dim")
    heir = str(later[-1].payload["worker_id"]).split(":")[1]
    found = [event for event in events if event.attempt == run.attempt and event.kind in _FOUND]
    how = f", and {_FOUND[found[0].kind]}" if found else ""
    return death, Text.assemble(_DONE, f" worker {heir} took over as attempt {run.attempt}{how}")


def _bar(used: float, reserved: float, style: str) -> Text:
    full = round(_BAR * min(1.0, used))
    held = min(_BAR - full, round(_BAR * reserved))
    return Text.assemble(("━" * full, style), ("━" * held, "yellow"), ("─" * (_BAR - full - held), "dim"))


def _standing(run: Run) -> str:
    return f"{run.status.value} · tenant {run.tenant.tenant_id} · attempt {run.attempt}"


def _by_agent(calls: Sequence[CallRecord]) -> dict[str, list[CallRecord]]:
    found: defaultdict[str, list[CallRecord]] = defaultdict(list)
    for call in calls:
        found[call.agent_name].append(call)
    return dict(found)


def _cost(calls: Sequence[CallRecord]) -> Decimal | None:
    costs = [call.usage.cost_usd for call in calls]
    return None if None in costs else sum((cost for cost in costs if cost is not None), Decimal(0))


def _seconds(started: Sequence[datetime], ended: datetime | None) -> str:
    return f"{(ended - min(started)).total_seconds():.1f} s" if started and ended is not None else ""


def _dollars(amount: Decimal | None) -> str:
    return "unknown" if amount is None else f"${amount:.4f}"


def _panel(body: RenderableType, *, title: str, style: str, subtitle: str | None = None) -> RenderableType:
    return Panel(
        Padding(body, (0, 1)),
        title=f"[bold]{title}[/]",
        title_align="left",
        subtitle=subtitle,
        subtitle_align="right",
        border_style=style,
        box=box.ROUNDED,
        width=_WIDTH,
    )
