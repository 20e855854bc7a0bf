-- name: copy_line
-- Copy the checkpoints that led to one, that one included, and those that subgraphs saved in the tasks of the earlier
-- ones; nothing when the source has no such checkpoint of its root graph.
with recursive line as (
    select c.checkpoint_id, c.parent_checkpoint_id
      from checkpoints c
     where c.thread_id = %(source)s and c.checkpoint_ns = '' and c.checkpoint_id = %(at)s
       and c.tenant_id = %(tenant_id)s
     union
    select c.checkpoint_id, c.parent_checkpoint_id
      from line
      join checkpoints c on c.thread_id = %(source)s and c.checkpoint_ns = ''
                        and c.checkpoint_id = line.parent_checkpoint_id and c.tenant_id = %(tenant_id)s)
insert into checkpoints
       (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata, tenant_id)
select %(target)s, c.checkpoint_ns, c.checkpoint_id, c.parent_checkpoint_id, c.type, c.checkpoint, c.metadata,
       c.tenant_id
  from checkpoints c
 where c.thread_id = %(source)s and c.tenant_id = %(tenant_id)s
   and case c.checkpoint_ns
       when '' then c.checkpoint_id in (select checkpoint_id from line)
       else c.metadata -> 'parents' ->> '' in (select checkpoint_id from line where checkpoint_id <> %(at)s) end

-- name: copy_values
-- Copy the blobs that the copied checkpoints refer to.
insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob, tenant_id)
select distinct on (b.checkpoint_ns, b.channel, b.version)
       %(target)s, b.checkpoint_ns, b.channel, b.version, b.type, b.blob, b.tenant_id
  from checkpoints c
 cross join lateral jsonb_each_text(c.checkpoint -> 'channel_versions') as v(channel, version)
  join checkpoint_blobs b on b.thread_id = %(source)s and b.checkpoint_ns = c.checkpoint_ns
                         and b.channel = v.channel and b.version = v.version and b.tenant_id = c.tenant_id
 where c.thread_id = %(target)s and c.tenant_id = %(tenant_id)s

-- name: copy_earlier_writes
-- Copy what the tasks before the checkpoint wrote: a delta channel is rebuilt from it. What those after it wrote is the
-- original's, answers of people included.
insert into checkpoint_writes
       (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path, tenant_id)
select %(target)s, w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, w.channel, w.type, w.blob, w.task_path,
       w.tenant_id
  from checkpoints c
  join checkpoint_writes w on w.thread_id = %(source)s and w.checkpoint_ns = c.checkpoint_ns
                          and w.checkpoint_id = c.checkpoint_id and w.tenant_id = c.tenant_id
 where c.thread_id = %(target)s and c.tenant_id = %(tenant_id)s
   and (c.checkpoint_ns, c.checkpoint_id) <> ('', %(at)s)
