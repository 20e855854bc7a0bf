-- name: lock_tenant
-- A tenant's terms, locked so that its admissions follow one another: the queue's bound and its order hold exactly.
select terms
  from tenants
 where tenant_id = %(tenant_id)s
   for no key update

-- name: request_digest
-- What was asked when a run of this id was admitted.
select request_digest
  from runs
 where tenant_id = %(tenant_id)s and run_id = %(run_id)s

-- name: queue_is_full
-- Whether as many of a tenant's runs wait as may.
select count(*) >= %(bound)s as full
  from (select from runs where tenant_id = %(tenant_id)s and status = 'queued' limit %(bound)s) waiting

-- name: open_thread
-- Our id of a tenant's thread, which is made on its first use.
with made as (
    insert into threads (thread_id, tenant_id, thread_key)
    values (%(thread_id)s, %(tenant_id)s, %(thread_key)s)
        on conflict (tenant_id, thread_key) do nothing
 returning thread_id)
select thread_id from made
 union all
select thread_id from threads where tenant_id = %(tenant_id)s and thread_key = %(thread_key)s

-- name: admit_run
-- Write a run with its budget and its event counter, and wake a worker; nothing if its id is taken, here or at another
-- tenant's. An attached run is born running.
with admitted as (
    insert into runs (run_id, tenant_id, thread_id, graph_name, graph_version, principal, input, input_type,
                      request_digest, context, limits, deadline_at, max_attempts, trace_parent, attached,
                      status, epoch, attempt, started_at, claimed_at)
    select %(run_id)s, %(tenant_id)s, %(thread_id)s, %(graph_name)s, %(graph_version)s, %(principal)s, %(input)s,
           %(input_type)s, %(request_digest)s, %(context)s, %(limits)s,
           clock_timestamp() + make_interval(secs => %(deadline_seconds)s), %(max_attempts)s, %(trace_parent)s,
           %(attached)s, born.status, born.epoch, born.epoch, born.started_at, born.started_at
      from (select case when %(attached)s then 'running' else 'queued' end as status,
                   case when %(attached)s then 1 else 0 end as epoch,
                   case when %(attached)s then clock_timestamp() end as started_at) born
        on conflict (run_id) do nothing
 returning run_id, tenant_id, thread_id),
budget as (
    insert into budgets (budget_id, tenant_id, kind, thread_id, run_id,
                         max_model_calls, max_tool_calls, max_tokens, max_cost, max_steps)
    select run_id, tenant_id, 'run', thread_id, run_id,
           %(max_model_calls)s, %(max_tool_calls)s, %(max_tokens)s, %(max_cost)s, %(max_steps)s
      from admitted),
head as (
    insert into run_heads (run_id, tenant_id, seq, trace_parent)
    select run_id, tenant_id, 0, %(trace_parent)s from admitted)
select pg_notify('holdfast_runs', '') from admitted
