-- name: delete_checkpoints_of_runs
-- Delete what runs have saved: their checkpoints with the writes that belong to them, and blobs that none left needs.
with gone as (
    delete from checkpoints
     where metadata ->> 'run_id' = any(%(run_ids)s)
 returning thread_id, checkpoint_ns, checkpoint_id, checkpoint -> 'channel_versions' as versions),
their_writes as (
    delete from checkpoint_writes w
     using gone
     where w.thread_id = gone.thread_id and w.checkpoint_ns = gone.checkpoint_ns
       and w.checkpoint_id = gone.checkpoint_id),
freed as (
    select distinct gone.thread_id, gone.checkpoint_ns, v.key as channel, v.value as version
      from gone cross join lateral jsonb_each_text(gone.versions) v),
needed as (
    select distinct c.thread_id, c.checkpoint_ns, v.key as channel, v.value as version
      from checkpoints c cross join lateral jsonb_each_text(c.checkpoint -> 'channel_versions') v
     where (c.thread_id, c.checkpoint_ns) in (select thread_id, checkpoint_ns from gone)
       and not exists (select from gone where gone.thread_id = c.thread_id and gone.checkpoint_ns = c.checkpoint_ns
                                          and gone.checkpoint_id = c.checkpoint_id))
delete from checkpoint_blobs b
 using freed
 where b.thread_id = freed.thread_id and b.checkpoint_ns = freed.checkpoint_ns
   and b.channel = freed.channel and b.version = freed.version
   and not exists (select from needed where needed.thread_id = b.thread_id and needed.checkpoint_ns = b.checkpoint_ns
                                        and needed.channel = b.channel and needed.version = b.version)

-- name: copy_checkpoints
-- Copy a thread's checkpoints to another thread.
insert into checkpoints
       (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata, tenant_id)
select %(target)s, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata, tenant_id
  from checkpoints
 where thread_id = %(source)s

-- name: copy_blobs
-- Copy a thread's blobs to another thread.
insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob, tenant_id)
select %(target)s, checkpoint_ns, channel, version, type, blob, tenant_id
  from checkpoint_blobs
 where thread_id = %(source)s

-- name: copy_writes
-- Copy a thread's writes to another thread: all of them, for a delta channel is rebuilt from them.
insert into checkpoint_writes
       (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path, tenant_id)
select %(target)s, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path, tenant_id
  from checkpoint_writes
 where thread_id = %(source)s

-- name: delete_checkpoints
-- Delete the checkpoints of threads.
delete from checkpoints where thread_id = any(%(threads)s)

-- name: delete_blobs
-- Delete the blobs of threads.
delete from checkpoint_blobs where thread_id = any(%(threads)s)

-- name: delete_writes
-- Delete the writes of threads.
delete from checkpoint_writes where thread_id = any(%(threads)s)
