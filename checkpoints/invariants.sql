-- What must hold in any database, whatever happened to it. Each query returns what violates its rule: nothing, if all is
-- well. `subject` names the row and `detail` says what is wrong with it. One statement each, so each sees one moment.

-- name: a_lease_is_of_a_running_run
-- A lease is held only on a running run, under the run's own epoch and for its tenant.
select format('run %s', l.run_id) as subject,
       format('lease of epoch %s; the run is %s under epoch %s', l.epoch, r.status, r.epoch) as detail
  from leases l
  join runs r using (run_id)
 where r.status <> 'running' or r.attached or r.epoch <> l.epoch or r.tenant_id <> l.tenant_id;

-- name: a_running_run_is_held
-- A running run has a lease, alive or run out, by which another worker can take it over.
select format('run %s', r.run_id) as subject, 'running without a lease' as detail
  from runs r
 where r.status = 'running' and not r.attached
   and not exists (select from leases l where l.run_id = r.run_id);

-- name: a_thread_has_one_running_run
-- At most one run of a thread is running.
select format('thread %s', thread_id) as subject, format('%s running runs', count(*)) as detail
  from runs
 where status = 'running' and not attached
 group by thread_id
having count(*) > 1;

-- name: an_interrupted_run_waits_for_somebody
-- An interrupted run waits for an approval that somebody can still decide.
select format('run %s', r.run_id) as subject, 'interrupted, and nothing is pending' as detail
  from runs r
 where r.status = 'interrupted' and not r.attached
   and not exists (select from approvals a where a.run_id = r.run_id and a.status = 'pending');

-- name: an_admitted_run_has_its_budget
-- Every run has a budget of its own, on its own thread.
select format('run %s', r.run_id) as subject, 'no budget of its own' as detail
  from runs r
 where not exists (
       select from budgets b where b.budget_id = r.run_id and b.kind = 'run' and b.thread_id = r.thread_id);

-- name: a_clock_stands_only_while_a_person_is_asked
-- A run's deadline comes nearer while the run waits or works, and stands still only while a person is asked.
select format('run %s', run_id) as subject,
       format('%s, with its clock %s', status, case when deadline_at is null then 'standing' else 'running' end) as detail
  from runs
 where status in ('queued', 'running') and remaining_ms is not null
    or status = 'interrupted' and deadline_at is not null;

-- name: a_stale_worker_left_no_trace
-- Once an attempt has written an event of a run, no earlier attempt writes one.
select format('run %s', run_id) as subject,
       format('event %s of attempt %s came after a later attempt', seq, attempt) as detail
  from (select run_id, seq, attempt, max(attempt) over (partition by run_id order by seq) as latest from events) e
 where attempt < latest;

-- name: a_call_is_recorded_once
-- An identity has one row in the journal, however often its node was run.
select format('thread %s', thread_id) as subject, format('%s calls of key %s', count(*), identity_key) as detail
  from calls
 group by thread_id, identity_key
having count(*) > 1;

-- name: a_run_ends_with_its_calls_closed
-- A run that has ended has no open call, of whichever attempt: each has returned or failed, or is an effect of which
-- nobody knows what became of it.
select format('call %s', c.call_id) as subject,
       format('%s, with the effect %s, and run %s is %s', c.status, c.effect, r.run_id, r.status) as detail
  from calls c
  join runs r on r.run_id = coalesce(c.sent_by, c.run_id)
 where (c.status = 'open' or c.status = 'unknown' and c.effect = 'read')
   and r.status in ('completed', 'failed', 'cancelled');

-- name: reserved_is_what_open_calls_reserved
-- A budget has reserved exactly what the calls without an outcome have reserved on it.
with held as (
    select budget_id,
           sum((c.reserved ->> 'model_calls')::bigint) as model_calls,
           sum((c.reserved ->> 'tool_calls')::bigint) as tool_calls,
           sum((c.reserved ->> 'tokens')::bigint) as tokens,
           coalesce(sum((c.reserved ->> 'cost')::bigint), 0) as cost
      from calls c
     cross join unnest(c.budgets) as path(budget_id)
     where c.status in ('open', 'unknown')
     group by budget_id),
compared as (
    select b.budget_id, b.kind,
           (b.reserved_model_calls, b.reserved_tool_calls, b.reserved_tokens, b.reserved_cost) as ledger,
           (coalesce(h.model_calls, 0)::bigint, coalesce(h.tool_calls, 0)::bigint, coalesce(h.tokens, 0)::bigint,
            coalesce(h.cost, 0)::bigint) as journal
      from budgets b
      left join held h using (budget_id))
select format('budget %s of a %s', budget_id, kind) as subject,
       format('reserved %s in the ledger, %s in the journal', ledger, journal) as detail
  from compared
 where ledger is distinct from journal;

-- name: spent_is_what_calls_used
-- A budget has spent exactly what it inherited and what the sends of its calls have used, and counts those of unknown
-- price.
with sends as (
    select unnest(budgets) as budget_id, used
      from calls
     where used is not null
     union all
    select paid.budget_id::uuid, send -> 'used'
      from calls
     cross join jsonb_array_elements(earlier) as send
     cross join jsonb_array_elements_text(send -> 'budgets') as paid(budget_id)),
used as (
    select budget_id,
           sum((used ->> 'model_calls')::bigint) as model_calls,
           sum((used ->> 'tool_calls')::bigint) as tool_calls,
           sum((used ->> 'tokens')::bigint) as tokens,
           coalesce(sum((used ->> 'cost')::bigint), 0) as cost,
           count(*) filter (where used ->> 'cost' is null) as unpriced
      from sends
     group by budget_id),
compared as (
    select b.budget_id, b.kind,
           (b.spent_model_calls, b.spent_tool_calls, b.spent_tokens, b.spent_cost, b.spent_unpriced) as ledger,
           (coalesce(u.model_calls, 0)::bigint + coalesce(i.model_calls, 0),
            coalesce(u.tool_calls, 0)::bigint + coalesce(i.tool_calls, 0),
            coalesce(u.tokens, 0)::bigint + coalesce(i.tokens, 0),
            coalesce(u.cost, 0)::bigint + coalesce(i.cost, 0),
            coalesce(u.unpriced, 0)::bigint + coalesce(i.unpriced, 0)) as journal
      from budgets b
      left join used u using (budget_id)
     cross join lateral jsonb_to_record(coalesce(b.inherited, '{}'))
                as i(model_calls bigint, tool_calls bigint, tokens bigint, cost bigint, unpriced bigint))
select format('budget %s of a %s', budget_id, kind) as subject,
       format('spent %s in the ledger, %s in the journal', ledger, journal) as detail
  from compared
 where ledger is distinct from journal;

-- name: steps_are_the_tasks_that_started
-- A run has spent one step for each task of its graph that was started, however often, beside those that it inherited,
-- and no more than it may. (Not asked of a run whose events were pruned.)
select format('run %s', b.budget_id) as subject,
       format('%s steps counted, %s tasks started, %s allowed', b.spent_steps, started.steps, b.max_steps) as detail
  from budgets b
 cross join lateral (
       select count(distinct e.task_id) + coalesce((b.inherited ->> 'steps')::bigint, 0) as steps
         from events e
        where e.run_id = b.run_id and e.kind = 'node.started') started
 where b.kind = 'run' and (b.spent_steps <> started.steps or b.spent_steps > b.max_steps)
   and not exists (select from run_heads h where h.run_id = b.run_id and h.anchor_seq > 0);

-- name: a_limit_is_passed_only_by_unforeseen_usage
-- Spent and reserved stay within a limit, unless a call has used more than it reserved. (A tenant's limits can be
-- lowered below what was spent: they are compared as long as its terms are older than its calls.)
with sends as (
    select unnest(budgets) as budget_id, reserved, used, opened_at
      from calls
     where used is not null
     union all
    select paid.budget_id::uuid, send -> 'reserved', send -> 'used', opened_at
      from calls
     cross join jsonb_array_elements(earlier) as send
     cross join jsonb_array_elements_text(send -> 'budgets') as paid(budget_id)),
facts as (
    select budget_id, min(opened_at) as first_call,
           bool_or((used ->> 'model_calls')::bigint > (reserved ->> 'model_calls')::bigint) as model_calls_over,
           bool_or((used ->> 'tool_calls')::bigint > (reserved ->> 'tool_calls')::bigint) as tool_calls_over,
           bool_or((used ->> 'tokens')::bigint > (reserved ->> 'tokens')::bigint) as tokens_over,
           bool_or((used ->> 'cost')::bigint > coalesce((reserved ->> 'cost')::bigint, 0)) as cost_over
      from sends
     group by budget_id)
select format('budget %s of a %s', b.budget_id, b.kind) as subject,
       format('model calls %s of %s, tool calls %s of %s, tokens %s of %s, micro-dollars %s of %s',
              spent_model_calls + reserved_model_calls, max_model_calls, spent_tool_calls + reserved_tool_calls,
              max_tool_calls, spent_tokens + reserved_tokens, max_tokens, spent_cost + reserved_cost, max_cost) as detail
  from budgets b
  left join facts f using (budget_id)
  left join tenants t on t.budget_id = b.budget_id
 where (t.updated_at is null or f.first_call is null or t.updated_at <= f.first_call)
   and (spent_model_calls + reserved_model_calls > max_model_calls and f.model_calls_over is not true
        or spent_tool_calls + reserved_tool_calls > max_tool_calls and f.tool_calls_over is not true
        or spent_tokens + reserved_tokens > max_tokens and f.tokens_over is not true
        or spent_cost + reserved_cost > max_cost and f.cost_over is not true);

-- name: a_used_grant_has_its_call
-- An approval that was used was used in time, by one call, which is the one that it was given for.
select format('approval %s', a.approval_id) as subject,
       case when a.used_at > a.expires_at then 'used after it had expired'
            when a.decided_at is null or a.used_at < a.decided_at then 'used before it was decided'
            else 'used by no call that it was given for' end as detail
  from approvals a
 where a.used_at is not null
   and (a.used_at > a.expires_at or a.decided_at is null or a.used_at < a.decided_at
        or not exists (
           select from calls c
            where (c.grant_id = a.approval_id
                   or c.earlier @> jsonb_build_array(jsonb_build_object('grant', a.approval_id)))
              and c.thread_id = a.thread_id and c.identity_key = a.identity_key));

-- name: a_call_acts_on_a_grant
-- A call that names an approval was approved: somebody granted it, and it has used that grant up.
select format('call %s', c.call_id) as subject,
       coalesce(format('acts on approval %s, which is %s', a.approval_id, a.status), 'acts on no approval') as detail
  from calls c
  left join approvals a on a.approval_id = c.grant_id
 where c.grant_id is not null
   and (a.approval_id is null or a.status not in ('approved', 'edited') or a.used_at is null or a.granted_digest is null);

-- name: a_finished_run_asks_nothing
-- Nothing is pending in the inbox for a run that has ended.
select format('approval %s', a.approval_id) as subject,
       format('pending, and run %s is %s', r.run_id, r.status) as detail
  from approvals a
  join runs r using (run_id)
 where a.status = 'pending' and r.status in ('completed', 'failed', 'cancelled');

-- name: events_have_no_gaps
-- A run's events are numbered without a gap, from 1 or from the anchor on, and its head is the last of them.
select format('run %s', r.run_id) as subject,
       format('%s events up to %s, head at %s, anchor at %s', seen.events, seen.last, h.seq, h.anchor_seq) as detail
  from runs r
  left join run_heads h using (run_id)
 cross join lateral (
       select count(*) as events, max(e.seq) as last, min(e.seq) as first from events e where e.run_id = r.run_id) seen
 where seen.first is distinct from h.anchor_seq + 1 or seen.last is distinct from h.anchor_seq + seen.events
    or seen.last is distinct from h.seq;

-- name: events_are_chained
-- Each event's hash follows from the event before it, the first one's from the anchor, and the head has that of the last.
with linked as (
    select e.run_id, e.seq,
           e.hash is distinct from event_link_v1(
               lag(e.hash) over log, h.anchor_hash,
               event_content_v1(e.run_id, e.seq, e.at, e.attempt, e.kind, e.node, e.task_id, e.call_id, e.trace_id,
                                e.span_id, e.payload)) as broken
      from events e
      join run_heads h using (run_id)
    window log as (partition by e.run_id order by e.seq))
select format('run %s', run_id) as subject, format('event %s is not what was hashed', min(seq)) as detail
  from linked
 where broken
 group by run_id
 union all
select format('run %s', h.run_id), format('the head has not the hash of event %s', last.seq)
  from run_heads h
 cross join lateral (
       select e.seq, e.hash from events e where e.run_id = h.run_id order by e.seq desc limit 1) last
 where h.hash is distinct from last.hash;

-- name: a_run_has_the_event_of_its_end
-- The last event of a run that has ended says how, and a run that has not ended has no such event. (After it come only
-- runs that go on from it, holds and pruning.)
select format('run %s', r.run_id) as subject, format('%s; its events end with %s', r.status, ends.last) as detail
  from runs r
 cross join lateral (
       select count(*) filter (where e.kind in ('run.completed', 'run.failed', 'run.cancelled')) as finals,
              (array_agg(e.kind order by e.seq desc) filter (where e.kind not in (
                   'run.forked', 'run.resumed', 'run.held', 'run.hold_lifted', 'run.pruned')))[1] as last
         from events e
        where e.run_id = r.run_id) ends
 where case when r.status in ('completed', 'failed', 'cancelled')
            then ends.finals <> 1 or ends.last is distinct from 'run.' || r.status
            else ends.finals > 0 end;

-- name: only_what_has_ended_is_pruned
-- A run of which events were pruned has ended, and one of which all were pruned that may be has the event of that.
select format('run %s', r.run_id) as subject,
       format('%s, anchored at %s, and %s', r.status, h.anchor_seq,
              case when r.events_pruned then 'marked as pruned without the event of it' else 'not ended' end) as detail
  from runs r
  join run_heads h using (run_id)
 where h.anchor_seq > 0 and r.finished_at is null
    or r.events_pruned
       and not exists (select from events e where e.run_id = r.run_id and e.kind = 'run.pruned' and e.seq > h.anchor_seq);

-- name: contents_are_pruned_with_their_run
-- A run whose contents were pruned has the event of that, and its calls and approvals have lost theirs with it, as no
-- others have.
select format('run %s', r.run_id) as subject, 'its contents were pruned without the event of it' as detail
  from runs r
 where r.contents_pruned_at is not null
   and not exists (
       select from events e
        where e.run_id = r.run_id and e.kind = 'run.pruned' and convert_from(e.payload, 'UTF8')::jsonb ? 'contents')
 union all
select format('%s %s', part.name, part.id),
       format('pruned at %s, and run %s at %s', part.contents_pruned_at, r.run_id, r.contents_pruned_at)
  from (select 'call' as name, call_id as id, coalesce(sent_by, run_id) as run_id, contents_pruned_at from calls
         union all select 'approval', approval_id, run_id, contents_pruned_at from approvals) part
  join runs r using (run_id)
 where part.contents_pruned_at is distinct from r.contents_pruned_at;

-- name: a_call_has_the_events_of_its_life
-- A call has the event of its intent and, once it has an outcome, the event of that. (Not on a thread with a run whose
-- events were pruned.)
select format('call %s', c.call_id) as subject,
       format('%s, with the events: %s', c.status, coalesce(seen.kinds, 'none')) as detail
  from calls c
 cross join lateral (
       select string_agg(e.kind, ', ' order by e.run_id, e.seq) as kinds,
              bool_or(e.kind = c.kind || '.intended') as intended,
              bool_or(e.kind in (c.kind || '.returned', 'call.reconciled')) as returned,
              bool_or(e.kind in (c.kind || '.failed', 'call.reconciled')) as failed,
              bool_or(e.kind = 'call.unknown') as unknown
         from events e
        where e.call_id = c.call_id) seen
 where (seen.intended is not true
        or c.status = 'returned' and seen.returned is not true
        or c.status = 'failed' and seen.failed is not true
        or c.status = 'unknown' and seen.unknown is not true)
   and not exists (
       select from runs r join run_heads h using (run_id) where r.thread_id = c.thread_id and h.anchor_seq > 0);

-- name: a_row_belongs_to_its_runs_tenant
-- Whatever belongs to a run, a thread or a budget belongs to the same tenant.
select format('%s of run %s', part.name, part.run_id) as subject,
       format('tenant %s, and the run is of %s', part.tenant_id, r.tenant_id) as detail
  from (select 'budget' as name, run_id, tenant_id from budgets where run_id is not null
         union all select 'call', run_id, tenant_id from calls
         union all select 'approval', run_id, tenant_id from approvals
         union all select 'head', run_id, tenant_id from run_heads
         union all select 'event', run_id, tenant_id from events) part
  join runs r using (run_id)
 where part.tenant_id <> r.tenant_id
 union all
select format('%s of thread %s', part.name, part.thread_id),
       format('tenant %s, and the thread is of %s', part.tenant_id, t.tenant_id)
  from (select 'run' as name, thread_id::text, tenant_id from runs
         union all select 'checkpoint', thread_id, tenant_id from checkpoints
         union all select 'checkpoint value', thread_id, tenant_id from checkpoint_blobs
         union all select 'checkpoint write', thread_id, tenant_id from checkpoint_writes) part
  join threads t on t.thread_id::text = part.thread_id
 where part.tenant_id <> t.tenant_id
 union all
select format('budget %s', b.budget_id), format('tenant %s, and its parent is of %s', b.tenant_id, parent.tenant_id)
  from budgets b
  join budgets parent on parent.budget_id = b.parent_id
 where b.tenant_id <> parent.tenant_id;
