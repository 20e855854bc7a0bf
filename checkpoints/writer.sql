-- name: flush
-- Write the rows of many runs, each only while its lease has the epoch it was written under; name those refused.
with asked as materialized (
    select *
      from unnest(%(slots)s::integer[], %(runs)s::text[]::uuid[], %(epochs)s::text[]::bigint[])
           as asked(slot, run_id, epoch)),
held as materialized (      -- in one order, and past a run that is being claimed: it must not keep its neighbours waiting
    select asked.slot, l.tenant_id
      from asked join leases l using (run_id, epoch)
     order by l.run_id
       for key share of l skip locked),
blobs as (
    insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob, tenant_id)
    select b.thread_id, b.checkpoint_ns, b.channel, b.version, b.type, b.blob, held.tenant_id
      from unnest(%(blob_slot)s::integer[], %(blob_thread)s::text[], %(blob_namespace)s::text[],
                  %(blob_channel)s::text[], %(blob_version)s::text[], %(blob_type)s::text[], %(blob_blob)s::bytea[])
           as b(slot, thread_id, checkpoint_ns, channel, version, type, blob)
      join held using (slot)
        on conflict (thread_id, checkpoint_ns, channel, version) do nothing),
puts as (                   -- a thread of another tenant cannot be taken over: no tenant is no row that policy admits
    insert into checkpoints as c
           (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata, tenant_id)
    select p.thread_id, p.checkpoint_ns, p.checkpoint_id, p.parent_id, p.checkpoint::jsonb, p.metadata::jsonb,
           held.tenant_id
      from unnest(%(put_slot)s::integer[], %(put_thread)s::text[], %(put_namespace)s::text[], %(put_id)s::text[],
                  %(put_parent)s::text[], %(put_checkpoint)s::text[], %(put_metadata)s::text[])
           as p(slot, thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint, metadata)
      join held using (slot)
        on conflict (thread_id, checkpoint_ns, checkpoint_id) do update
       set checkpoint = excluded.checkpoint, metadata = excluded.metadata,
           tenant_id = case when c.tenant_id = excluded.tenant_id then c.tenant_id end),
added as (
    insert into checkpoint_writes
           (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob, tenant_id)
    select w.thread_id, w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, w.task_path, w.channel, w.type, w.blob,
           held.tenant_id
      from unnest(%(add_slot)s::integer[], %(add_thread)s::text[], %(add_namespace)s::text[],
                  %(add_checkpoint)s::text[], %(add_task)s::text[], %(add_idx)s::integer[], %(add_path)s::text[],
                  %(add_channel)s::text[], %(add_type)s::text[], %(add_blob)s::bytea[])
           as w(slot, thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob)
      join held using (slot)
        on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) do nothing)
select asked.slot
  from asked left join held using (slot)
 where held.slot is null

-- name: flush_replacing
-- The same for writes that replace what is there already: of LangGraph's special channels, after a task ran again.
with asked as materialized (
    select *
      from unnest(%(slots)s::integer[], %(runs)s::text[]::uuid[], %(epochs)s::text[]::bigint[])
           as asked(slot, run_id, epoch)),
held as materialized (
    select asked.slot, l.tenant_id
      from asked join leases l using (run_id, epoch)
     order by l.run_id
       for key share of l skip locked),
replaced as (
    insert into checkpoint_writes as c
           (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob, tenant_id)
    select w.thread_id, w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, w.task_path, w.channel, w.type, w.blob,
           held.tenant_id
      from unnest(%(add_slot)s::integer[], %(add_thread)s::text[], %(add_namespace)s::text[],
                  %(add_checkpoint)s::text[], %(add_task)s::text[], %(add_idx)s::integer[], %(add_path)s::text[],
                  %(add_channel)s::text[], %(add_type)s::text[], %(add_blob)s::bytea[])
           as w(slot, thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob)
      join held using (slot)
        on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) do update
       set channel = excluded.channel, type = excluded.type, blob = excluded.blob,
           tenant_id = case when c.tenant_id = excluded.tenant_id then c.tenant_id end)
select asked.slot
  from asked left join held using (slot)
 where held.slot is null

-- name: ask_again
-- Is a run that was refused held under this epoch? Waits for whoever has its lease locked.
select 1
  from leases
 where run_id = %(run_id)s and epoch = %(epoch)s
   for key share
