-- Each time that events are taken out, an event says up to which one, and not only once all that were due are gone: else
-- whoever moves an anchor and deletes what is before it leaves a log that looks like one that was pruned so far.

-- Take the oldest events out of runs of a tenant that have ended, `at_most` of them, as far as the terms say: up to the
-- event of the end, which stays. What is left is chained to the anchor. What does not follow from its anchor is evidence,
-- and stays. Returns what each run has lost.
create or replace function prune_events_v1(of_tenant text, at_most bigint)
    returns table (pruned_run uuid, pruned_events bigint)
    language plpgsql security definer as $$
declare
    days integer;
    due  record;
    last record;
    note record;
    room bigint := at_most;
begin
    if not coalesce(of_tenant = any(string_to_array(current_setting('holdfast.tenants', true), ',')), false) then
        raise exception 'this session does not work for tenant %', of_tenant using errcode = 'insufficient_privilege';
    end if;
    select (t.retention ->> 'events_days')::integer into days
      from tenants t
     where t.tenant_id = of_tenant and not t.legal_hold;
    if days is null then
        return;
    end if;
    for due in
        select r.run_id, r.attempt, h.anchor_seq, h.anchor_hash,
               (select e.seq - 1 from events e
                 where e.run_id = r.run_id and e.kind = 'run.' || r.status
                 order by e.seq desc limit 1) as through
          from runs r
          join run_heads h on h.run_id = r.run_id
         where r.tenant_id = of_tenant and r.finished_at <= clock_timestamp() - make_interval(days => days)
           and not r.events_pruned and r.legal_hold is null
         order by r.finished_at
         limit least(at_most, 1000)
           for no key update of r, h skip locked
    loop
        exit when room <= 0;
        select max(e.seq) as seq, count(*) as rows, (array_agg(e.hash order by e.seq desc))[1] as hash,
               event_chain_v1(due.anchor_hash, event_content_v1(
                   e.run_id, e.seq, e.at, e.attempt, e.kind, e.node, e.task_id, e.call_id, e.trace_id, e.span_id,
                   e.payload) order by e.seq) as due_hash
          into last
          from events e
         where e.run_id = due.run_id and e.seq <= least(due.through, due.anchor_seq + room);
        continue when last.rows is distinct from last.seq - due.anchor_seq or last.hash is distinct from last.due_hash;
        delete from events e where e.run_id = due.run_id and e.seq <= last.seq;
        update run_heads h set anchor_seq = last.seq, anchor_hash = last.hash where h.run_id = due.run_id;
        room := room - last.rows;
        pruned_run := due.run_id;
        pruned_events := last.rows;
        return next;
        select h.seq + 1 as seq, clock_timestamp() as at, h.hash as previous,
               split_part(h.trace_parent, '-', 2) as trace_id, split_part(h.trace_parent, '-', 3) as span_id,
               convert_to(format('{"days":%s,"events":%s}', days, last.seq), 'UTF8') as payload
          into note
          from run_heads h
         where h.run_id = due.run_id;
        update run_heads h
           set seq = note.seq,
               hash = event_link_v1(null, note.previous, event_content_v1(
                   due.run_id, note.seq, note.at, due.attempt, 'run.pruned', null, null, null, note.trace_id,
                   note.span_id, note.payload))
         where h.run_id = due.run_id;
        insert into events (run_id, seq, tenant_id, at, attempt, kind, trace_id, span_id, payload, hash)
        select due.run_id, note.seq, of_tenant, note.at, due.attempt, 'run.pruned', note.trace_id, note.span_id,
               note.payload, h.hash
          from run_heads h
         where h.run_id = due.run_id;
        continue when last.seq < due.through;
        update runs r set events_pruned = true where r.run_id = due.run_id;
    end loop;
end $$;

-- Nothing that the caller makes, a temporary table say, may stand for what the function means.
do $$
begin
    execute format('alter function prune_events_v1 set search_path = %I, pg_temp', current_schema());
end $$;
