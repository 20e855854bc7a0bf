-- part: runs_leased
-- The runs of a flush that are held under the epoch their rows were written under: locked in one order, and past one
-- that is being claimed, which must not keep its neighbours waiting.
asked as materialized (
    select *
      from unnest(%(slots)s::integer[], %(runs)s::text[]::uuid[], %(epochs)s::text[]::bigint[])
           as asked(slot, run_id, epoch)),
leased as materialized (
    select asked.slot, asked.run_id, asked.epoch, l.tenant_id
      from asked join leases l using (run_id, epoch)
     order by l.run_id
       for key share of l skip locked)

-- part: checkpoint_rows
-- Checkpoints, their blobs, and what tasks returned. A thread of another tenant cannot be taken over: no tenant is no
-- row that policy admits.
blobs as (
    insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob, tenant_id)
    select b.thread_id, b.checkpoint_ns, b.channel, b.version, b.type, b.blob, held.tenant_id
      from unnest(%(blob_slot)s::integer[], %(blob_thread)s::text[], %(blob_namespace)s::text[],
                  %(blob_channel)s::text[], %(blob_version)s::text[], %(blob_type)s::text[], %(blob_blob)s::bytea[])
           as b(slot, thread_id, checkpoint_ns, channel, version, type, blob)
      join held using (slot)
        on conflict (thread_id, checkpoint_ns, channel, version) do nothing),
puts as (
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

-- part: replacing_rows
-- Writes of LangGraph's special channels, which replace those that are there when a task has run again.
replaced as (
    insert into checkpoint_writes as c
           (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob, tenant_id)
    select w.thread_id, w.checkpoint_ns, w.checkpoint_id, w.task_id, w.idx, w.task_path, w.channel, w.type, w.blob,
           held.tenant_id
      from unnest(%(over_slot)s::integer[], %(over_thread)s::text[], %(over_namespace)s::text[],
                  %(over_checkpoint)s::text[], %(over_task)s::text[], %(over_idx)s::integer[], %(over_path)s::text[],
                  %(over_channel)s::text[], %(over_type)s::text[], %(over_blob)s::bytea[])
           as w(slot, thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob)
      join held using (slot)
        on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) do update
       set channel = excluded.channel, type = excluded.type, blob = excluded.blob,
           tenant_id = case when c.tenant_id = excluded.tenant_id then c.tenant_id end)

-- part: events_told
-- Events on their way, and the steps that they begin: a task that is run again is the same step.
told as materialized (
    select leased.run_id, leased.tenant_id, e.*
      from unnest(%(event_slot)s::integer[], %(event_attempt)s::integer[], %(event_kind)s::text[],
                  %(event_node)s::text[], %(event_task)s::text[], %(event_call)s::text[]::uuid[],
                  %(event_trace)s::text[], %(event_span)s::text[], %(event_payload)s::bytea[],
                  %(event_needs)s::text[]::uuid[]) with ordinality
           as e(slot, attempt, kind, node, task_id, call_id, trace_id, span_id, payload, needs, n)
      join leased using (slot)),
begun as materialized (
    select distinct run_id, task_id
      from told
     where kind = 'node.started'
       and not exists (select from events e
                        where e.run_id = told.run_id and e.task_id = told.task_id and e.kind = 'node.started'))

-- part: calls_wanted
-- Calls to be closed that have no outcome yet, calls to be opened, and the budgets that they are paid from.
closing as materialized (
    select leased.slot, given.content, x.*, c.budgets, c.reserved
      from unnest(%(close_slot)s::integer[], %(close_doc)s::text[], %(close_content)s::bytea[])
           as given(slot, doc, content)
      join leased using (slot)
     cross join lateral json_to_record(given.doc::json)
           as x(call_id uuid, thread_id uuid, status text, used jsonb, error_type text, error_message text,
                error_facts jsonb, latency_ms bigint)
      join calls c
        on c.call_id = x.call_id and c.thread_id is not distinct from x.thread_id and c.tenant_id = leased.tenant_id
       and c.status in ('open', 'unknown')),
opening as materialized (
    select leased.slot, leased.run_id, leased.epoch, leased.tenant_id, given.content as request, i.*
      from unnest(%(open_slot)s::integer[], %(open_doc)s::text[], %(open_content)s::bytea[])
           as given(slot, doc, content)
      join leased using (slot)
     cross join lateral json_to_record(given.doc::json)
           as i(call_id uuid, thread_id uuid, identity_key text, checkpoint_ns text, task_id text, node text,
                checkpoint_id text, kind text, name text, occurrence integer, fork text, agent_name text,
                request_digest text, effect text, idempotent boolean, budgets uuid[], reserved jsonb,
                model text, prompt_version text, policy_version text, timeout_ms bigint)),
paths as materialized (
    select call_id, tenant_id, path.budget_id, (reserved ->> 'model_calls')::bigint as model_calls,
           (reserved ->> 'tool_calls')::bigint as tool_calls, (reserved ->> 'tokens')::bigint as tokens,
           (reserved ->> 'cost')::bigint as cost
      from opening cross join unnest(budgets) as path(budget_id))

-- part: budgets_of_steps
-- The budgets that steps are counted on, locked without waiting for anyone.
standing as materialized (
    select b.*
      from budgets b
     where b.budget_id in (select run_id from begun)
     order by b.budget_id
       for no key update skip locked)

-- part: budgets_of_calls
-- The budgets that calls are paid from and steps are counted on, locked without waiting for anyone.
standing as materialized (
    select b.*
      from budgets b
     where b.budget_id in (
           select budget_id from paths union select unnest(budgets) from closing union select run_id from begun)
     order by b.budget_id
       for no key update skip locked)

-- part: runs_ready
-- The runs whose heads and budgets could be locked, where they have events and steps. One that is not ready is left for
-- a flush of its own.
heads as materialized (
    select h.*
      from run_heads h
     where h.run_id in (select run_id from told)
     order by h.run_id
       for no key update skip locked),
held as materialized (
    select leased.*
      from leased
     where (run_id in (select run_id from heads) or run_id not in (select run_id from told))
       and (run_id in (select budget_id from standing) or run_id not in (select run_id from begun)))

-- part: questions
-- What people are asked, once for each interrupt.
asking as (
    insert into approvals (approval_id, tenant_id, run_id, thread_id, interrupt_id, kind, node, task_id, payload,
                           allowed, tool_name, args, args_digest, policy_version, rule, call_id, identity_key,
                           expires_at)
    select q.approval_id, held.tenant_id, held.run_id, q.thread_id, q.interrupt_id, q.kind, q.node, q.task_id,
           q.payload, q.allowed, q.tool_name, q.args, q.args_digest, q.policy_version, q.rule, q.call_id,
           q.identity_key, clock_timestamp() + make_interval(secs => q.expires_in_seconds)
      from unnest(%(question_slot)s::integer[], %(question_doc)s::text[]) as given(slot, doc)
      join held using (slot)
     cross join lateral json_to_record(given.doc::json)
           as q(approval_id uuid, thread_id uuid, interrupt_id text, kind text, node text, task_id text,
                payload jsonb, allowed text[], tool_name text, args jsonb, args_digest text, policy_version text,
                rule text, call_id uuid, identity_key text, expires_in_seconds float8)
     where not exists (      -- one that is being decided is not waited for: whoever decides it waits for the head
           select from approvals a where a.thread_id = q.thread_id and a.interrupt_id = q.interrupt_id)
        on conflict (thread_id, interrupt_id) do nothing
 returning approval_id)

-- part: calls
-- Calls that get their outcome, and intents for which every budget of their path has room beside all other intents of
-- the flush. What is out of the ordinary (an outcome or an intent that is there already, a budget that is locked or has
-- no room for all) is left as it is, to be looked at alone.
closed as (
    update calls c
       set status = x.status, used = x.used, response = x.content, error_type = x.error_type,
           error_message = x.error_message, error_facts = x.error_facts, latency_ms = x.latency_ms,
           closed_at = clock_timestamp()
      from closing x join held using (slot)
     where c.call_id = x.call_id and c.status in ('open', 'unknown')
       and x.budgets <@ array(select budget_id from standing)
 returning c.call_id, c.budgets, c.reserved, c.used, c.closed_at),
roomy as (
    select b.budget_id, b.tenant_id
      from standing b
      join (select budget_id, sum(model_calls) as model_calls, sum(tool_calls) as tool_calls, sum(tokens) as tokens,
                   case when count(*) = count(cost) then sum(cost) end as cost
              from paths
             group by budget_id) wanted using (budget_id)
     where (max_model_calls is null or spent_model_calls + reserved_model_calls + wanted.model_calls <= max_model_calls)
       and (max_tool_calls is null or spent_tool_calls + reserved_tool_calls + wanted.tool_calls <= max_tool_calls)
       and (max_tokens is null or spent_tokens + reserved_tokens + wanted.tokens <= max_tokens)
       and (max_steps is null or spent_steps <= max_steps)
       and (max_cost is null or spent_cost + reserved_cost + wanted.cost <= max_cost)),
admitted as (
    select paths.call_id
      from paths left join roomy using (budget_id, tenant_id)
     group by paths.call_id
    having count(*) = count(roomy.budget_id)),
opened as (
    insert into calls (call_id, tenant_id, run_id, thread_id, identity_key, checkpoint_ns, task_id, node, checkpoint_id,
                       kind, name, occurrence, fork, agent_name, request_digest, request, effect, idempotent, status,
                       budgets, reserved, model, prompt_version, policy_version, timeout_ms, epoch)
    select i.call_id, i.tenant_id, i.run_id, i.thread_id, i.identity_key, i.checkpoint_ns, i.task_id, i.node,
           i.checkpoint_id, i.kind, i.name, i.occurrence, i.fork, i.agent_name, i.request_digest,
           i.request, i.effect, i.idempotent, 'open', i.budgets, i.reserved, i.model,
           i.prompt_version, i.policy_version, i.timeout_ms, i.epoch
      from opening i join admitted using (call_id) join held using (slot)
        on conflict do nothing
 returning call_id, budgets, reserved, opened_at),
moves as (
    select budget_id, sum((reserved ->> 'model_calls')::bigint * sign) as reserved_model_calls,
           sum((reserved ->> 'tool_calls')::bigint * sign) as reserved_tool_calls,
           sum((reserved ->> 'tokens')::bigint * sign) as reserved_tokens,
           sum(coalesce((reserved ->> 'cost')::bigint, 0) * sign) as reserved_cost,
           sum((used ->> 'model_calls')::bigint) as model_calls, sum((used ->> 'tool_calls')::bigint) as tool_calls,
           sum((used ->> 'tokens')::bigint) as tokens, sum((used ->> 'cost')::bigint) as cost,
           count(*) filter (where used is not null and used ->> 'cost' is null) as unpriced, sum(step) as steps
      from (select unnest(budgets) as budget_id, reserved, 1 as sign, null::jsonb as used, 0 as step from opened
             union all
            select unnest(budgets), reserved, -1, used, 0 from closed
             union all
            select run_id, null, 0, null, 1 from begun join held using (run_id)) moved
     group by budget_id),
ledger as (
    update budgets b
       set reserved_model_calls = b.reserved_model_calls + coalesce(moves.reserved_model_calls, 0),
           reserved_tool_calls = b.reserved_tool_calls + coalesce(moves.reserved_tool_calls, 0),
           reserved_tokens = b.reserved_tokens + coalesce(moves.reserved_tokens, 0),
           reserved_cost = b.reserved_cost + coalesce(moves.reserved_cost, 0),
           spent_model_calls = b.spent_model_calls + coalesce(moves.model_calls, 0),
           spent_tool_calls = b.spent_tool_calls + coalesce(moves.tool_calls, 0),
           spent_tokens = b.spent_tokens + coalesce(moves.tokens, 0),
           spent_cost = b.spent_cost + coalesce(moves.cost, 0),
           spent_unpriced = b.spent_unpriced + moves.unpriced,
           spent_steps = b.spent_steps + moves.steps
      from moves
     where b.budget_id = moves.budget_id)

-- part: event_rows
-- Events, chained to those that are there. One that needs a call to be opened or closed, or a question to be asked, is
-- written only if it was. A head that names this flush has its events already: an answer was lost, and it was sent again.
due as materialized (
    select told.*, h.seq + row_number() over (partition by told.run_id order by told.n) as seq, h.hash as before,
           coalesce(told.trace_id, split_part(h.trace_parent, '-', 2)) as trace,
           coalesce(told.span_id, split_part(h.trace_parent, '-', 3)) as span, clock_timestamp() as at
      from told join held using (slot) join heads h on h.run_id = told.run_id
     where h.last_flush is distinct from %(flush)s
       and (needs is null
            or needs in (select call_id from opened union all select call_id from closed
                          union all select approval_id from asking))),
chained as materialized (
    select due.*,
           event_chain_v1(before, event_content_v1(run_id, seq, at, attempt, kind, node, task_id, call_id, trace, span,
                                                   payload))
               over (partition by run_id order by seq rows unbounded preceding) as hash
      from due),
written as (
    insert into events (run_id, seq, tenant_id, at, attempt, kind, node, task_id, call_id, trace_id, span_id, payload,
                        hash)
    select run_id, seq, tenant_id, at, attempt, kind, node, task_id, call_id, trace, span, payload, hash
      from chained
     order by run_id, seq),
moved as (
    update run_heads h
       set seq = last.seq, hash = last.hash, last_flush = %(flush)s
      from (select distinct on (run_id) run_id, seq, hash from chained order by run_id, seq desc) last
     where h.run_id = last.run_id)

-- part: no_questions
-- Nobody is asked anything.
asking as (select null::uuid as approval_id where false)

-- part: no_calls
-- Nothing is called; steps are counted all the same.
opened as (select null::uuid as call_id where false),
closed as (select null::uuid as call_id where false),
ledger as (
    update budgets b
       set spent_steps = b.spent_steps + counted.steps
      from (select run_id, count(*) as steps from begun join held using (run_id) group by run_id) counted
     where b.budget_id = counted.run_id)

-- part: who_was_refused
-- The runs that were not held, or not ready.
select asked.slot, null::text as call_id, null::timestamptz as at
  from asked left join held using (slot)
 where held.slot is null

-- part: which_calls
-- The calls that were opened or closed, and when.
 union all
select null, call_id::text, opened_at from opened
 union all
select null, call_id::text, closed_at from closed

-- name: flush
-- Write the rows of many runs, each only while its lease has the epoch they were written under; name those refused.
with
-- use: runs_leased,
held as (select * from leased),
-- use: checkpoint_rows
-- use: who_was_refused

-- name: flush_recorded
-- Write the rows of many runs with what stands beside checkpoints: special writes, questions, steps and events.
with
-- use: runs_leased,
-- use: events_told,
-- use: budgets_of_steps,
-- use: runs_ready,
-- use: checkpoint_rows,
-- use: replacing_rows,
-- use: questions,
-- use: no_calls,
-- use: event_rows
-- use: who_was_refused

-- name: flush_calls
-- Write the rows of many runs where there are no checkpoints among them: calls, their money, steps and events. Name the
-- runs that were refused, and the calls that were opened or closed.
with
-- use: runs_leased,
-- use: events_told,
-- use: calls_wanted,
-- use: budgets_of_calls,
-- use: runs_ready,
-- use: no_questions,
-- use: calls,
-- use: event_rows
-- use: who_was_refused
-- use: which_calls

-- name: flush_whole
-- Write the rows of many runs, of every kind.
with
-- use: runs_leased,
-- use: events_told,
-- use: calls_wanted,
-- use: budgets_of_calls,
-- use: runs_ready,
-- use: checkpoint_rows,
-- use: replacing_rows,
-- use: questions,
-- use: calls,
-- use: event_rows
-- use: who_was_refused
-- use: which_calls

-- name: ask_again
-- Is a run that was refused held under this epoch? Waits for whoever has locked its lease, its budget or its head.
select 1
  from leases l
  join budgets b on b.budget_id = l.run_id
  join run_heads h on h.run_id = l.run_id
 where l.run_id = %(run_id)s and l.epoch = %(epoch)s
   for key share of l for no key update of b for no key update of h
