-- What a process writes for all its runs at once. A function, because most flushes have rows of two or three kinds only:
-- a statement that could write all of them pays for all of them, the more the smaller the flush.
--
-- All of a flush is written or nothing: who is in its way is named, and whoever sent it sends the rest again. Slots are
-- counted from 1 and name the run that a row is of.
--
-- A call's run is known to be there: whoever writes the call holds the run's lease, or its row where it is attached. To
-- look it up again locks it for every writer.
alter table calls drop constraint calls_run_id_fkey;

create function flush_v1(
    flushes text[],              -- what a run's head is to name: its writer, and the number of the last write, by slot
    waits boolean,               -- whether to wait for locks of others on its run, for one that comes alone
    skips boolean,               -- whether not to wait for budgets that others have locked
    runs uuid[], epochs bigint[], of_tenants text[],
    blob_slot integer[], blob_thread text[], blob_namespace text[], blob_channel text[], blob_version text[],
    blob_type text[], blob_blob bytea[],
    put_slot integer[], put_thread text[], put_namespace text[], put_id text[], put_parent text[],
    put_checkpoint text[], put_metadata text[],
    add_slot integer[], add_thread text[], add_namespace text[], add_checkpoint text[], add_task text[],
    add_idx integer[], add_path text[], add_channel text[], add_type text[], add_blob bytea[],
    over_slot integer[], over_thread text[], over_namespace text[], over_checkpoint text[], over_task text[],
    over_idx integer[], over_path text[], over_channel text[], over_type text[], over_blob bytea[],
    event_slot integer[], event_attempt integer[], event_kind text[], event_node text[], event_task text[],
    event_call uuid[], event_trace text[], event_span text[], event_payload bytea[], event_question uuid[],
    question_slot integer[], question_doc text[],
    open_slot integer[], open_call uuid[], open_thread uuid[], open_key text[], open_namespace text[], open_task text[],
    open_node text[], open_checkpoint text[], open_kind text[], open_name text[], open_occurrence integer[],
    open_fork text[], open_agent text[], open_digest text[], open_request bytea[], open_effect text[],
    open_idempotent boolean[], open_budgets text[], open_reserved text[], open_model text[], open_prompt text[],
    open_policy text[], open_timeout bigint[],
    close_slot integer[], close_call uuid[], close_doc text[], close_content bytea[],
    moved_budget uuid[], moved_tenant text[], moved_opens bigint[], moved_unpriced bigint[],
    moved_asked_model_calls bigint[], moved_asked_tool_calls bigint[], moved_asked_tokens bigint[],
    moved_asked_cost bigint[],
    moved_held_model_calls bigint[], moved_held_tool_calls bigint[], moved_held_tokens bigint[],
    moved_held_cost bigint[],
    moved_spent_model_calls bigint[], moved_spent_tool_calls bigint[], moved_spent_tokens bigint[],
    moved_spent_cost bigint[],
    out refused integer[],       -- the slots of runs that are not held under their epoch, or are locked by somebody
    out lacking uuid[],          -- the budgets that are locked by somebody, or have no room for all that is opened
    out committed_at timestamptz
) language plpgsql as $$
declare
    held integer[];
    standing uuid[];
    asked uuid[];
    sent_before boolean;
    number bigint;
    -- The end of each run's chain, by slot, and what is appended to it.
    seqs bigint[];
    hashes bytea[];
    traces text[];
    event_seq bigint[];
    event_hash bytea[];
    slot integer;
begin
    -- A run that was refused in company comes again alone, and waits. What it is refused for now is no lock.
    if waits then
        perform from leases
         where run_id = any (runs) and epoch = any (epochs) and tenant_id = any (of_tenants)
           for key share;
    end if;
    -- Past what is locked by others: they claim the run or end it, and its neighbours need not wait for that.
    select array_agg(leased.slot) into held
      from (select given.slot
              from unnest(runs, epochs, of_tenants) with ordinality as given(run_id, epoch, tenant_id, slot)
              join leases l using (run_id, epoch, tenant_id)
             order by l.run_id
               for key share of l skip locked) as leased;
    if cardinality(held) is distinct from cardinality(runs) then
        refused := array(select n from generate_subscripts(runs, 1) as n where n <> all (coalesce(held, '{}')));
        return;
    end if;

    -- A tenant's budget is paid from by many processes, each of which has it locked for as long as it commits. So budgets
    -- are waited for, in the order in which everybody takes them; unless somebody has kept one for too long just now.
    if cardinality(moved_budget) > 0 then
        if not skips then
            perform from budgets where budget_id = any (moved_budget) order by budget_id for no key update;
        elsif waits then
            perform from budgets where budget_id = any (runs) for no key update;
        end if;
    end if;

    -- A run with events is also locked by its head, which numbers them; last of all, as everywhere.
    if cardinality(event_slot) > 0 then
        if waits then
            perform from run_heads where run_id = any (runs) for no key update;
        end if;
        select array_agg(headed.slot order by headed.slot), array_agg(seq order by headed.slot),
               array_agg(hash order by headed.slot), array_agg(trace_parent order by headed.slot),
               bool_or(left(last_flush, -16) = left(flush, -16) and right(last_flush, 16) >= right(flush, 16))
          into held, seqs, hashes, traces, sent_before
          from (select given.slot, given.flush, h.seq, h.hash, h.trace_parent, h.last_flush collate "C"
                  from unnest(runs, flushes) with ordinality as given(run_id, flush, slot)
                  join run_heads h using (run_id)
                 order by h.run_id
                   for no key update of h skip locked) as headed;
        if cardinality(held) is distinct from cardinality(runs) then
            refused := array(select n from generate_subscripts(runs, 1) as n where n <> all (coalesce(held, '{}')));
            return;
        end if;
        -- Its answer was lost, and it is sent again: a head says that it was committed, with all that was in it. It may
        -- be less now than it was then, without those who are in the way this time; and it may come late, when what was
        -- sent in its place is there. So it is not known by being the last, but by its writes being no newer.
        if sent_before then
            select coalesce(max(greatest(opened_at, closed_at)), clock_timestamp()) into committed_at
              from calls where call_id = any (event_call);
            return;
        end if;
    end if;

    if cardinality(moved_budget) > 0 then
        select array_agg(budget_id) into standing
          from (select b.budget_id
                  from unnest(moved_budget, moved_tenant, moved_opens, moved_asked_model_calls,
                              moved_asked_tool_calls, moved_asked_tokens, moved_asked_cost)
                       as asked(budget_id, tenant_id, opens, model_calls, tool_calls, tokens, cost)
                  join budgets b using (budget_id, tenant_id)
                 where opens = 0
                    or (max_model_calls is null or spent_model_calls + reserved_model_calls + model_calls <= max_model_calls)
                       and (max_tool_calls is null or spent_tool_calls + reserved_tool_calls + tool_calls <= max_tool_calls)
                       and (max_tokens is null or spent_tokens + reserved_tokens + tokens <= max_tokens)
                       and (max_steps is null or spent_steps <= max_steps)
                       and (max_cost is null or spent_cost + reserved_cost + cost <= max_cost)
                 order by b.budget_id
                   for no key update of b skip locked) as roomy;
        if cardinality(standing) is distinct from cardinality(moved_budget) then
            lacking := array(select id from unnest(moved_budget) as id where id <> all (coalesce(standing, '{}')));
            return;
        end if;
    end if;

    committed_at := clock_timestamp();

    if cardinality(blob_slot) > 0 then
        insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob, tenant_id)
        select thread_id, checkpoint_ns, channel, version, type, blob, of_tenants[given.slot]
          from unnest(blob_slot, blob_thread, blob_namespace, blob_channel, blob_version, blob_type, blob_blob)
               as given(slot, thread_id, checkpoint_ns, channel, version, type, blob)
            on conflict (thread_id, checkpoint_ns, channel, version) do nothing;
    end if;
    -- A thread of another tenant cannot be taken over: no tenant is no row that policy admits.
    if cardinality(put_slot) > 0 then
        insert into checkpoints as c
               (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata, tenant_id)
        select thread_id, checkpoint_ns, checkpoint_id, parent_id, given.checkpoint::jsonb, given.metadata::jsonb,
               of_tenants[given.slot]
          from unnest(put_slot, put_thread, put_namespace, put_id, put_parent, put_checkpoint, put_metadata)
               as given(slot, thread_id, checkpoint_ns, checkpoint_id, parent_id, checkpoint, metadata)
            on conflict (thread_id, checkpoint_ns, checkpoint_id) do update
           set checkpoint = excluded.checkpoint, metadata = excluded.metadata,
               tenant_id = case when c.tenant_id = excluded.tenant_id then c.tenant_id end;
    end if;
    if cardinality(add_slot) > 0 then
        insert into checkpoint_writes
               (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob, tenant_id)
        select thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob, of_tenants[given.slot]
          from unnest(add_slot, add_thread, add_namespace, add_checkpoint, add_task, add_idx, add_path, add_channel,
                      add_type, add_blob)
               as given(slot, thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob)
            on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) do nothing;
    end if;
    -- Writes of LangGraph's special channels, which replace those that are there when a task has run again.
    if cardinality(over_slot) > 0 then
        insert into checkpoint_writes as c
               (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob, tenant_id)
        select thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob, of_tenants[given.slot]
          from unnest(over_slot, over_thread, over_namespace, over_checkpoint, over_task, over_idx, over_path,
                      over_channel, over_type, over_blob)
               as given(slot, thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob)
            on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) do update
           set channel = excluded.channel, type = excluded.type, blob = excluded.blob,
               tenant_id = case when c.tenant_id = excluded.tenant_id then c.tenant_id end;
    end if;

    -- What people are asked, once for each interrupt. One that is being decided is not waited for: whoever decides it
    -- waits for the head.
    if cardinality(question_slot) > 0 then
        with asking as (
            insert into approvals (approval_id, tenant_id, run_id, thread_id, interrupt_id, kind, node, task_id,
                                   payload, allowed, tool_name, args, args_digest, policy_version, rule, call_id,
                                   identity_key, created_at, expires_at)
            select q.approval_id, of_tenants[given.slot], runs[given.slot], q.thread_id, q.interrupt_id, q.kind, q.node, q.task_id,
                   q.payload, q.allowed, q.tool_name, q.args, q.args_digest, q.policy_version, q.rule, q.call_id,
                   q.identity_key, committed_at, committed_at + make_interval(secs => q.expires_in_seconds)
              from unnest(question_slot, question_doc) as given(slot, doc)
             cross join lateral json_to_record(given.doc::json)
                   as q(approval_id uuid, thread_id uuid, interrupt_id text, kind text, node text, task_id text,
                        payload jsonb, allowed text[], tool_name text, args jsonb, args_digest text,
                        policy_version text, rule text, call_id uuid, identity_key text, expires_in_seconds float8)
             where not exists (
                   select from approvals a where a.thread_id = q.thread_id and a.interrupt_id = q.interrupt_id)
                on conflict (thread_id, interrupt_id) do nothing
         returning approval_id)
        select array_agg(approval_id) into asked from asking;
    end if;

    -- An intent that is there already, and an outcome of what is not open any more, are no case for a flush: its sender
    -- finds them by splitting it, and looks at each alone.
    if cardinality(open_slot) > 0 then
        insert into calls (call_id, tenant_id, run_id, thread_id, identity_key, checkpoint_ns, task_id, node,
                           checkpoint_id, kind, name, occurrence, fork, agent_name, request_digest, request, effect,
                           idempotent, status, budgets, reserved, model, prompt_version, policy_version, timeout_ms,
                           epoch, opened_at)
        select call_id, of_tenants[i.slot], runs[i.slot], thread_id, identity_key, checkpoint_ns, task_id, node,
               checkpoint_id, kind, name, occurrence, fork, agent_name, request_digest, request, effect, idempotent,
               'open', budgets::uuid[], reserved::jsonb, model, prompt_version, policy_version, timeout_ms,
               epochs[i.slot], committed_at
          from unnest(open_slot, open_call, open_thread, open_key, open_namespace, open_task, open_node,
                      open_checkpoint, open_kind, open_name, open_occurrence, open_fork, open_agent, open_digest,
                      open_request, open_effect, open_idempotent, open_budgets, open_reserved, open_model, open_prompt,
                      open_policy, open_timeout)
               as i(slot, call_id, thread_id, identity_key, checkpoint_ns, task_id, node, checkpoint_id, kind, name,
                    occurrence, fork, agent_name, request_digest, request, effect, idempotent, budgets, reserved,
                    model, prompt_version, policy_version, timeout_ms);
    end if;
    if cardinality(close_slot) > 0 then
        update calls c
           set status = x.status, used = x.used, response = given.content, error_type = x.error_type,
               error_message = x.error_message, error_facts = x.error_facts, latency_ms = x.latency_ms,
               closed_at = committed_at
          from unnest(close_slot, close_call, close_doc, close_content) as given(slot, call_id, doc, content)
         cross join lateral json_to_record(given.doc::json)
               as x(thread_id uuid, budgets uuid[], status text, used jsonb, error_type text, error_message text,
                    error_facts jsonb, latency_ms bigint)
         where c.call_id = given.call_id and c.tenant_id = of_tenants[given.slot]
           and c.thread_id is not distinct from x.thread_id and c.budgets = x.budgets
           and c.status in ('open', 'unknown');
        get diagnostics number = row_count;
        if number <> cardinality(close_slot) then
            raise exception 'a call that was to be closed is not open' using errcode = 'check_violation';
        end if;
    end if;

    if cardinality(moved_budget) > 0 then
        update budgets b
           set reserved_model_calls = reserved_model_calls + held_model_calls,
               reserved_tool_calls = reserved_tool_calls + held_tool_calls,
               reserved_tokens = reserved_tokens + held_tokens,
               reserved_cost = reserved_cost + held_cost,
               spent_model_calls = spent_model_calls + used_model_calls,
               spent_tool_calls = spent_tool_calls + used_tool_calls,
               spent_tokens = spent_tokens + used_tokens,
               spent_cost = spent_cost + used_cost,
               spent_unpriced = spent_unpriced + unpriced
          from unnest(moved_budget, moved_unpriced, moved_held_model_calls, moved_held_tool_calls, moved_held_tokens,
                      moved_held_cost, moved_spent_model_calls, moved_spent_tool_calls, moved_spent_tokens,
                      moved_spent_cost)
               as moved(budget_id, unpriced, held_model_calls, held_tool_calls, held_tokens, held_cost,
                        used_model_calls, used_tool_calls, used_tokens, used_cost)
         where b.budget_id = moved.budget_id;
    end if;

    -- A task that is run again is the same step.
    if 'node.started' = any (event_kind) then
        update budgets b
           set spent_steps = b.spent_steps + begun.steps
          from (select runs[told.slot] as run_id, count(distinct told.task_id) as steps
                  from unnest(event_slot, event_kind, event_task) as told(slot, kind, task_id)
                 where told.kind = 'node.started'
                   and not exists (select from events e
                                    where e.run_id = runs[told.slot] and e.task_id = told.task_id
                                      and e.kind = 'node.started')
                 group by 1) as begun
         where b.budget_id = begun.run_id;
    end if;

    -- Events, each chained to the one before it. One of a question is written only if that was asked.
    if cardinality(event_slot) > 0 then
        event_seq := array_fill(null::bigint, array[cardinality(event_slot)]);
        event_hash := array_fill(null::bytea, array[cardinality(event_slot)]);
        for n in 1 .. cardinality(event_slot) loop
            continue when event_question[n] is not null and event_question[n] <> all (coalesce(asked, '{}'));
            slot := event_slot[n];
            seqs[slot] := seqs[slot] + 1;
            event_seq[n] := seqs[slot];
            event_trace[n] := coalesce(event_trace[n], split_part(traces[slot], '-', 2));
            event_span[n] := coalesce(event_span[n], split_part(traces[slot], '-', 3));
            hashes[slot] := event_link_v1(null, hashes[slot], event_content_v1(
                runs[slot], seqs[slot], committed_at, event_attempt[n], event_kind[n], event_node[n], event_task[n],
                event_call[n], event_trace[n], event_span[n], event_payload[n]));
            event_hash[n] := hashes[slot];
        end loop;
        insert into events (run_id, seq, tenant_id, at, attempt, kind, node, task_id, call_id, trace_id, span_id,
                            payload, hash)
        select runs[e.slot], e.seq, of_tenants[e.slot], committed_at, e.attempt, e.kind, e.node, e.task_id, e.call_id,
               e.trace_id, e.span_id, e.payload, e.hash
          from unnest(event_slot, event_seq, event_attempt, event_kind, event_node, event_task, event_call,
                      event_trace, event_span, event_payload, event_hash)
               as e(slot, seq, attempt, kind, node, task_id, call_id, trace_id, span_id, payload, hash)
         where e.seq is not null;
        update run_heads h
           set seq = last.seq, hash = last.hash, last_flush = last.flush
          from unnest(runs, seqs, hashes, flushes) as last(run_id, seq, hash, flush)
         where h.run_id = last.run_id;
    end if;
end $$;
