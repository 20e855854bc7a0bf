-- name: latest_checkpoints
-- The latest checkpoint of each of many threads' namespaces, as langgraph-checkpoint-postgres reads one.
with asked as materialized (
    select *
      from unnest(%(slots)s::integer[], %(tenants)s::text[], %(threads)s::text[], %(names)s::text[])
           as asked(slot, tenant_id, thread_id, checkpoint_ns))
select asked.slot, c.thread_id, c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, c.checkpoint, c.metadata,
       (select array_agg(array[convert_to(b.channel, 'UTF8'), convert_to(b.type, 'UTF8'), b.blob])
          from jsonb_each_text(c.checkpoint -> 'channel_versions') as versions(channel, version)
          join checkpoint_blobs b
            on b.thread_id = c.thread_id and b.checkpoint_ns = c.checkpoint_ns
           and b.channel = versions.channel and b.version = versions.version
           and b.tenant_id = asked.tenant_id) as channel_values,
       (select array_agg(array[convert_to(w.task_id, 'UTF8'), convert_to(w.channel, 'UTF8'),
                               convert_to(w.type, 'UTF8'), w.blob, convert_to(w.task_path, 'UTF8'),
                               convert_to(w.idx::text, 'UTF8')])
          from checkpoint_writes w
         where w.thread_id = c.thread_id and w.checkpoint_ns = c.checkpoint_ns
           and w.checkpoint_id = c.checkpoint_id and w.tenant_id = asked.tenant_id) as pending_writes
  from asked
 cross join lateral (
       select *
         from checkpoints latest
        where latest.thread_id = asked.thread_id and latest.checkpoint_ns = asked.checkpoint_ns
          and latest.tenant_id = asked.tenant_id
        order by latest.checkpoint_id desc
        limit 1) c

-- name: calls_of_tasks
-- The calls that each of many tasks has made.
with asked as materialized (
    select *
      from unnest(%(slots)s::integer[], %(tenants)s::text[], %(threads)s::text[]::uuid[], %(names)s::text[])
           as asked(slot, tenant_id, thread_id, task_id))
select asked.slot, c.*
  from asked
  join calls c on c.thread_id = asked.thread_id and c.task_id = asked.task_id and c.tenant_id = asked.tenant_id

-- name: approvals_of_tasks
-- What each of many tasks and their parts have asked people, oldest first, and whether its time has run out.
with asked as materialized (
    select *
      from unnest(%(slots)s::integer[], %(tenants)s::text[], %(threads)s::text[]::uuid[], %(names)s::text[])
           as asked(slot, tenant_id, thread_id, task_id))
select asked.slot, a.*, a.expires_at <= clock_timestamp() as overdue
  from asked
  join approvals a
    on a.thread_id = asked.thread_id and a.tenant_id = asked.tenant_id
       and (a.task_id = asked.task_id or starts_with(a.task_id, asked.task_id || '/'))
 order by a.created_at, a.approval_id
