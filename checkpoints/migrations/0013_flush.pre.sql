-- What flush_v1 does, in less time, and the writes that replace others are numbered, too.
--
-- Rows are read from their columns by subscript: `unnest` of many arrays makes a table of each of them, which took longer
-- than to write the rows. What is joined to tables that stay comes from an `unnest` of its keys alone, which Postgres takes
-- to be short, and so looks each of them up.
--
-- All of a flush is written or nothing: who is in its way is named, and whoever sent it sends the rest again. Slots are
-- counted from 1 and name the run that a row is of.
create function flush_v2(
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
    close_slot integer[], close_call uuid[], close_thread uuid[], close_budgets text[], close_status text[],
    close_used text[], close_response bytea[], close_error_type text[], close_error_message text[],
    close_error_facts text[], close_latency bigint[],
    moved_budget uuid[], moved_tenant text[], moved_opens bigint[], moved_unpriced bigint[],
    moved_asked bigint[],        -- by budget, and of each of: model calls, tool calls, tokens, micro-dollars
    moved_held bigint[], moved_spent bigint[],
    out refused integer[],       -- the slots of runs that are not held under their epoch, or are locked by somebody
    out lacking uuid[],          -- the budgets that are locked by somebody, or have no room for all that is opened
    out committed_at timestamptz
) language plpgsql as $$
declare
    numbered constant boolean := cardinality(event_slot) > 0 or cardinality(over_slot) > 0;
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
              from unnest(runs) with ordinality as given(run_id, slot)
              join leases l using (run_id)
             where l.epoch = epochs[given.slot] and l.tenant_id = of_tenants[given.slot]
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

    -- What a late copy must not repeat is numbered by its run's head, which is locked last of all, as everywhere: events,
    -- and writes that replace others.
    if numbered then
        if waits then
            perform from run_heads where run_id = any (runs) for no key update;
        end if;
        select array_agg(headed.slot), array_agg(seq), array_agg(hash), array_agg(trace_parent),
               bool_or(left(last_flush, -16) = left(flush, -16) and right(last_flush, 16) >= right(flush, 16))
          into held, seqs, hashes, traces, sent_before
          from (select given.slot, flushes[given.slot] as flush, h.seq, h.hash, h.trace_parent, h.last_flush collate "C"
                  from unnest(runs) with ordinality as given(run_id, slot)
                  join run_heads h using (run_id)
                 order by given.slot
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
                  from unnest(moved_budget) with ordinality as moved(budget_id, m)
                  join budgets b using (budget_id)
                 where b.tenant_id = moved_tenant[m]
                   and (moved_opens[m] = 0
                        or (max_model_calls is null
                            or spent_model_calls + reserved_model_calls + moved_asked[m][1] <= max_model_calls)
                           and (max_tool_calls is null
                                or spent_tool_calls + reserved_tool_calls + moved_asked[m][2] <= max_tool_calls)
                           and (max_tokens is null or spent_tokens + reserved_tokens + moved_asked[m][3] <= max_tokens)
                           and (max_steps is null or spent_steps <= max_steps)
                           and (max_cost is null or spent_cost + reserved_cost + moved_asked[m][4] <= max_cost))
                   for no key update of b skip locked) as roomy;
        if cardinality(standing) is distinct from cardinality(moved_budget) then
            lacking := array(select id from unnest(moved_budget) as id where id <> all (coalesce(standing, '{}')));
            return;
        end if;
    end if;

    committed_at := clock_timestamp();

    if cardinality(blob_slot) > 0 then
        insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob, tenant_id)
        select blob_thread[n], blob_namespace[n], blob_channel[n], blob_version[n], blob_type[n], blob_blob[n],
               of_tenants[blob_slot[n]]
          from generate_subscripts(blob_slot, 1) as n
            on conflict (thread_id, checkpoint_ns, channel, version) do nothing;
    end if;
    -- A thread of another tenant cannot be taken over: no tenant is no row that policy admits.
    if cardinality(put_slot) > 0 then
        insert into checkpoints as c
               (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata, tenant_id)
        select put_thread[n], put_namespace[n], put_id[n], put_parent[n], put_checkpoint[n]::jsonb,
               put_metadata[n]::jsonb, of_tenants[put_slot[n]]
          from generate_subscripts(put_slot, 1) as n
            on conflict (thread_id, checkpoint_ns, checkpoint_id) do update
           set checkpoint = excluded.checkpoint, metadata = excluded.metadata,
               tenant_id = case when c.tenant_id = excluded.tenant_id then c.tenant_id end;
    end if;
    if cardinality(add_slot) > 0 then
        insert into checkpoint_writes
               (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob, tenant_id)
        select add_thread[n], add_namespace[n], add_checkpoint[n], add_task[n], add_idx[n], add_path[n],
               add_channel[n], add_type[n], add_blob[n], of_tenants[add_slot[n]]
          from generate_subscripts(add_slot, 1) as n
            on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) do nothing;
    end if;
    -- Writes of LangGraph's special channels, which replace those that are there when a task has run again.
    if cardinality(over_slot) > 0 then
        insert into checkpoint_writes as c
               (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, type, blob, tenant_id)
        select over_thread[n], over_namespace[n], over_checkpoint[n], over_task[n], over_idx[n], over_path[n],
               over_channel[n], over_type[n], over_blob[n], of_tenants[over_slot[n]]
          from generate_subscripts(over_slot, 1) as n
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
            select q.approval_id, of_tenants[question_slot[n]], runs[question_slot[n]], q.thread_id, q.interrupt_id,
                   q.kind, q.node, q.task_id, q.payload, q.allowed, q.tool_name, q.args, q.args_digest, q.policy_version,
                   q.rule, q.call_id, q.identity_key, committed_at,
                   committed_at + make_interval(secs => q.expires_in_seconds)
              from generate_subscripts(question_slot, 1) as n
             cross join lateral json_to_record(question_doc[n]::json)
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
        select open_call[n], of_tenants[open_slot[n]], runs[open_slot[n]], open_thread[n], open_key[n],
               open_namespace[n], open_task[n], open_node[n], open_checkpoint[n], open_kind[n], open_name[n],
               open_occurrence[n], open_fork[n], open_agent[n], open_digest[n], open_request[n], open_effect[n],
               open_idempotent[n], 'open', open_budgets[n]::uuid[], open_reserved[n]::jsonb, open_model[n],
               open_prompt[n], open_policy[n], open_timeout[n], epochs[open_slot[n]], committed_at
          from generate_subscripts(open_slot, 1) as n;
    end if;
    if cardinality(close_slot) > 0 then
        update calls c
           set status = close_status[n], used = close_used[n]::jsonb, response = close_response[n],
               error_type = close_error_type[n], error_message = close_error_message[n],
               error_facts = close_error_facts[n]::jsonb, latency_ms = close_latency[n], closed_at = committed_at
          from unnest(close_call) with ordinality as closed(call_id, n)
         where c.call_id = closed.call_id and c.tenant_id = of_tenants[close_slot[n]]
           and c.thread_id is not distinct from close_thread[n] and c.budgets = close_budgets[n]::uuid[]
           and c.status in ('open', 'unknown');
        get diagnostics number = row_count;
        if number <> cardinality(close_slot) then
            raise exception 'a call that was to be closed is not open' using errcode = 'check_violation';
        end if;
    end if;

    if cardinality(moved_budget) > 0 then
        update budgets b
           set reserved_model_calls = reserved_model_calls + moved_held[m][1],
               reserved_tool_calls = reserved_tool_calls + moved_held[m][2],
               reserved_tokens = reserved_tokens + moved_held[m][3],
               reserved_cost = reserved_cost + moved_held[m][4],
               spent_model_calls = spent_model_calls + moved_spent[m][1],
               spent_tool_calls = spent_tool_calls + moved_spent[m][2],
               spent_tokens = spent_tokens + moved_spent[m][3],
               spent_cost = spent_cost + moved_spent[m][4],
               spent_unpriced = spent_unpriced + moved_unpriced[m]
          from unnest(moved_budget) with ordinality as moved(budget_id, m)
         where b.budget_id = moved.budget_id;
    end if;

    -- A task that is run again is the same step.
    if 'node.started' = any (event_kind) then
        update budgets b
           set spent_steps = b.spent_steps + begun.steps
          from (select runs[event_slot[n]] as run_id, count(distinct event_task[n]) as steps
                  from generate_subscripts(event_slot, 1) as n
                 where event_kind[n] = 'node.started'
                   and not exists (select from events e
                                    where e.run_id = runs[event_slot[n]] and e.task_id = event_task[n]
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
        select runs[event_slot[n]], event_seq[n], of_tenants[event_slot[n]], committed_at, event_attempt[n],
               event_kind[n], event_node[n], event_task[n], event_call[n], event_trace[n], event_span[n],
               event_payload[n], event_hash[n]
          from generate_subscripts(event_slot, 1) as n
         where event_seq[n] is not null;
    end if;
    if numbered then
        update run_heads h
           set seq = seqs[given.slot], hash = hashes[given.slot], last_flush = flushes[given.slot]
          from unnest(runs) with ordinality as given(run_id, slot)
         where h.run_id = given.run_id;
    end if;
end $$;
