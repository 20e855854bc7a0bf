-- What a tenant's terms let go of, and what is held. Checkpoints are deleted by the application itself, events by one
-- function alone: it asks the terms and the holds again, moves the anchor of the run's chain, and writes down what it did.

alter table tenants              -- beside the terms, in which the version before this one would not know them
    add column retention  jsonb not null default '{}',
    add column legal_hold boolean not null default false;
alter table runs
    add column legal_hold       jsonb,                          -- who holds the run, why, and since when
    add column events_pruned    boolean not null default false,
    add column checkpoints_kept text not null default 'all',    -- of its thread, as far as retention has gone
    add constraint checkpoints_are_kept_in_a_known_way check (checkpoints_kept in ('all', 'latest', 'none'));
create index runs_with_events_to_prune on runs (tenant_id, finished_at) where finished_at is not null and not events_pruned;
create index runs_with_checkpoints_to_prune on runs (tenant_id, finished_at)
    where finished_at is not null and checkpoints_kept <> 'none';
create index runs_of_a_thread on runs (thread_id);
create index runs_that_are_held on runs ((thread_id::text)) where legal_hold is not null;

-- A hold holds whoever deletes: the application may delete checkpoints, LangGraph's savers do.
create function refuse_to_delete_what_is_held() returns trigger language plpgsql as $$
begin
    if exists (select from (select distinct thread_id, tenant_id from gone) g
                where exists (select from runs r where r.thread_id::text = g.thread_id and r.legal_hold is not null)
                   or exists (select from tenants t
                               where t.tenant_id = g.tenant_id and t.legal_hold))
    then
        raise exception 'checkpoints that are held are not deleted; lift the hold first'
            using errcode = 'restrict_violation', constraint = 'what_is_held_stays';
    end if;
    return null;
end $$;
create trigger what_is_held_stays after delete on checkpoints
    referencing old table as gone for each statement execute function refuse_to_delete_what_is_held();
create trigger what_is_held_stays after delete on checkpoint_blobs
    referencing old table as gone for each statement execute function refuse_to_delete_what_is_held();
create trigger what_is_held_stays after delete on checkpoint_writes
    referencing old table as gone for each statement execute function refuse_to_delete_what_is_held();

-- The owner, as whom the function works, is under row-level security too: it sees the tenants that the session works for.
do $$
declare name text;
begin
    foreach name in array array['tenants', 'runs', 'run_heads', 'events']
    loop
        execute format(
            'create policy the_owner_prunes on %I to current_user using (tenant_id = any('
            '(select string_to_array(current_setting(''holdfast.tenants'', true), '',''))::text[]))', name);
    end loop;
end $$;

-- Take the oldest events out of runs of a tenant that have ended, `at_most` of them, as far as the terms say: up to the
-- event of the end, which stays. What is left is chained to the anchor. What does not follow from its anchor is evidence,
-- and stays. Returns what each run has lost.
create function prune_events_v1(of_tenant text, at_most bigint)
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
        continue when last.seq < due.through;
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
        update runs r set events_pruned = true where r.run_id = due.run_id;
    end loop;
end $$;

-- Nothing that the caller makes, a temporary table say, may stand for what the function means.
do $$
begin
    execute format('alter function prune_events_v1 set search_path = %I, pg_temp', current_schema());
end $$;
revoke all on function prune_events_v1 from public;
grant execute on function prune_events_v1 to holdfast_app;
