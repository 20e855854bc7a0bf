"""A healthy database passes every invariant; a doctored one fails exactly the one that it was doctored against."""

from dataclasses import dataclass, replace

import psycopg
import pytest
from fix_database import DatabaseUrls
from scenes import (
    DANA,
    FAILED,
    INTENDED,
    LOST,
    ONE_TOOL_CALL,
    RETRIED,
    RETURNED,
    Scene,
    event,
    intent,
    outcome,
)

from holdfast.checkpoints.database import Database
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.store import PostgresStore
from holdfast.contracts.calls import OutcomeStatus
from holdfast.contracts.errors import ErrorType, InvariantViolated
from holdfast.contracts.events import EventKind
from holdfast.contracts.limits import Limits, Usage
from holdfast.contracts.runs import Owner, RunStatus
from holdfast.contracts.tenancy import RetentionTerms
from holdfast.runtime.entropy import SystemIds
from holdfast.testing.invariants import INVARIANTS, assert_invariants, check


async def refund(scene: Scene, owner: Owner, *, occurrence: int = 0, **changes):
    """A call of `owner`'s run that returns."""
    wanted = intent(owner, occurrence=occurrence, **changes)
    await scene.store.journal.open(owner, wanted, event=INTENDED)
    await scene.store.journal.close(owner, outcome(wanted.call_id, usage=wanted.reservation), event=RETURNED)
    return wanted


async def step(scene: Scene, owner: Owner, task_id: str) -> None:
    started = event(EventKind.NODE_STARTED, node="refund", task_id=task_id)
    await scene.store.runs.begin_step(owner, node="refund", task_id=task_id, event=started)


async def finish(scene: Scene, owner: Owner) -> None:
    await scene.store.runs.finish(
        owner, RunStatus.COMPLETED, output={"done": True}, cause=None, event=event(EventKind.RUN_COMPLETED)
    )


async def completed(scene: Scene) -> Owner:
    """A run that did everything: a share, a grant, a failure tried again, an unknown, a send again, a crash."""
    first = await scene.running(ttl=0, limits=Limits(max_tool_calls=20))
    shared = await scene.store.ledger.tenant_budget("acme")
    share = await scene.store.ledger.open_share(
        first, parent=first.run_id, share_key="history", limits=Limits(), event=event(EventKind.BUDGET_OPENED)
    )
    await step(scene, first, "one")
    left_open = intent(first, occurrence=1, budgets=(share, first.run_id, shared))
    await scene.store.journal.open(first, left_open, event=INTENDED)
    [claim] = await scene.claim("worker-2", ttl=0)
    second = claim.owner
    await step(scene, second, "one")
    await scene.store.journal.resend(second, left_open.call_id, reservation=ONE_TOOL_CALL, event=RETRIED)
    await scene.store.journal.close(second, outcome(left_open.call_id), event=RETURNED)
    await refund(scene, second, occurrence=2, budgets=(second.run_id, shared), reservation=Usage(tokens_used=5))
    failing = intent(second, occurrence=3, budgets=(second.run_id, shared))
    await scene.store.journal.open(second, failing, event=INTENDED)
    failure = outcome(failing.call_id, OutcomeStatus.FAILED, error_type=ErrorType.RATE_LIMITED)
    await scene.store.journal.close(second, failure, event=FAILED)
    await scene.store.journal.open(second, failing, event=INTENDED)
    await scene.store.journal.close(second, outcome(failing.call_id), event=RETURNED)
    granted = intent(second, occurrence=4)
    approval = await scene.decide(await scene.asked(second, granted), granted="digest")
    await scene.store.journal.open(second, replace(granted, grant=approval.id), event=INTENDED)
    await scene.store.journal.close(second, outcome(granted.call_id), event=RETURNED)
    lost = intent(second, occurrence=5)
    await scene.store.journal.open(second, lost, event=INTENDED)
    await scene.store.journal.close(second, outcome(lost.call_id, OutcomeStatus.UNKNOWN), event=LOST)
    await scene.store.journal.open(second, intent(second, occurrence=6), event=INTENDED)
    [claim] = await scene.claim("worker-3")
    await finish(scene, claim.owner)
    return claim.owner


@dataclass(frozen=True)
class Healthy:
    """A database with a run of every kind."""

    database: Database
    admin: str
    completed: Owner
    running: Owner
    bystander: Owner
    interrupted: Owner
    cancelled: Owner
    queued: str

    def doctor(self, *statements: str, chaining: bool = True) -> None:
        """Change the database behind holdfast's back, and chain its events anew, as who can do the one can do the
        other. Names in braces stand for the ids of runs."""
        ids = {
            name: f"'{one if isinstance(one, str) else one.run_id}'"
            for name in ("completed", "running", "bystander", "interrupted", "cancelled", "queued")
            for one in [getattr(self, name)]
        }
        with psycopg.connect(self.admin, autocommit=True) as conn:
            for statement in statements:
                assert conn.execute(statement.format(**ids)).rowcount != 0, f"nothing was doctored by: {statement}"
            for statement in CHAIN_ANEW if chaining else ():
                conn.execute(statement)

    async def broken(self) -> list[str]:
        return [finding.invariant.name for finding in await check(self.database) if not finding.ok]


@pytest.fixture
async def healthy(database: Database, database_urls: DatabaseUrls) -> Healthy:
    scene = Scene(PostgresStore(database, SystemIds()))
    await scene.tenant("other")
    done = await completed(scene)
    running, bystander = await scene.running(), await scene.running()
    await step(scene, running, "one")
    await scene.store.journal.open(running, intent(running), event=INTENDED)
    interrupted, cancelled = await scene.running(), await scene.running()
    for owner in (interrupted, cancelled):
        await scene.asked(owner)
        await scene.rest(owner)
    await scene.store.runs.request_cancel(DANA, "acme", cancelled.run_id, reason="the customer has written again")
    queued = await scene.store.runs.admit(scene.request())
    with psycopg.connect(database_urls.admin, autocommit=True) as conn:
        conn.execute(
            "insert into checkpoints (thread_id, checkpoint_id, checkpoint, tenant_id) values (%s, '1', '{}', 'acme')",
            [done.thread_id],
        )
    return Healthy(
        database=database,
        admin=database_urls.admin,
        completed=done,
        running=running,
        bystander=bystander,
        interrupted=interrupted,
        cancelled=cancelled,
        queued=queued.run_id,
    )


CHAIN_ANEW = (
    """update events e set hash = chained.hash
         from (select run_id, e.seq, event_chain_v1(anchor_hash, event_content_v1(
                      run_id, e.seq, at, attempt, kind, node, task_id, call_id, trace_id, span_id, payload))
                      over (partition by run_id order by e.seq rows unbounded preceding) as hash
                 from events e join run_heads h using (run_id)) chained(run_id, seq, hash)
        where e.run_id = chained.run_id and e.seq = chained.seq""",
    """update run_heads h set hash = (select hash from events e where e.run_id = h.run_id order by seq desc limit 1)""",
)
OTHER_THREAD = "(select thread_id from runs where run_id = {bystander})"
LEASE_OF = (
    "insert into leases (run_id, tenant_id, epoch, worker_id, expires_at) "
    "select run_id, tenant_id, epoch, 'w', now() from runs where run_id = "
)
ILLS = [
    ("a_lease_is_of_a_running_run", "update leases set epoch = epoch + 1 where run_id = {running}"),
    ("a_lease_is_of_a_running_run", "update leases set tenant_id = 'other' where run_id = {running}"),
    ("a_lease_is_of_a_running_run", LEASE_OF + "{interrupted}"),
    ("a_running_run_is_held", "delete from leases where run_id = {running}"),
    (
        "a_thread_has_one_running_run",
        "drop index one_running_run_per_thread",
        f"update runs set thread_id = {OTHER_THREAD}, status = 'running' where run_id = {{queued}}",
        f"update budgets set thread_id = {OTHER_THREAD} where run_id = {{queued}}",
        LEASE_OF + "{queued}",
    ),
    ("an_interrupted_run_waits_for_somebody", "update approvals set status = 'withdrawn' where run_id = {interrupted}"),
    ("an_admitted_run_has_its_budget", "delete from budgets where budget_id = {queued}"),
    (
        "a_clock_stands_only_while_a_person_is_asked",
        "update runs set deadline_at = null, remaining_ms = 1000 where run_id = {queued}",
    ),
    (
        "a_clock_stands_only_while_a_person_is_asked",
        "update runs set deadline_at = now(), remaining_ms = null where run_id = {interrupted}",
    ),
    (
        "a_stale_worker_left_no_trace",
        "update events set attempt = 0 where run_id = {running} and kind = 'tool.intended'",
    ),
    (
        "a_call_is_recorded_once",
        "alter table calls drop constraint a_call_is_recorded_once",
        "update calls set identity_key = 'same' where run_id = {completed} and occurrence in (2, 3)",
    ),
    (
        "a_run_ends_with_its_calls_closed",
        "update calls set status = 'open' where run_id = {completed} and status = 'unknown' and epoch = 2",
    ),
    (
        "a_run_ends_with_its_calls_closed",
        "update calls set effect = 'read' where run_id = {completed} and status = 'unknown'",
    ),
    (
        "reserved_is_what_open_calls_reserved",
        "update budgets set reserved_tool_calls = reserved_tool_calls + 1 where budget_id = {running}",
    ),
    ("reserved_is_what_open_calls_reserved", "update budgets set reserved_cost = 1 where kind = 'specialist'"),
    ("spent_is_what_calls_used", "update budgets set spent_cost = spent_cost + 1 where budget_id = {running}"),
    ("spent_is_what_calls_used", "update budgets set spent_unpriced = 1 where budget_id = {completed}"),
    ("spent_is_what_calls_used", "update calls set earlier = '[]' where run_id = {completed} and occurrence = 3"),
    ("steps_are_the_tasks_that_started", "update budgets set spent_steps = 2 where budget_id = {running}"),
    ("steps_are_the_tasks_that_started", "update budgets set max_steps = 0 where budget_id = {running}"),
    (
        "a_limit_is_passed_only_by_unforeseen_usage",
        "update budgets set max_tool_calls = 0 where budget_id = {running}",
    ),
    ("a_limit_is_passed_only_by_unforeseen_usage", "update budgets set max_tokens = 4 where budget_id = {completed}"),
    (
        "a_used_grant_has_its_call",
        "update approvals set used_at = expires_at + interval '1 second' where used_at is not null",
    ),
    ("a_used_grant_has_its_call", "update approvals set identity_key = 'another' where used_at is not null"),
    ("a_call_acts_on_a_grant", "update approvals set granted_digest = null where used_at is not null"),
    (
        "a_call_acts_on_a_grant",
        "update calls set grant_id = gen_random_uuid() where run_id = {completed} and occurrence = 2",
    ),
    (
        "a_finished_run_asks_nothing",
        "update approvals set status = 'pending', decided_at = null where run_id = {cancelled}",
    ),
    ("events_have_no_gaps", "delete from events where run_id = {running} and seq = 2"),
    ("events_have_no_gaps", "update run_heads set seq = seq + 1 where run_id = {running}"),
    ("events_have_no_gaps", "delete from run_heads where run_id = {queued}"),
    ("events_are_chained", "update events set payload = '{{}}' where run_id = {running} and seq = 2"),
    ("events_are_chained", "update events set at = at + interval '1 us' where run_id = {completed} and seq = 3"),
    ("events_are_chained", "update run_heads set hash = sha256('') where run_id = {running}"),
    ("events_are_chained", "update run_heads set anchor_hash = sha256('') where run_id = {queued}"),
    (
        "a_run_has_the_event_of_its_end",
        "update events set kind = 'run.failed' where run_id = {completed} and kind = 'run.completed'",
    ),
    (
        "a_run_has_the_event_of_its_end",
        "update events set kind = 'run.completed' where run_id = {running} and seq = 2",
    ),
    (
        "only_what_has_ended_is_pruned",
        """with gone as (delete from events where run_id = {running} and seq = 1 returning hash)
           update run_heads set anchor_seq = 1, anchor_hash = gone.hash from gone where run_id = {running}""",
    ),
    ("only_what_has_ended_is_pruned", "update runs set events_pruned = true where run_id = {completed}"),
    (
        "contents_are_pruned_with_their_run",
        """update runs set input = null, context = null, output = null, contents_pruned_at = now()
            where run_id = {cancelled}""",
        "update approvals set payload = null, args = null, contents_pruned_at = now() where run_id = {cancelled}",
    ),
    (
        "contents_are_pruned_with_their_run",
        """update calls set request = null, response = null, error_facts = null, error_message = null,
                  contents_pruned_at = now()
            where run_id = {completed} and status = 'returned'""",
    ),
    (
        "contents_are_pruned_with_their_run",
        "update approvals set payload = null, args = null, contents_pruned_at = now() where run_id = {cancelled}",
    ),
    (
        "a_call_has_the_events_of_its_life",
        "update events set kind = 'node.completed' where run_id = {running} and kind = 'tool.intended'",
    ),
    (
        "a_call_has_the_events_of_its_life",
        "update events set kind = 'node.completed' where run_id = {completed} and kind = 'tool.returned'",
    ),
    (
        "a_call_has_the_events_of_its_life",
        "update events set kind = 'node.completed' where run_id = {completed} and kind = 'call.unknown'",
    ),
    ("a_row_belongs_to_its_runs_tenant", "update calls set tenant_id = 'other' where run_id = {completed}"),
    ("a_row_belongs_to_its_runs_tenant", "update run_heads set tenant_id = 'other' where run_id = {completed}"),
    ("a_row_belongs_to_its_runs_tenant", "update events set tenant_id = 'other' where run_id = {completed}"),
    ("a_row_belongs_to_its_runs_tenant", "update approvals set tenant_id = 'other' where run_id = {completed}"),
    ("a_row_belongs_to_its_runs_tenant", "update budgets set tenant_id = 'other' where kind = 'specialist'"),
    ("a_row_belongs_to_its_runs_tenant", "update checkpoints set tenant_id = 'other'"),
    (
        "a_row_belongs_to_its_runs_tenant",
        f"update threads set tenant_id = 'other' where thread_id = {OTHER_THREAD}",
    ),
]


async def test_a_healthy_database_passes_and_says_so(healthy: Healthy):
    findings = await assert_invariants(healthy.database)
    assert [finding.invariant for finding in findings] == list(INVARIANTS)
    assert all(str(finding).startswith("holds") for finding in findings)


@pytest.mark.parametrize("ill", ILLS, ids=lambda ill: ill[0])
async def test_a_doctored_database_fails_exactly_that_one(healthy: Healthy, ill: tuple[str, ...]):
    name, *statements = ill
    healthy.doctor(*statements, chaining=name != "events_are_chained")
    assert await healthy.broken() == [name]
    with pytest.raises(InvariantViolated, match=name):
        await assert_invariants(healthy.database)


def test_every_invariant_is_doctored_against_and_every_query_is_an_invariant():
    names = {invariant.name for invariant in INVARIANTS}
    assert {name for name, *_ in ILLS} == names
    assert set(load_queries("holdfast.checkpoints.x", "invariants.sql")) == names


async def test_a_violation_is_told_of_the_tenant_that_has_it(healthy: Healthy):
    healthy.doctor("delete from leases where run_id = {running}")
    assert all(finding.ok for finding in await check(healthy.database, tenants=["other"]))
    [broken] = [finding for finding in await check(healthy.database, tenants=["acme"]) if not finding.ok]
    assert str(broken).startswith("VIOLATED")
    assert broken.violations == (f"run {healthy.running.run_id}: running without a lease",)


async def test_a_tenants_limit_may_be_lowered_below_what_it_spent(healthy: Healthy):
    scene = Scene(PostgresStore(healthy.database, SystemIds()))
    await scene.tenant(budget=Limits(max_tool_calls=0))
    assert await healthy.broken() == []


async def test_pruned_database_is_a_healthy_one(healthy: Healthy):
    scene = Scene(PostgresStore(healthy.database, SystemIds()))
    await scene.tenant(retention=RetentionTerms(events_days=0, checkpoints_days=0))
    await scene.store.retention.hold(DANA, "acme", healthy.cancelled.run_id, reason="a claim")
    pruned = [one.run_id for one in await scene.store.retention.prune("acme", at_most=7)]
    assert await healthy.broken() == []
    while more := await scene.store.retention.prune("acme"):
        pruned += [one.run_id for one in more]
    assert set(pruned) == {healthy.completed.run_id}
    assert await healthy.broken() == []


async def test_database_without_its_contents_is_a_healthy_one(healthy: Healthy):
    scene = Scene(PostgresStore(healthy.database, SystemIds()))
    done = await scene.running()
    await refund(scene, done)
    await finish(scene, done)
    await scene.tenant(retention=RetentionTerms(contents_days=0))
    pruned = {one.run_id for one in await scene.store.retention.prune("acme")}
    assert pruned == {done.run_id, healthy.cancelled.run_id}  # the others are open, or have a call in doubt
    assert await healthy.broken() == []


async def test_usage_above_its_reservation_may_pass_a_limit(healthy: Healthy):
    scene = Scene(PostgresStore(healthy.database, SystemIds()))
    owner = await scene.running(limits=Limits(max_tokens=10))
    wanted = intent(owner, reservation=Usage(tokens_used=1))
    await scene.store.journal.open(owner, wanted, event=INTENDED)
    await scene.store.journal.close(owner, outcome(wanted.call_id, usage=Usage(tokens_used=50)), event=RETURNED)
    assert await healthy.broken() == []
