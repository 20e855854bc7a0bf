-- name: reserve
-- Reserve on every budget of a path, or on none: lock them in the order of their ids and look for room on each.
with path as materialized (
    select b.*,
           (max_model_calls is null or spent_model_calls + reserved_model_calls + %(model_calls)s <= max_model_calls)
       and (max_tool_calls is null or spent_tool_calls + reserved_tool_calls + %(tool_calls)s <= max_tool_calls)
       and (max_tokens is null or spent_tokens + reserved_tokens + %(tokens)s <= max_tokens)
       and (max_steps is null or spent_steps <= max_steps)
       and (max_cost is null
            or %(cost)s::bigint is not null and spent_cost + reserved_cost + %(cost)s::bigint <= max_cost) as has_room
      from (select *
              from budgets
             where tenant_id = %(tenant_id)s and budget_id = any(%(budgets)s::uuid[])
             order by budget_id
               for no key update) b),
reserved as (
    update budgets b
       set reserved_model_calls = b.reserved_model_calls + %(model_calls)s,
           reserved_tool_calls = b.reserved_tool_calls + %(tool_calls)s,
           reserved_tokens = b.reserved_tokens + %(tokens)s,
           reserved_cost = b.reserved_cost + coalesce(%(cost)s::bigint, 0)
      from path
     where b.budget_id = path.budget_id
       and (select bool_and(has_room) and count(*) = cardinality(%(budgets)s::uuid[]) from path)
 returning b.budget_id)
select path.*, exists (select from reserved) as was_reserved
  from path
 order by array_position(%(budgets)s::uuid[], path.budget_id);

-- name: settle
-- Release what a call reserved and count what it used, on every budget of its path.
with path as materialized (
    select budget_id
      from budgets
     where tenant_id = %(tenant_id)s and budget_id = any(%(budgets)s::uuid[])
     order by budget_id
       for no key update)
update budgets b
   set reserved_model_calls = b.reserved_model_calls - %(reserved_model_calls)s,
       reserved_tool_calls = b.reserved_tool_calls - %(reserved_tool_calls)s,
       reserved_tokens = b.reserved_tokens - %(reserved_tokens)s,
       reserved_cost = b.reserved_cost - coalesce(%(reserved_cost)s::bigint, 0),
       spent_model_calls = b.spent_model_calls + %(used_model_calls)s,
       spent_tool_calls = b.spent_tool_calls + %(used_tool_calls)s,
       spent_tokens = b.spent_tokens + %(used_tokens)s,
       spent_cost = b.spent_cost + coalesce(%(used_cost)s::bigint, 0),
       spent_unpriced = b.spent_unpriced + (%(used_cost)s::bigint is null)::int
  from path
 where b.budget_id = path.budget_id;

-- name: open_share
-- Make a specialist's budget under its parent, once per thread and share.
insert into budgets (budget_id, tenant_id, kind, thread_id, run_id, parent_id, share_key,
                     max_model_calls, max_tool_calls, max_tokens, max_cost, max_steps)
select %(budget_id)s, parent.tenant_id, 'specialist', %(thread_id)s, %(run_id)s, parent.budget_id, %(share_key)s,
       %(max_model_calls)s, %(max_tool_calls)s, %(max_tokens)s, %(max_cost)s, %(max_steps)s
  from budgets parent
 where parent.budget_id = %(parent)s and parent.tenant_id = %(tenant_id)s
    on conflict (thread_id, share_key) do nothing
returning budget_id::text;

-- name: find_share
-- The budget of a thread's share.
select budget_id::text
  from budgets
 where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s and share_key = %(share_key)s;

-- name: get_budget
-- A budget by its id.
select *
  from budgets
 where tenant_id = %(tenant_id)s and budget_id = %(budget_id)s;

-- name: tenant_budget
-- The id of the budget that a tenant's runs share.
select budget_id::text
  from tenants
 where tenant_id = %(tenant_id)s;
