-- name: checkpoints_of_thread
-- A thread's checkpoints, as they stand.
select checkpoint_ns, checkpoint_id, checkpoint, metadata
  from checkpoints
 where thread_id = %(thread)s

-- name: blobs_of_thread
-- A thread's blobs, as they stand.
select checkpoint_ns, channel, version, type, blob
  from checkpoint_blobs
 where thread_id = %(thread)s

-- name: writes_of_thread
-- A thread's writes, as they stand.
select checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path
  from checkpoint_writes
 where thread_id = %(thread)s

-- name: change_checkpoint
-- Put other documents in the place of a checkpoint's.
update checkpoints
   set checkpoint = %(checkpoint)s, metadata = %(metadata)s
 where thread_id = %(thread)s and checkpoint_ns = %(checkpoint_ns)s and checkpoint_id = %(checkpoint_id)s

-- name: change_blob
-- Put another value, and another name of its channel, in the place of a blob's.
update checkpoint_blobs
   set channel = %(channel)s, type = %(type)s, blob = %(blob)s
 where thread_id = %(thread)s and checkpoint_ns = %(checkpoint_ns)s and channel = %(was)s and version = %(version)s

-- name: change_write
-- Put another value, and another name of its channel, in the place of a write's.
update checkpoint_writes
   set channel = %(channel)s, type = %(type)s, blob = %(blob)s
 where thread_id = %(thread)s and checkpoint_ns = %(checkpoint_ns)s and checkpoint_id = %(checkpoint_id)s
   and task_id = %(task_id)s and idx = %(idx)s

-- name: threads_to_seal
-- Threads of a tenant with rows that are not sealed with the key in force.
select thread_id
  from (select thread_id from checkpoints where checkpoint ->> 'key' is distinct from %(key_id)s
         union
        select thread_id from checkpoint_blobs where type is distinct from %(type)s
         union
        select thread_id from checkpoint_writes where type is distinct from %(type)s) stale
 where %(after)s::text is null or thread_id > %(after)s
 order by thread_id
 limit %(limit)s

-- name: holds_old_checkpoints
-- Whether a tenant has checkpoints from before LangGraph kept a task's sends with the checkpoint itself.
select exists (select from checkpoints where (checkpoint ->> 'v')::integer < 4) as found

-- name: runs_under_way
-- Whether any worker holds a run; for the engine.
select exists (select from leases where expires_at > clock_timestamp()) as found

-- name: page_of_runs
-- Some of a tenant's runs after one, locked, with what is sealed of them.
select run_id, tenant_id, input, context, output, cause, contents_pruned_at
  from runs
 where tenant_id = %(tenant_id)s and (%(after)s::uuid is null or run_id > %(after)s)
 order by run_id
 limit %(limit)s
   for no key update

-- name: seal_run
-- Put sealed values in the place of what stands in a run's row.
update runs
   set input = %(input)s, context = %(context)s, output = %(output)s, cause = %(cause)s
 where run_id = %(run_id)s

-- name: page_of_calls
-- Some of a tenant's calls after one, locked, with what is sealed of them.
select call_id, tenant_id, request, response, error_message, error_facts, contents_pruned_at
  from calls
 where tenant_id = %(tenant_id)s and (%(after)s::uuid is null or call_id > %(after)s)
 order by call_id
 limit %(limit)s
   for no key update

-- name: seal_call
-- Put sealed values in the place of what stands in a call's row.
update calls
   set request = %(request)s, response = %(response)s, error_message = %(error_message)s, error_facts = %(error_facts)s
 where call_id = %(call_id)s

-- name: page_of_approvals
-- Some of a tenant's approvals after one, locked, with what is sealed of them.
select approval_id, tenant_id, payload, args, decision, contents_pruned_at
  from approvals
 where tenant_id = %(tenant_id)s and (%(after)s::uuid is null or approval_id > %(after)s)
 order by approval_id
 limit %(limit)s
   for no key update

-- name: seal_approval
-- Put sealed values in the place of what stands in an approval's row.
update approvals
   set payload = %(payload)s, args = %(args)s, decision = %(decision)s
 where approval_id = %(approval_id)s
