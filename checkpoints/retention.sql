-- name: be_the_only_one
-- Whether this transaction is the one that prunes for a tenant; until it ends, no other is.
select pg_try_advisory_xact_lock(hashtextextended('holdfast prune ' || %(tenant_id)s, 0)) as ours

-- name: set_hold
-- Put a hold on a locked run, or take it off.
update runs
   set legal_hold = %(hold)s
 where tenant_id = %(tenant_id)s and run_id = %(run_id)s

-- name: hold_of_run
-- The hold on a run, which is locked against any other change of it.
select legal_hold, attempt, clock_timestamp() as now
  from runs
 where tenant_id = %(tenant_id)s and run_id = %(run_id)s
   for no key update

-- name: prune_events
-- Take events out of runs that have ended, as far as the tenant's terms say.
select pruned_run::text as run_id, pruned_events as events
  from prune_events_v1(%(tenant_id)s, %(at_most)s)

-- name: threads_to_prune
-- Threads of a tenant, or one of them, whose checkpoints its terms let go of: all of them, or all but the latest. None that has an open run or one that is held.
select r.thread_id::text,
       case when thread.finished_at <= clock_timestamp() - make_interval(days => t.days) then 'none' else 'latest' end as kept
  from (select tenant_id, retention ->> 'checkpoints' = 'keep_latest' as only_latest,
               (retention ->> 'checkpoints_days')::integer as days
          from tenants
         where tenant_id = %(tenant_id)s and not legal_hold) t
  join runs r using (tenant_id)
 cross join lateral (
       select max(o.finished_at) as finished_at, bool_or(o.finished_at is null) as open, bool_or(o.legal_hold is not null) as held
         from runs o where o.thread_id = r.thread_id) thread
 where r.finished_at is not null and r.checkpoints_kept <> 'none'
   and (%(thread_id)s::uuid is null or r.thread_id = %(thread_id)s::uuid)
   and not thread.open and not thread.held
   and (thread.finished_at <= clock_timestamp() - make_interval(days => t.days)
        or t.only_latest and r.checkpoints_kept = 'all')
 order by r.finished_at
 limit %(limit)s

-- name: lock_thread
-- Keep new runs of a thread out until its checkpoints are pruned; nothing when someone else has it.
select 1
  from threads
 where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s
   for update skip locked

-- name: lock_runs_of_thread
-- Keep the runs of a thread as they are, and free of holds; the last that ended first.
select run_id::text, attempt
  from runs
 where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s
 order by finished_at desc nulls first, run_id desc
   for no key update

-- name: count_checkpoints
-- How many checkpoints a thread has.
select count(*) as checkpoints
  from checkpoints
 where thread_id = %(thread_id)s::text

-- name: mark_thread
-- Note how far a thread was pruned with the runs that had ended by then.
update runs
   set checkpoints_kept = %(kept)s
 where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s and finished_at is not null

-- name: runs_with_contents_to_prune
-- Runs of a tenant, or one of them, whose contents its terms let go of. None on whose thread a run is open or held, none with a call without an outcome or a question nobody has answered; and one that another goes on for goes after that.
select r.run_id::text, t.days
  from (select tenant_id, (retention ->> 'contents_days')::integer as days
          from tenants
         where tenant_id = %(tenant_id)s and not legal_hold) t
  join runs r using (tenant_id)
 where r.finished_at <= clock_timestamp() - make_interval(days => t.days) and r.contents_pruned_at is null
   and (%(run_id)s::uuid is null or r.run_id = %(run_id)s::uuid)
   and not exists (
       select from runs o where o.thread_id = r.thread_id and (o.finished_at is null or o.legal_hold is not null))
   and not exists (select from runs later where later.resumed_from = r.run_id and later.contents_pruned_at is null)
   and not exists (
       select from calls c
        where c.thread_id = r.thread_id and coalesce(c.sent_by, c.run_id) = r.run_id and c.status in ('open', 'unknown'))
   and not exists (select from approvals a where a.run_id = r.run_id and a.status = 'pending')
 order by r.finished_at
 limit %(limit)s

-- name: lock_run_with_contents
-- Keep a run as it is, free of holds and of runs that go on for it; nothing when someone else has it.
select tenant_id, run_id, thread_id::text, attempt, cause
  from runs
 where tenant_id = %(tenant_id)s and run_id = %(run_id)s
   for no key update skip locked

-- name: prune_calls
-- Take the contents of the calls that a run was the last to send.
with going as materialized (
    select call_id
      from calls
     where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s and coalesce(sent_by, run_id) = %(run_id)s
       and contents_pruned_at is null
     order by call_id
       for no key update)
update calls c
   set request = null, response = null, error_message = null, error_facts = null, contents_pruned_at = now()
  from going
 where c.call_id = going.call_id

-- name: prune_approvals
-- Take the contents of what a run has asked people.
with going as materialized (
    select approval_id
      from approvals
     where tenant_id = %(tenant_id)s and run_id = %(run_id)s and contents_pruned_at is null
     order by approval_id
       for no key update)
update approvals a
   set payload = null, args = null, decision = null, contents_pruned_at = now()
  from going
 where a.approval_id = going.approval_id

-- name: prune_run
-- Take the contents of a run itself; of its cause the facts stay.
update runs
   set input = null, context = null, output = null, cause = %(cause)s, contents_pruned_at = now()
 where tenant_id = %(tenant_id)s and run_id = %(run_id)s
