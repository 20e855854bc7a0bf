-- name: put_tenant
-- Write a tenant's terms; a tenant keeps the budget that it was made with.
insert into tenants (tenant_id, terms, budget_id, retention, legal_hold)
values (%(tenant_id)s, %(terms)s, %(budget_id)s, %(retention)s, %(legal_hold)s)
    on conflict (tenant_id) do update
   set terms = excluded.terms, retention = excluded.retention, legal_hold = excluded.legal_hold,
       updated_at = clock_timestamp()
returning budget_id;

-- name: put_tenant_budget
-- Write the limits of the budget that a tenant's runs share; what is spent and reserved stays.
insert into budgets (budget_id, tenant_id, kind, max_model_calls, max_tool_calls, max_tokens, max_cost)
values (%(budget_id)s, %(tenant_id)s, 'tenant', %(max_model_calls)s, %(max_tool_calls)s, %(max_tokens)s, %(max_cost)s)
    on conflict (budget_id) do update
   set max_model_calls = excluded.max_model_calls, max_tool_calls = excluded.max_tool_calls,
       max_tokens = excluded.max_tokens, max_cost = excluded.max_cost;

-- name: get_tenant
-- A tenant's terms.
select terms, retention, legal_hold
  from tenants
 where tenant_id = %(tenant_id)s;

-- name: tenant_names
-- The tenants there are, or those of a set, for the engine.
select tenant_id
  from tenants
 where %(tenants)s::text[] is null or tenant_id = any(%(tenants)s::text[])
 order by tenant_id;
