-- name: close_left_open
-- Say the last word on the calls that a run leaves without an outcome, whichever of its attempts made them. What only
-- reads has failed, and counts as spent in full; what became of an effect is not known, and its reservation stays.
with left_open as materialized (
    select call_id, effect = 'read' as only_reads
      from calls
     where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s and coalesce(sent_by, run_id) = %(run_id)s
       and (status = 'open' or status = 'unknown' and effect = 'read')
     order by call_id
       for no key update)
update calls c
   set status = case when only_reads then 'failed' else 'unknown' end,
       used = case when only_reads then c.reserved end,
       error_type = case when only_reads then 'transient_dependency' end,
       closed_at = case when only_reads then clock_timestamp() end
  from left_open
 where c.call_id = left_open.call_id
returning c.call_id::text, c.kind, c.node, c.task_id, c.name, c.status;

-- name: settle_left_open
-- Put what these calls used in the place of what they reserved, on every budget that pays for them.
with moves as (
    select budget_id, sum((reserved ->> 'model_calls')::bigint) as model_calls,
           sum((reserved ->> 'tool_calls')::bigint) as tool_calls, sum((reserved ->> 'tokens')::bigint) as tokens,
           coalesce(sum((reserved ->> 'cost')::bigint), 0) as cost,
           count(*) filter (where reserved ->> 'cost' is null) as unpriced
      from calls
     cross join unnest(budgets) as path(budget_id)
     where tenant_id = %(tenant_id)s and call_id = any(%(calls)s::uuid[])
     group by budget_id),
standing as materialized (
    select budget_id
      from budgets
     where tenant_id = %(tenant_id)s and budget_id in (select budget_id from moves)
     order by budget_id
       for no key update)
update budgets b
   set reserved_model_calls = b.reserved_model_calls - moves.model_calls,
       reserved_tool_calls = b.reserved_tool_calls - moves.tool_calls,
       reserved_tokens = b.reserved_tokens - moves.tokens,
       reserved_cost = b.reserved_cost - moves.cost,
       spent_model_calls = b.spent_model_calls + moves.model_calls,
       spent_tool_calls = b.spent_tool_calls + moves.tool_calls,
       spent_tokens = b.spent_tokens + moves.tokens,
       spent_cost = b.spent_cost + moves.cost,
       spent_unpriced = b.spent_unpriced + moves.unpriced
  from moves join standing using (budget_id)
 where b.budget_id = moves.budget_id;
