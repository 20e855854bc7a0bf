-- name: load_runs
-- Whole runs by their ids, oldest first.
select r.*, t.thread_key, t.fork, l.worker_id,
       case when r.deadline_at is null then r.remaining_ms / 1000.0
            else greatest(0, extract(epoch from r.deadline_at - clock_timestamp())) end::float8 as remaining_seconds
  from runs r
  join threads t on t.thread_id = r.thread_id
  left join leases l on l.run_id = r.run_id
 where r.run_id = any(%(run_ids)s::uuid[])
 order by r.created_at, r.run_id

-- name: find_runs
-- The ids of a tenant's runs, newest first.
select r.run_id
  from runs r
  join threads t on t.thread_id = r.thread_id
 where r.tenant_id = %(tenant_id)s
   and (%(thread_key)s::text is null or t.thread_key = %(thread_key)s)
   and (%(status)s::text is null or r.status = %(status)s)
 order by r.created_at desc, r.run_id desc
 limit %(limit)s

-- name: statuses_of_runs
-- How a tenant's runs stand, by their ids.
select run_id::text, status
  from runs
 where tenant_id = %(tenant_id)s and run_id = any(%(run_ids)s::uuid[])

-- name: find_thread
-- Our id of a tenant's thread.
select thread_id
  from threads
 where tenant_id = %(tenant_id)s and thread_key = %(thread_key)s

-- name: lock_run
-- A run's state, locked against any other change of it.
select status, epoch, attempt, thread_id, cancel_requested
  from runs
 where tenant_id = %(tenant_id)s and run_id = %(run_id)s
   for no key update

-- name: ask_to_stop
-- Note who wants a run to stop, and why; the first who asks is remembered. Whoever works on it is told to look.
with asked as (
    update runs
       set cancel_requested = %(cancel)s
     where run_id = %(run_id)s and cancel_requested is null
 returning run_id, status)
select pg_notify('holdfast_runs', case status when 'running' then 'stop ' || run_id else '' end) from asked

-- name: reattach_run
-- Let an attached run that rests go on in its host, its clock running again.
update runs
   set status = 'running', epoch = epoch + 1, attempt = attempt + 1, claimed_at = clock_timestamp(),
       deadline_at = clock_timestamp() + remaining_ms * interval '1 millisecond', remaining_ms = null, next_action = null
 where run_id = %(run_id)s and attached and status = 'interrupted'
returning epoch, attempt

-- name: count_step
-- Count a task of the graph as a step of the run, once, where its limit allows; and tell how things stand.
with counted as (
    update budgets
       set spent_steps = spent_steps + 1
     where budget_id = %(run_id)s and (max_steps is null or spent_steps < max_steps)
       and not exists (
           select from events where run_id = %(run_id)s and task_id = %(task_id)s and kind = 'node.started')
 returning budget_id)
select exists (select from counted) as counted,
       exists (select from events where run_id = %(run_id)s and task_id = %(task_id)s and kind = 'node.started') as known,
       b.max_steps, r.cancel_requested is not null as cancel_requested
  from runs r
  join budgets b on b.budget_id = r.run_id
 where r.run_id = %(run_id)s

-- name: steps_so_far
-- What a run may take and has taken of steps, the tasks that were counted, and whether it is asked to stop.
select b.spent_steps, b.max_steps, r.cancel_requested is not null as cancel_requested,
       array(select distinct e.task_id from events e where e.run_id = r.run_id and e.kind = 'node.started') as begun
  from runs r
  join budgets b on b.budget_id = r.run_id
 where r.run_id = %(run_id)s

-- name: park_run
-- Stop a run's clock until a person decides; or queue it, clock running, if someone already has in this attempt, or
-- wants the run to stop.
with answered as (
    select not r.attached and (r.cancel_requested is not null or exists (
               select from approvals a where a.run_id = r.run_id and a.decided_at >= r.claimed_at)) as already
      from runs r
     where r.run_id = %(run_id)s),
parked as (
    update runs r
       set status = case when already then 'queued' else 'interrupted' end, parked = true,
           next_action = case when already then null else %(next_action)s end,
           remaining_ms = case when not already and r.deadline_at is not null
                               then greatest(0, extract(epoch from r.deadline_at - clock_timestamp()) * 1000) end,
           deadline_at = case when already then r.deadline_at end
      from answered
     where r.run_id = %(run_id)s
 returning r.status)
select parked.status, pg_notify('holdfast_runs', '') from parked

-- name: end_run
-- Give a run its final status, stop its clock, and wake a worker for the next run of its thread.
with ended as (
    update runs
       set status = %(status)s, output = %(output)s, cause = %(cause)s, next_action = null,
           finished_at = clock_timestamp(), deadline_at = null,
           remaining_ms = case when deadline_at is null then remaining_ms
                               else greatest(0, extract(epoch from deadline_at - clock_timestamp()) * 1000) end
     where run_id = %(run_id)s
 returning run_id)
select pg_notify('holdfast_runs', '') from ended

-- name: requeue_run
-- Hand a run back to the queue, and wake a worker.
with queued as (
    update runs set status = 'queued', parked = false where run_id = %(run_id)s returning run_id)
select pg_notify('holdfast_runs', '') from queued

-- name: drop_lease
-- End an attempt's hold.
delete from leases
 where run_id = %(run_id)s and epoch = %(epoch)s
