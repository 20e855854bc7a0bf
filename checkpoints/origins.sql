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

-- name: fork_thread
-- Make a thread for a fork; nothing when the tenant has one of that name.
insert into threads (thread_id, tenant_id, thread_key, fork)
values (%(thread_id)s, %(tenant_id)s, %(thread_key)s, %(salt)s)
    on conflict (tenant_id, thread_key) do nothing
returning thread_id

-- name: lock_origin
-- The run that another goes on from, locked against any change; and the run after it on its thread, if there is one.
select r.thread_id::text, r.status, r.attempt, r.attached, r.checkpoints_kept = 'none' as pruned,
       r.contents_pruned_at,
       (select later.run_id::text
          from runs later
         where later.thread_id = r.thread_id and (later.created_at, later.run_id) > (r.created_at, r.run_id)
         order by later.created_at, later.run_id
         limit 1) as followed_by
  from runs r
 where r.tenant_id = %(tenant_id)s and r.run_id = %(run_id)s
   for no key update of r
