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

-- name: admit_run
-- Write a run with its budget and the head of its log, and wake a worker; nothing if its id is taken, here or at another
-- tenant's. An attached run is born running. A resumed one begins with what was spent, or may have been, for it before.
with admitted as (
    insert into runs (run_id, tenant_id, thread_id, graph_name, graph_version, principal, input, input_type,
                      request_digest, context, limits, deadline_at, max_attempts, trace_parent, attached,
                      forked_from, forked_at, resumed_from, status, epoch, attempt, started_at, claimed_at)
    select %(run_id)s, %(tenant_id)s, %(thread_id)s, %(graph_name)s, %(graph_version)s, %(principal)s, %(input)s,
           %(input_type)s, %(request_digest)s, %(context)s, %(limits)s,
           clock_timestamp() + make_interval(secs => %(deadline_seconds)s), %(max_attempts)s, %(trace_parent)s,
           %(attached)s, %(forked_from)s, %(forked_at)s, %(resumed_from)s, born.status, born.epoch, born.epoch, born.started_at, born.started_at
      from (select case when %(attached)s then 'running' else 'queued' end as status,
                   case when %(attached)s then 1 else 0 end as epoch,
                   case when %(attached)s then clock_timestamp() end as started_at) born
        on conflict (run_id) do nothing
 returning run_id, tenant_id, thread_id),
before as (
    select spent_model_calls + reserved_model_calls as model_calls, spent_tool_calls + reserved_tool_calls as tool_calls,
           spent_tokens + reserved_tokens as tokens, spent_cost + reserved_cost as cost,
           spent_unpriced as unpriced, spent_steps as steps
      from budgets
     where budget_id = %(resumed_from)s and tenant_id = %(tenant_id)s),
budget as (
    insert into budgets (budget_id, tenant_id, kind, thread_id, run_id,
                         max_model_calls, max_tool_calls, max_tokens, max_cost, max_steps,
                         spent_model_calls, spent_tool_calls, spent_tokens, spent_cost, spent_unpriced, spent_steps,
                         inherited)
    select a.run_id, a.tenant_id, 'run', a.thread_id, a.run_id,
           %(max_model_calls)s, %(max_tool_calls)s, %(max_tokens)s, %(max_cost)s, %(max_steps)s,
           coalesce(b.model_calls, 0), coalesce(b.tool_calls, 0), coalesce(b.tokens, 0), coalesce(b.cost, 0),
           coalesce(b.unpriced, 0), coalesce(b.steps, 0), to_jsonb(b)
      from admitted a
      left join before b on true),
head as (
    insert into run_heads (run_id, tenant_id, seq, trace_parent)
    select run_id, tenant_id, 0, %(trace_parent)s from admitted)
select pg_notify('holdfast_runs', '') from admitted
