"""What must hold when a schedule is over: in the database, in the world, and between the two."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from simulation.nursery import TENANTS
from simulation.worlds import TOKENS_IN, TOKENS_OUT, TOOL_OF, World

from holdfast.checkpoints.database import Database
from holdfast.contracts.errors import ErrorType
from holdfast.contracts.ids import TenantId
from holdfast.contracts.runs import RunStatus
from holdfast.graphs.refund_desk.store import RefundLedger
from holdfast.runtime.runtime import RunReport, Runtime
from holdfast.testing.invariants import check

_FORKS = """
select thread_id, checkpoint_ns, coalesce(parent_checkpoint_id, 'the beginning') as parent,
       string_agg(checkpoint_id || ' at step ' || (metadata ->> 'step'), ' and ' order by checkpoint_id) as children
  from checkpoints
 where checkpoint_ns = ''
 group by thread_id, checkpoint_ns, parent_checkpoint_id
having count(*) > 1
"""

_TWICE = """
with seen as (
    select *, count(*) filter (where kind in ('run.claimed', 'approval.decided')) over of_the_run as turns,
           count(*) filter (where kind = 'node.interrupted') over before_it as pauses
      from events
    window of_the_run as (partition by run_id order by seq),
           before_it as (partition by run_id, task_id order by seq rows between unbounded preceding and 1 preceding)
)
select run_id, kind, min(seq) as first, max(seq) as last
  from seen
 group by run_id, turns, pauses, kind, node, task_id, call_id, payload
having count(*) > 1
 order by run_id, first
"""
"""A node of these graphs runs again only after a claim, or after it asked and was decided before its run was parked."""


async def violations(
    database: Database, runtime: Runtime, world: World, handles: Sequence[Any], jobs: Sequence[Any]
) -> list[str]:
    """Everything that is not as it must be, in words."""
    found = [str(finding) for finding in await check(database) if not finding.ok]
    async with database.tenants([TenantId(name) for name in TENANTS]) as conn:
        forks = await (await conn.execute(_FORKS)).fetchall()
        twice = await (await conn.execute(_TWICE)).fetchall()
    found += [f"thread {row['thread_id']} forks after {row['parent']}: {row['children']}" for row in forks]
    found += [f"run {row['run_id']} has {row['kind']} #{row['first']} again as #{row['last']}" for row in twice]
    reports = [await runtime.show(handle.run_id, tenant=handle.tenant_id) for handle in handles]
    questions, effects, arrivals = world.questions(), world.effects(), world.arrivals()
    for number, (job, report) in enumerate(zip(jobs, reports, strict=True)):
        about = f"run {report.run.run_id} ({job.graph})"
        told = [
            *_end(job, report),
            *_models(report, questions[report.run.run_id]),
            *_branches(number, job, report, effects, arrivals),
        ]
        found += [f"{about}: {each}" for each in told]
    found += _refunds(world, jobs, reports)
    return found


def _end(job: Any, report: RunReport) -> Iterator[str]:
    run = report.run
    if run.status is RunStatus.COMPLETED:
        return
    if run.status is RunStatus.CANCELLED and job.cancelled_after is not None:
        return
    over_budget = run.cause is not None and run.cause.error_type is ErrorType.BUDGET_EXCEEDED
    if not (run.status is RunStatus.FAILED and job.may_fail and over_budget):
        yield f"it is {run.status}: {run.cause}"


def _models(report: RunReport, asked: int) -> Iterator[str]:
    """What the world bills was counted; what was counted beyond it was about to be sent when something broke."""
    calls = [call for call in report.calls if call.identity.kind == "model"]
    counted, returned = sum(call.sends for call in calls), sum(call.status == "returned" for call in calls)
    spent = report.budget.spent + report.budget.reserved  # what nobody settled any more counts as spent
    if asked > spent.model_calls:
        yield f"the world answered {asked} questions, and {spent.model_calls} were counted as spent"
    if spent.model_calls > counted:
        yield f"{spent.model_calls} model calls were counted as spent, and {counted} were sent by the journal"
    if asked < returned:
        yield f"the journal has {returned} answers, and the world gave {asked}"
    if asked * (TOKENS_IN + TOKENS_OUT) > spent.tokens_used:
        yield f"the world bills {asked * (TOKENS_IN + TOKENS_OUT)} tokens, and {spent.tokens_used} were counted"


def _branches(
    number: int, job: Any, report: RunReport, effects: Counter[tuple[str, str]], arrivals: Counter[tuple[str, str]]
) -> Iterator[str]:
    """Everything was done once, or not at all where it was refused."""
    said = dict(line.split(": ") for line in (report.run.output or {}).get("done", ()))
    arrived = 0
    for n, kind in enumerate(job.kinds):
        tool, subject = TOOL_OF.get(kind, kind), f"{number}.{n}.{kind}"
        done = effects[tool, subject]
        arrived += arrivals[tool, subject]
        if done > 1:
            yield f"{subject} was done {done} times"
        if said.get(subject) == "ok" and done == 0:
            yield f"{subject} is said to be done, and was not"
        if said.get(subject) in {"error", "rejected"} and done:
            yield f"{subject} is said to be {said[subject]}, and was done"
        if report.run.status is RunStatus.COMPLETED and subject not in said:
            yield f"{subject} is missing in what the run says"
    if (most := job.limits.max_tool_calls) is not None and arrived > most:
        yield f"{arrived} tool calls arrived, and {most} were allowed"


def _refunds(world: World, jobs: Sequence[Any], reports: Sequence[RunReport]) -> Iterator[str]:
    """Each refund that a run reports is in the shop's ledger, and no other is."""
    paid = Counter((each.tenant_id, each.order_id) for each in RefundLedger(world.folder / "refunds.sqlite3").refunds())
    told: Counter[tuple[str, str]] = Counter()
    for job, report in zip(jobs, reports, strict=True):
        refund = (report.run.output or {}).get("refund") if job.graph == "refunds" else None
        if refund and refund["status"] == "paid":
            told[report.run.tenant.tenant_id, refund["order_id"]] += 1
    if paid != told:
        yield f"the ledger has the refunds {dict(paid)}, and the runs say {dict(told)}"
