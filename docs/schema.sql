-- The schema after all migrations of checkpoints/migrations, where its reasons stand, in PostgreSQL 18's words.
-- Written by `make schema`.

create table applied_migrations (
    number integer not null,
    phase text not null,
    name text not null,
    checksum text not null,
    applied_at timestamp with time zone default clock_timestamp() not null,
    constraint applied_migrations_pkey PRIMARY KEY (number, phase),
    constraint a_migration_is_of_a_known_phase CHECK (phase = ANY (ARRAY['pre'::text, 'post'::text]))
);
grant select on applied_migrations to holdfast_app;

create table tenants (
    tenant_id text not null,
    terms jsonb not null,
    budget_id uuid not null,
    updated_at timestamp with time zone default now() not null,
    retention jsonb default '{}'::jsonb not null,
    legal_hold boolean default false not null,
    constraint tenants_pkey PRIMARY KEY (tenant_id),
    constraint tenants_budget_id_key UNIQUE (budget_id)
);
alter table tenants enable row level security;
alter table tenants force row level security;
create policy of_the_sessions_tenants on tenants for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
create policy the_engine_sees_all on tenants for all to holdfast_engine using (true);
create policy the_owner_prunes on tenants for all to holdfast_owner using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
grant insert, select, update on tenants to holdfast_app;
grant select (tenant_id) on tenants to holdfast_engine;

create table threads (
    thread_id uuid not null,
    tenant_id text not null,
    thread_key text not null,
    created_at timestamp with time zone default now() not null,
    fork text default ''::text not null,
    constraint threads_pkey PRIMARY KEY (thread_id),
    constraint a_tenant_names_a_thread_once UNIQUE (tenant_id, thread_key),
    constraint threads_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants(tenant_id)
);
alter table threads enable row level security;
alter table threads force row level security;
create policy of_the_sessions_tenants on threads for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
grant insert, select, update on threads to holdfast_app;

create table runs (
    run_id uuid not null,
    tenant_id text not null,
    thread_id uuid not null,
    graph_name text not null,
    graph_version text not null,
    status text not null,
    principal jsonb not null,
    input bytea,
    input_type text not null,
    request_digest text not null,
    context jsonb,
    limits jsonb not null,
    deadline_at timestamp with time zone,
    remaining_ms bigint,
    epoch bigint default 0 not null,
    attempt integer default 0 not null,
    takeovers integer default 0 not null,
    parked boolean default false not null,
    max_attempts integer not null,
    output jsonb,
    next_action text,
    cause jsonb,
    cancel_requested jsonb,
    trace_parent text,
    attached boolean default false not null,
    created_at timestamp with time zone default clock_timestamp() not null,
    started_at timestamp with time zone,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone,
    forked_from uuid,
    forked_at text,
    resumed_from uuid,
    legal_hold jsonb,
    events_pruned boolean default false not null,
    checkpoints_kept text default 'all'::text not null,
    contents_pruned_at timestamp with time zone,
    constraint runs_pkey PRIMARY KEY (run_id),
    constraint a_clock_runs_or_stands CHECK (deadline_at IS NULL OR remaining_ms IS NULL),
    constraint a_failed_run_has_a_cause CHECK (status <> 'failed'::text OR cause IS NOT NULL),
    constraint a_fork_names_its_checkpoint CHECK ((forked_from IS NULL) = (forked_at IS NULL)),
    constraint a_run_has_a_known_status CHECK (status = ANY (ARRAY['queued'::text, 'running'::text, 'interrupted'::text, 'completed'::text, 'failed'::text, 'cancelled'::text])),
    constraint a_run_has_its_contents_until_they_are_pruned CHECK ((contents_pruned_at IS NULL) = (input IS NOT NULL) AND (contents_pruned_at IS NULL OR finished_at IS NOT NULL AND context IS NULL AND output IS NULL)),
    constraint a_run_has_one_origin CHECK (forked_from IS NULL OR resumed_from IS NULL),
    constraint a_run_that_ended_says_when CHECK ((finished_at IS NOT NULL) = (status = ANY (ARRAY['completed'::text, 'failed'::text, 'cancelled'::text]))),
    constraint checkpoints_are_kept_in_a_known_way CHECK (checkpoints_kept = ANY (ARRAY['all'::text, 'latest'::text, 'none'::text])),
    constraint runs_forked_from_fkey FOREIGN KEY (forked_from) REFERENCES runs(run_id),
    constraint runs_resumed_from_fkey FOREIGN KEY (resumed_from) REFERENCES runs(run_id),
    constraint runs_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants(tenant_id),
    constraint runs_thread_id_fkey FOREIGN KEY (thread_id) REFERENCES threads(thread_id)
);
CREATE UNIQUE INDEX a_run_is_resumed_once ON runs USING btree (resumed_from) WHERE resumed_from IS NOT NULL;
CREATE UNIQUE INDEX one_running_run_per_thread ON runs USING btree (thread_id) WHERE status = 'running'::text AND NOT attached;
CREATE INDEX open_versions ON runs USING btree (graph_name, graph_version) WHERE (status = ANY (ARRAY['queued'::text, 'running'::text])) AND NOT attached;
CREATE INDEX runs_in_a_tenants_queue ON runs USING btree (tenant_id) WHERE status = 'queued'::text;
CREATE INDEX runs_of_a_tenant ON runs USING btree (tenant_id, created_at DESC);
CREATE INDEX runs_of_a_thread ON runs USING btree (thread_id);
CREATE INDEX runs_open_on_a_thread ON runs USING btree (thread_id, created_at, run_id) WHERE status = ANY (ARRAY['queued'::text, 'running'::text, 'interrupted'::text]);
CREATE INDEX runs_that_are_held ON runs USING btree ((thread_id::text)) WHERE legal_hold IS NOT NULL;
CREATE INDEX runs_to_claim ON runs USING btree (created_at, run_id) WHERE status = ANY (ARRAY['queued'::text, 'running'::text]);
CREATE INDEX runs_with_checkpoints_to_prune ON runs USING btree (tenant_id, finished_at) WHERE finished_at IS NOT NULL AND checkpoints_kept <> 'none'::text;
CREATE INDEX runs_with_contents_to_prune ON runs USING btree (tenant_id, finished_at) WHERE finished_at IS NOT NULL AND contents_pruned_at IS NULL;
CREATE INDEX runs_with_events_to_prune ON runs USING btree (tenant_id, finished_at) WHERE finished_at IS NOT NULL AND NOT events_pruned;
alter table runs enable row level security;
alter table runs force row level security;
create policy of_the_sessions_tenants on runs for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
create policy the_engine_sees_all on runs for all to holdfast_engine using (true);
create policy the_owner_prunes on runs for all to holdfast_owner using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
grant insert, select, update on runs to holdfast_app;
grant select (run_id, tenant_id, thread_id, graph_name, graph_version, status, deadline_at, remaining_ms, epoch, attempt, takeovers, parked, max_attempts, cancel_requested, attached, created_at, started_at), update (status, epoch, attempt, takeovers, parked, started_at, claimed_at) on runs to holdfast_engine;

create table leases (
    run_id uuid not null,
    tenant_id text not null,
    epoch bigint not null,
    worker_id text not null,
    heartbeat_at timestamp with time zone default clock_timestamp() not null,
    expires_at timestamp with time zone not null,
    constraint leases_pkey PRIMARY KEY (run_id),
    constraint a_lease_has_one_epoch UNIQUE (run_id, epoch),
    constraint leases_run_id_fkey FOREIGN KEY (run_id) REFERENCES runs(run_id)
) with (fillfactor=50);
alter table leases enable row level security;
alter table leases force row level security;
create policy of_the_sessions_tenants on leases for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
create policy the_engine_sees_all on leases for all to holdfast_engine using (true);
grant delete, insert, select, update on leases to holdfast_app;
grant delete, insert, select, update on leases to holdfast_engine;

create table budgets (
    budget_id uuid not null,
    tenant_id text not null,
    kind text not null,
    thread_id uuid,
    run_id uuid,
    parent_id uuid,
    share_key text,
    max_model_calls bigint,
    max_tool_calls bigint,
    max_tokens bigint,
    max_cost bigint,
    max_steps bigint,
    spent_model_calls bigint default 0 not null,
    spent_tool_calls bigint default 0 not null,
    spent_tokens bigint default 0 not null,
    spent_cost bigint default 0 not null,
    spent_steps bigint default 0 not null,
    spent_unpriced bigint default 0 not null,
    reserved_model_calls bigint default 0 not null,
    reserved_tool_calls bigint default 0 not null,
    reserved_tokens bigint default 0 not null,
    reserved_cost bigint default 0 not null,
    inherited jsonb,
    constraint budgets_pkey PRIMARY KEY (budget_id),
    constraint a_share_is_opened_once UNIQUE (thread_id, share_key),
    constraint a_budget_is_of_a_known_kind CHECK (kind = ANY (ARRAY['tenant'::text, 'run'::text, 'specialist'::text])),
    constraint nothing_is_reserved_below_zero CHECK (reserved_model_calls >= 0 AND reserved_tool_calls >= 0 AND reserved_tokens >= 0 AND reserved_cost >= 0),
    constraint budgets_parent_id_fkey FOREIGN KEY (parent_id) REFERENCES budgets(budget_id),
    constraint budgets_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants(tenant_id)
) with (fillfactor=70);
alter table budgets enable row level security;
alter table budgets force row level security;
create policy of_the_sessions_tenants on budgets for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
grant insert, select, update on budgets to holdfast_app;

create table calls (
    call_id uuid not null,
    tenant_id text not null,
    run_id uuid not null,
    thread_id uuid not null,
    identity_key text not null,
    checkpoint_ns text not null,
    task_id text not null,
    node text not null,
    checkpoint_id text,
    kind text not null,
    name text not null,
    occurrence integer not null,
    fork text not null,
    agent_name text not null,
    request_digest text not null,
    request bytea,
    effect text not null,
    idempotent boolean not null,
    status text not null,
    budgets uuid[] not null,
    reserved jsonb not null,
    used jsonb,
    earlier jsonb default '[]'::jsonb not null,
    response bytea,
    error_type text,
    error_message text,
    error_facts jsonb,
    sends integer default 1 not null,
    grant_id uuid,
    model text,
    prompt_version text,
    policy_version text not null,
    timeout_ms bigint not null,
    latency_ms bigint,
    epoch bigint not null,
    opened_at timestamp with time zone default clock_timestamp() not null,
    closed_at timestamp with time zone,
    sent_by uuid,
    contents_pruned_at timestamp with time zone,
    constraint calls_pkey PRIMARY KEY (call_id),
    constraint a_call_is_recorded_once UNIQUE (thread_id, identity_key),
    constraint a_call_has_a_known_status CHECK (status = ANY (ARRAY['open'::text, 'returned'::text, 'failed'::text, 'unknown'::text])),
    constraint a_call_has_its_contents_until_they_are_pruned CHECK ((contents_pruned_at IS NULL) = (request IS NOT NULL) AND (contents_pruned_at IS NULL OR used IS NOT NULL AND response IS NULL AND error_message IS NULL AND error_facts IS NULL)),
    constraint a_call_is_of_a_known_kind CHECK (kind = ANY (ARRAY['model'::text, 'tool'::text])),
    constraint an_outcome_is_whole CHECK ((status = ANY (ARRAY['open'::text, 'unknown'::text])) = (used IS NULL)),
    constraint calls_sent_by_fkey FOREIGN KEY (sent_by) REFERENCES runs(run_id)
) with (fillfactor=40);
CREATE UNIQUE INDEX a_grant_is_used_once ON calls USING btree (grant_id) WHERE grant_id IS NOT NULL;
CREATE INDEX calls_of_a_run ON calls USING btree (run_id, opened_at);
CREATE INDEX calls_of_a_task ON calls USING btree (thread_id, task_id);
alter table calls enable row level security;
alter table calls force row level security;
create policy of_the_sessions_tenants on calls for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
grant insert, select, update on calls to holdfast_app;

create table approvals (
    approval_id uuid not null,
    tenant_id text not null,
    run_id uuid not null,
    thread_id uuid not null,
    interrupt_id text not null,
    kind text not null,
    status text default 'pending'::text not null,
    node text not null,
    task_id text not null,
    payload jsonb,
    allowed text[] not null,
    tool_name text,
    args jsonb,
    args_digest text,
    granted_digest text,
    policy_version text,
    rule text,
    call_id uuid,
    identity_key text,
    created_at timestamp with time zone default clock_timestamp() not null,
    expires_at timestamp with time zone not null,
    decided_at timestamp with time zone,
    decided_by text,
    decision jsonb,
    used_at timestamp with time zone,
    contents_pruned_at timestamp with time zone,
    constraint approvals_pkey PRIMARY KEY (approval_id),
    constraint an_interrupt_is_asked_once UNIQUE (thread_id, interrupt_id),
    constraint a_decision_has_a_person CHECK ((decided_by IS NOT NULL) = (status = ANY (ARRAY['approved'::text, 'edited'::text, 'rejected'::text, 'responded'::text]))),
    constraint an_approval_has_a_known_status CHECK (status = ANY (ARRAY['pending'::text, 'approved'::text, 'edited'::text, 'rejected'::text, 'responded'::text, 'expired'::text, 'withdrawn'::text])),
    constraint an_approval_has_its_contents_until_they_are_pruned CHECK ((contents_pruned_at IS NULL) = (payload IS NOT NULL) AND (contents_pruned_at IS NULL OR status <> 'pending'::text AND args IS NULL AND decision IS NULL)),
    constraint only_a_grant_is_used CHECK (used_at IS NULL OR (status = ANY (ARRAY['approved'::text, 'edited'::text]))),
    constraint approvals_run_id_fkey FOREIGN KEY (run_id) REFERENCES runs(run_id),
    constraint approvals_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants(tenant_id),
    constraint approvals_thread_id_fkey FOREIGN KEY (thread_id) REFERENCES threads(thread_id)
);
CREATE INDEX approvals_of_a_call ON approvals USING btree (thread_id, identity_key) WHERE identity_key IS NOT NULL;
CREATE INDEX approvals_of_a_run ON approvals USING btree (run_id);
CREATE INDEX approvals_pending ON approvals USING btree (tenant_id, created_at) WHERE status = 'pending'::text;
CREATE INDEX approvals_to_expire ON approvals USING btree (expires_at) WHERE status = 'pending'::text;
alter table approvals enable row level security;
alter table approvals force row level security;
create policy of_the_sessions_tenants on approvals for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
create policy the_engine_sees_all on approvals for all to holdfast_engine using (true);
grant insert, select, update on approvals to holdfast_app;
grant select (approval_id, tenant_id, run_id, status, expires_at) on approvals to holdfast_engine;

create table run_heads (
    run_id uuid not null,
    tenant_id text not null,
    seq bigint not null,
    trace_parent text,
    hash bytea default decode(repeat('00'::text, 32), 'hex'::text) not null,
    anchor_seq bigint default 0 not null,
    anchor_hash bytea default decode(repeat('00'::text, 32), 'hex'::text) not null,
    last_flush text,
    constraint run_heads_pkey PRIMARY KEY (run_id),
    constraint run_heads_run_id_fkey FOREIGN KEY (run_id) REFERENCES runs(run_id)
) with (fillfactor=50);
alter table run_heads enable row level security;
alter table run_heads force row level security;
create policy of_the_sessions_tenants on run_heads for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
create policy the_engine_sees_all on run_heads for all to holdfast_engine using (true);
create policy the_owner_prunes on run_heads for all to holdfast_owner using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
grant insert, select, update on run_heads to holdfast_app;
grant insert, select, update on run_heads to holdfast_engine;

create table events (
    run_id uuid not null,
    seq bigint not null,
    tenant_id text not null,
    at timestamp with time zone default clock_timestamp() not null,
    attempt integer not null,
    kind text not null,
    node text,
    task_id text,
    call_id uuid,
    trace_id text,
    span_id text,
    payload bytea not null,
    hash bytea not null,
    constraint events_pkey PRIMARY KEY (run_id, seq)
);
CREATE INDEX steps_of_a_run ON events USING btree (run_id, task_id) WHERE kind = 'node.started'::text;
alter table events enable row level security;
alter table events force row level security;
create policy of_the_sessions_tenants on events for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
create policy the_engine_sees_all on events for all to holdfast_engine using (true);
create policy the_owner_prunes on events for all to holdfast_owner using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
grant insert, select on events to holdfast_app;
grant insert on events to holdfast_engine;

create table checkpoint_migrations (
    v integer not null,
    constraint checkpoint_migrations_pkey PRIMARY KEY (v)
);
grant select on checkpoint_migrations to holdfast_app;

create table checkpoints (
    thread_id text not null,
    checkpoint_ns text default ''::text not null,
    checkpoint_id text not null,
    parent_checkpoint_id text,
    type text,
    checkpoint jsonb not null,
    metadata jsonb default '{}'::jsonb not null,
    tenant_id text default NULLIF(current_setting('holdfast.tenants'::text, true), ''::text) not null,
    constraint checkpoints_pkey PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
);
alter table checkpoints enable row level security;
alter table checkpoints force row level security;
create policy of_the_sessions_tenants on checkpoints for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
grant delete, insert, select, update on checkpoints to holdfast_app;

create table checkpoint_blobs (
    thread_id text not null,
    checkpoint_ns text default ''::text not null,
    channel text not null,
    version text not null,
    type text not null,
    blob bytea,
    tenant_id text default NULLIF(current_setting('holdfast.tenants'::text, true), ''::text) not null,
    constraint checkpoint_blobs_pkey PRIMARY KEY (thread_id, checkpoint_ns, channel, version)
);
alter table checkpoint_blobs enable row level security;
alter table checkpoint_blobs force row level security;
create policy of_the_sessions_tenants on checkpoint_blobs for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
grant delete, insert, select, update on checkpoint_blobs to holdfast_app;

create table checkpoint_writes (
    thread_id text not null,
    checkpoint_ns text default ''::text not null,
    checkpoint_id text not null,
    task_id text not null,
    idx integer not null,
    channel text not null,
    type text,
    blob bytea not null,
    task_path text default ''::text not null,
    tenant_id text default NULLIF(current_setting('holdfast.tenants'::text, true), ''::text) not null,
    constraint checkpoint_writes_pkey PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
);
alter table checkpoint_writes enable row level security;
alter table checkpoint_writes force row level security;
create policy of_the_sessions_tenants on checkpoint_writes for all to holdfast_app using ((tenant_id = ANY (( SELECT string_to_array(current_setting('holdfast.tenants'::text, true), ','::text) AS string_to_array)::text[])));
grant delete, insert, select, update on checkpoint_writes to holdfast_app;

create table encryption_keys (
    key_id text not null,
    names_key bytea not null,
    complete boolean not null,
    added_at timestamp with time zone default clock_timestamp() not null,
    constraint encryption_keys_pkey PRIMARY KEY (key_id)
);
grant delete, insert, select, update on encryption_keys to holdfast_app;

create table workers (
    worker_id text not null,
    serves jsonb not null,
    since timestamp with time zone default clock_timestamp() not null,
    expires_at timestamp with time zone not null,
    constraint workers_pkey PRIMARY KEY (worker_id)
);
grant delete, insert, select, update on workers to holdfast_engine;

CREATE OR REPLACE FUNCTION event_content_v1(run_id uuid, seq bigint, at timestamp with time zone, attempt integer, kind text, node text, task_id text, call_id uuid, trace_id text, span_id text, payload bytea)
 RETURNS bytea
 LANGUAGE sql
 STABLE PARALLEL SAFE
RETURN (((((((((((((((('\x00000010'::bytea || uuid_send(run_id)) || '\x00000008'::bytea) || int8send(seq)) || '\x00000008'::bytea) || timestamptz_send(at)) || '\x00000004'::bytea) || int4send(attempt)) || int4send(octet_length(kind))) || convert_to(kind, 'UTF8'::name)) || COALESCE((int4send(octet_length(node)) || convert_to(node, 'UTF8'::name)), '\xffffffff'::bytea)) || COALESCE((int4send(octet_length(task_id)) || convert_to(task_id, 'UTF8'::name)), '\xffffffff'::bytea)) || COALESCE(('\x00000010'::bytea || uuid_send(call_id)), '\xffffffff'::bytea)) || COALESCE((int4send(octet_length(trace_id)) || convert_to(trace_id, 'UTF8'::name)), '\xffffffff'::bytea)) || COALESCE((int4send(octet_length(span_id)) || convert_to(span_id, 'UTF8'::name)), '\xffffffff'::bytea)) || int4send(octet_length(payload))) || payload);

CREATE OR REPLACE FUNCTION event_link_v1(last bytea, before_the_first bytea, content bytea)
 RETURNS bytea
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
RETURN sha256((COALESCE(last, before_the_first) || content));

create aggregate event_chain_v1(before_the_first bytea, content bytea) (sfunc = event_link_v1, stype = bytea);

CREATE OR REPLACE FUNCTION refuse_to_delete_what_is_held()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
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
end $function$;

CREATE OR REPLACE FUNCTION prune_events_v1(of_tenant text, at_most bigint)
 RETURNS TABLE(pruned_run uuid, pruned_events bigint)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
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
end $function$;
revoke execute on function prune_events_v1(text,bigint) from public;
grant execute on function prune_events_v1(text,bigint) to holdfast_app;

CREATE OR REPLACE FUNCTION flush_v2(flushes text[], waits boolean, skips boolean, runs uuid[], epochs bigint[], of_tenants text[], blob_slot integer[], blob_thread text[], blob_namespace text[], blob_channel text[], blob_version text[], blob_type text[], blob_blob bytea[], put_slot integer[], put_thread text[], put_namespace text[], put_id text[], put_parent text[], put_checkpoint text[], put_metadata text[], add_slot integer[], add_thread text[], add_namespace text[], add_checkpoint text[], add_task text[], add_idx integer[], add_path text[], add_channel text[], add_type text[], add_blob bytea[], over_slot integer[], over_thread text[], over_namespace text[], over_checkpoint text[], over_task text[], over_idx integer[], over_path text[], over_channel text[], over_type text[], over_blob bytea[], event_slot integer[], event_attempt integer[], event_kind text[], event_node text[], event_task text[], event_call uuid[], event_trace text[], event_span text[], event_payload bytea[], event_question uuid[], question_slot integer[], question_doc text[], open_slot integer[], open_call uuid[], open_thread uuid[], open_key text[], open_namespace text[], open_task text[], open_node text[], open_checkpoint text[], open_kind text[], open_name text[], open_occurrence integer[], open_fork text[], open_agent text[], open_digest text[], open_request bytea[], open_effect text[], open_idempotent boolean[], open_budgets text[], open_reserved text[], open_model text[], open_prompt text[], open_policy text[], open_timeout bigint[], close_slot integer[], close_call uuid[], close_thread uuid[], close_budgets text[], close_status text[], close_used text[], close_response bytea[], close_error_type text[], close_error_message text[], close_error_facts text[], close_latency bigint[], moved_budget uuid[], moved_tenant text[], moved_opens bigint[], moved_unpriced bigint[], moved_asked bigint[], moved_held bigint[], moved_spent bigint[], OUT refused integer[], OUT lacking uuid[], OUT committed_at timestamp with time zone)
 RETURNS record
 LANGUAGE plpgsql
AS $function$
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
end $function$;

CREATE TRIGGER what_is_held_stays AFTER DELETE ON checkpoints REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_delete_what_is_held();

CREATE TRIGGER what_is_held_stays AFTER DELETE ON checkpoint_blobs REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_delete_what_is_held();

CREATE TRIGGER what_is_held_stays AFTER DELETE ON checkpoint_writes REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_delete_what_is_held();
