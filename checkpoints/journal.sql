-- name: find_call
-- The call of a thread with an identity.
select *
  from calls
 where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s and identity_key = %(identity_key)s;

-- name: lock_call_by_key
-- The call of a thread with an identity, locked until its new state is committed.
select *
  from calls
 where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s and identity_key = %(identity_key)s
   for no key update;

-- name: lock_call
-- A call of a thread, locked until its new state is committed.
select *
  from calls
 where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s and call_id = %(call_id)s
   for no key update;

-- name: calls_of_run
-- The calls that a run opened, or sent again for a run that had ended, in order.
select *
  from calls
 where tenant_id = %(tenant_id)s and (run_id = %(run_id)s or sent_by = %(run_id)s)
 order by opened_at, call_id;

-- name: insert_intent
-- Write the intent of a call; of two writers of one identity, the second writes nothing.
insert into calls (call_id, tenant_id, run_id, thread_id, identity_key, checkpoint_ns, task_id, node, checkpoint_id,
                   kind, name, occurrence, fork, agent_name, request_digest, request, effect, idempotent, status,
                   budgets, reserved, model, prompt_version, policy_version, timeout_ms, epoch)
values (%(call_id)s, %(tenant_id)s, %(run_id)s, %(thread_id)s, %(identity_key)s, %(checkpoint_ns)s, %(task_id)s,
        %(node)s, %(checkpoint_id)s, %(kind)s, %(name)s, %(occurrence)s, %(fork)s, %(agent_name)s,
        %(request_digest)s, %(request)s, %(effect)s, %(idempotent)s, 'open', %(budgets)s::uuid[], %(reserved)s,
        %(model)s, %(prompt_version)s, %(policy_version)s, %(timeout_ms)s, %(epoch)s)
    on conflict (thread_id, identity_key) do nothing
returning *;

-- name: reopen_call
-- Open a call again whose recorded failure may be tried again; what its last send used is kept among the earlier ones.
update calls
   set status = 'open', sends = sends + 1, epoch = %(epoch)s, sent_by = %(run_id)s, closed_at = null, latency_ms = null,
       earlier = earlier || jsonb_build_object(
           'budgets', to_jsonb(budgets), 'reserved', reserved, 'used', used, 'grant', grant_id),
       used = null,
       budgets = %(budgets)s::uuid[], reserved = %(reserved)s,
       response = null, error_type = null, error_message = null, error_facts = null
 where call_id = %(call_id)s
returning *;

-- name: resend_call
-- Note that an open call is sent again: what the send before it reserved counts as used.
update calls
   set status = 'open', sends = sends + 1, epoch = %(epoch)s, sent_by = %(run_id)s, latency_ms = null,
       earlier = earlier || jsonb_build_object('budgets', to_jsonb(budgets), 'reserved', reserved, 'used', reserved),
       budgets = %(budgets)s::uuid[], reserved = %(reserved)s, error_type = null, error_message = null, error_facts = null
 where call_id = %(call_id)s
returning *;

-- name: close_call
-- Record the outcome of a call, which is closed unless it is unknown.
update calls
   set status = %(status)s, used = %(used)s, response = %(response)s, error_type = %(error_type)s,
       error_message = %(error_message)s, error_facts = %(error_facts)s, latency_ms = %(latency_ms)s,
       closed_at = case when %(status)s <> 'unknown' then clock_timestamp() end
 where call_id = %(call_id)s
returning *;

-- name: use_grant
-- Use up an approval for the call that it was given for, once and in time, and note it with the call.
with used as (
    update approvals
       set used_at = clock_timestamp()
     where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s and approval_id = %(approval_id)s
       and identity_key = %(identity_key)s and status in ('approved', 'edited')
       and used_at is null and expires_at > clock_timestamp()
 returning approval_id)
update calls
   set grant_id = used.approval_id
  from used
 where call_id = %(call_id)s
returning grant_id;

-- name: why_no_grant
-- How an approval stands that is no grant for a call.
select status, used_at is not null as used, identity_key is not distinct from %(identity_key)s as same_call
  from approvals
 where tenant_id = %(tenant_id)s and thread_id = %(thread_id)s and approval_id = %(approval_id)s;
