-- name: ask_approval
-- Put a question in the inbox, unless its interrupt is there already.
insert into approvals (approval_id, tenant_id, run_id, thread_id, interrupt_id, kind, node, task_id, payload, allowed,
                       tool_name, args, args_digest, policy_version, rule, call_id, identity_key, expires_at)
values (%(approval_id)s, %(tenant_id)s, %(run_id)s, %(thread_id)s, %(interrupt_id)s, %(kind)s, %(node)s, %(task_id)s,
        %(payload)s, %(allowed)s::text[], %(tool_name)s, %(args)s, %(args_digest)s, %(policy_version)s, %(rule)s,
        %(call_id)s, %(identity_key)s, clock_timestamp() + make_interval(secs => %(expires_in_seconds)s))
    on conflict (thread_id, interrupt_id) do nothing
returning *

-- name: set_aside_withdrawn
-- Let go of the interrupts of a thread whose questions were withdrawn with their run, so that the run that goes on for it
-- can ask them anew.
update approvals
   set interrupt_id = interrupt_id || ' withdrawn ' || approval_id
 where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s and status = 'withdrawn'
   and interrupt_id not like '%% withdrawn %%'

-- name: get_approval
-- A tenant's approval by its id.
select *
  from approvals
 where tenant_id = %(tenant_id)s and approval_id = %(approval_id)s

-- name: approval_of_interrupt
-- The approval that was asked for an interrupt.
select *
  from approvals
 where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s and interrupt_id = %(interrupt_id)s

-- name: find_approvals
-- A tenant's approvals, oldest first.
select a.*
  from approvals a
 where a.tenant_id = %(tenant_id)s
   and (%(run_id)s::uuid is null or a.run_id = %(run_id)s)
   and (%(thread_key)s::text is null
        or a.thread_id = (select t.thread_id from threads t
                           where t.tenant_id = %(tenant_id)s and t.thread_key = %(thread_key)s))
   and (a.status = 'pending' or not %(pending_only)s)
 order by a.created_at, a.approval_id
 limit %(limit)s

-- name: tenant_of_approval
-- Whose approval this is, for the engine.
select tenant_id
  from approvals
 where approval_id = %(approval_id)s

-- name: lock_run_of_approval
-- The run of an approval, locked before the approval is touched: whoever ends or parks the run comes before or after.
select r.run_id::text, r.attempt
  from runs r
  join approvals a on a.run_id = r.run_id
 where a.tenant_id = %(tenant_id)s and a.approval_id = %(approval_id)s
   for no key update of r

-- name: decide_approval
-- Record a decision, if the approval is still pending and in time.
update approvals
   set status = %(status)s, decided_at = clock_timestamp(), decided_by = %(decided_by)s, decision = %(decision)s,
       granted_digest = %(granted_digest)s
 where approval_id = %(approval_id)s and status = 'pending' and expires_at > clock_timestamp()
returning *

-- name: overdue_approvals
-- What nobody decided in time, the longest overdue first, by its run; for the engine.
select tenant_id, run_id::text, array_agg(approval_id) as approval_ids
  from (select tenant_id, run_id, approval_id, expires_at
          from approvals
         where status = 'pending' and expires_at <= clock_timestamp()
           and (%(tenants)s::text[] is null or tenant_id = any(%(tenants)s::text[]))
         order by expires_at
         limit %(limit)s) overdue
 group by tenant_id, run_id
 order by min(expires_at)

-- name: lock_run
-- A run, locked before its approvals are touched.
select run_id::text, attempt
  from runs
 where tenant_id = %(tenant_id)s and run_id = %(run_id)s
   for no key update

-- name: expire_approvals
-- Expire what nobody decided in time.
update approvals
   set status = 'expired', decided_at = clock_timestamp()
 where approval_id = any(%(approval_ids)s::uuid[]) and status = 'pending' and expires_at <= clock_timestamp()
returning *

-- name: withdraw_approvals
-- Take back what is still asked of a run that has ended.
update approvals
   set status = 'withdrawn'
 where run_id = %(run_id)s and status = 'pending'
returning approval_id::text

-- name: resume_run
-- Put a parked run back in the queue, its clock running again, and wake a worker.
with queued as (
    update runs
       set status = 'queued', deadline_at = clock_timestamp() + remaining_ms * interval '1 millisecond',
           remaining_ms = null, next_action = null
     where run_id = %(run_id)s and status = 'interrupted' and not attached
 returning run_id)
select pg_notify('holdfast_runs', '') from queued
