-- The house: tenants, threads, runs and their leases, the journal of calls, the ledger, approvals and events.
-- Run by the owner. LangGraph's own tables come in 0002, which has its tenant column and policies.

create table tenants (
    tenant_id  text primary key,
    terms      jsonb not null,
    budget_id  uuid not null unique,
    updated_at timestamptz not null default now()
);

create table threads (
    thread_id  uuid primary key,
    tenant_id  text not null references tenants,
    thread_key text not null,
    created_at timestamptz not null default now(),
    constraint a_tenant_names_a_thread_once unique (tenant_id, thread_key)
);

create table runs (
    run_id           uuid primary key,
    tenant_id        text not null references tenants,
    thread_id        uuid not null references threads,
    graph_name       text not null,
    graph_version    text not null,
    status           text not null,
    principal        jsonb not null,              -- the tenant context: user, roles, data scopes, policy version
    input            bytea not null,
    input_type       text not null,
    request_digest   text not null,
    context          jsonb,
    limits           jsonb not null,
    deadline_at      timestamptz,                 -- while the clock runs: the instant, by this database's clock
    remaining_ms     bigint,                      -- while it stands still: what was left
    epoch            bigint not null default 0,
    attempt          integer not null default 0,
    takeovers        integer not null default 0,  -- attempts in a row whose worker was lost
    parked           boolean not null default false,  -- the last attempt ended by parking the run for a person
    max_attempts     integer not null,
    output           jsonb,
    next_action      text,
    cause            jsonb,
    cancel_requested jsonb,
    trace_parent     text,
    attached         boolean not null default false,
    created_at       timestamptz not null default clock_timestamp(),
    started_at       timestamptz,
    claimed_at       timestamptz,                 -- when the current attempt began
    finished_at      timestamptz,
    constraint a_run_has_a_known_status
        check (status in ('queued', 'running', 'interrupted', 'completed', 'failed', 'cancelled')),
    constraint a_run_that_ended_says_when
        check ((finished_at is not null) = (status in ('completed', 'failed', 'cancelled'))),
    constraint a_failed_run_has_a_cause check (status <> 'failed' or cause is not null),
    constraint a_clock_runs_or_stands check (deadline_at is null or remaining_ms is null)
);
create unique index one_running_run_per_thread on runs (thread_id) where status = 'running' and not attached;
create index runs_to_claim on runs (created_at, run_id) where status in ('queued', 'running');
create index runs_open_on_a_thread on runs (thread_id, created_at, run_id)
    where status in ('queued', 'running', 'interrupted');
create index runs_in_a_tenants_queue on runs (tenant_id) where status = 'queued';
create index runs_of_a_tenant on runs (tenant_id, created_at desc);

create table leases (
    run_id       uuid primary key references runs,
    tenant_id    text not null,
    epoch        bigint not null,
    worker_id    text not null,
    heartbeat_at timestamptz not null default clock_timestamp(),
    expires_at   timestamptz not null,            -- not indexed, so that a heartbeat stays a heap-only update
    constraint a_lease_has_one_epoch unique (run_id, epoch)
) with (fillfactor = 50);

create table budgets (
    budget_id        uuid primary key,
    tenant_id        text not null references tenants,
    kind             text not null,
    thread_id        uuid,
    run_id           uuid,
    parent_id        uuid references budgets,
    share_key        text,
    max_model_calls  bigint,
    max_tool_calls   bigint,
    max_tokens       bigint,
    max_cost         bigint,                      -- micro-dollars, as every cost here
    max_steps        bigint,
    spent_model_calls bigint not null default 0,
    spent_tool_calls  bigint not null default 0,
    spent_tokens      bigint not null default 0,
    spent_cost        bigint not null default 0,
    spent_steps       bigint not null default 0,
    spent_unpriced    bigint not null default 0,  -- calls whose price is unknown: their cost is not in spent_cost
    reserved_model_calls bigint not null default 0,
    reserved_tool_calls  bigint not null default 0,
    reserved_tokens      bigint not null default 0,
    reserved_cost        bigint not null default 0,
    constraint a_budget_is_of_a_known_kind check (kind in ('tenant', 'run', 'specialist')),
    constraint nothing_is_reserved_below_zero check (
        reserved_model_calls >= 0 and reserved_tool_calls >= 0 and reserved_tokens >= 0 and reserved_cost >= 0),
    constraint a_share_is_opened_once unique (thread_id, share_key)
) with (fillfactor = 70);

create table calls (
    call_id         uuid primary key,
    tenant_id       text not null references tenants,
    run_id          uuid not null references runs,
    thread_id       uuid not null references threads,
    identity_key    text not null,
    checkpoint_ns   text not null,
    task_id         text not null,
    node            text not null,
    checkpoint_id   text,
    kind            text not null,
    name            text not null,
    occurrence      integer not null,
    fork            text not null,
    agent_name      text not null,
    request_digest  text not null,
    request         bytea not null,               -- canonical JSON (RFC 8785)
    effect          text not null,
    idempotent      boolean not null,
    status          text not null,
    budgets         uuid[] not null,
    reserved        jsonb not null,
    used            jsonb,                        -- by the last send, once it has an outcome
    earlier         jsonb not null default '[]',  -- the sends before it: budgets that paid, what was reserved and used
    response        bytea,
    error_type      text,
    error_message   text,
    error_facts     jsonb,
    sends           integer not null default 1,
    grant_id        uuid,
    model           text,
    prompt_version  text,
    policy_version  text not null,
    timeout_ms      bigint not null,
    latency_ms      bigint,
    epoch           bigint not null,              -- under which the intent was last opened
    opened_at       timestamptz not null default clock_timestamp(),
    closed_at       timestamptz,
    constraint a_call_is_recorded_once unique (thread_id, identity_key),
    constraint a_call_is_of_a_known_kind check (kind in ('model', 'tool')),
    constraint a_call_has_a_known_status check (status in ('open', 'returned', 'failed', 'unknown')),
    constraint an_outcome_is_whole check ((status in ('open', 'unknown')) = (used is null)),
    constraint a_grant_is_used_once unique (grant_id)
);
create index calls_of_a_run on calls (run_id, opened_at);
create index calls_of_a_task on calls (thread_id, task_id);

create table approvals (
    approval_id    uuid primary key,
    tenant_id      text not null references tenants,
    run_id         uuid not null references runs,
    thread_id      uuid not null references threads,
    interrupt_id   text not null,
    kind           text not null,
    status         text not null default 'pending',
    node           text not null,
    task_id        text not null,
    payload        jsonb not null,
    allowed        text[] not null,
    tool_name      text,
    args           jsonb,
    args_digest    text,
    granted_digest text,
    policy_version text,
    rule           text,
    call_id        uuid,
    identity_key   text,                          -- of the call that is asked for
    created_at     timestamptz not null default clock_timestamp(),
    expires_at     timestamptz not null,
    decided_at     timestamptz,
    decided_by     text,
    decision       jsonb,
    used_at        timestamptz,
    constraint an_interrupt_is_asked_once unique (thread_id, interrupt_id),
    constraint an_approval_has_a_known_status check (status in
        ('pending', 'approved', 'edited', 'rejected', 'responded', 'expired', 'withdrawn')),
    constraint a_decision_has_a_person check (
        (decided_by is not null) = (status in ('approved', 'edited', 'rejected', 'responded'))),
    constraint only_a_grant_is_used check (used_at is null or status in ('approved', 'edited'))
);
create index approvals_pending on approvals (tenant_id, created_at) where status = 'pending';
create index approvals_to_expire on approvals (expires_at) where status = 'pending';
create index approvals_of_a_run on approvals (run_id);
create index approvals_of_a_call on approvals (thread_id, identity_key) where identity_key is not null;

create table run_heads (
    run_id       uuid primary key references runs,
    tenant_id    text not null,
    seq          bigint not null,
    trace_parent text                            -- W3C; for events that are written outside any span, a claim's say
) with (fillfactor = 50);

create table events (
    run_id    uuid not null references runs,
    seq       bigint not null,
    tenant_id text not null,
    at        timestamptz not null default clock_timestamp(),
    attempt   integer not null,
    kind      text not null,
    node      text,
    task_id   text,
    call_id   uuid,
    trace_id  text,
    span_id   text,
    payload   bytea not null,                     -- canonical JSON (RFC 8785)
    primary key (run_id, seq)
);
create index steps_of_a_run on events (run_id, task_id) where kind = 'node.started';

-- One policy for every table: a row belongs to one of the tenants that the session works for. The set is parsed once.
do $$
declare name text;
begin
    foreach name in array array['tenants', 'threads', 'runs', 'leases', 'budgets', 'calls', 'approvals', 'run_heads', 'events']
    loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format(
            'create policy of_the_sessions_tenants on %I to holdfast_app using (tenant_id = any('
            '(select string_to_array(current_setting(''holdfast.tenants'', true), '',''))::text[]))', name);
    end loop;
end $$;

grant select, insert, update on tenants, threads, runs, budgets, calls, approvals, run_heads to holdfast_app;
grant select, insert, update, delete on leases to holdfast_app;
grant select, insert on events to holdfast_app;    -- append-only

-- The engine claims, renews and reaps across tenants. It sees columns that carry no payload, and nothing else.
create policy the_engine_sees_all on runs      to holdfast_engine using (true);
create policy the_engine_sees_all on leases    to holdfast_engine using (true);
create policy the_engine_sees_all on approvals to holdfast_engine using (true);
create policy the_engine_sees_all on tenants   to holdfast_engine using (true);
create policy the_engine_sees_all on run_heads to holdfast_engine using (true);
create policy the_engine_sees_all on events    to holdfast_engine using (true);
grant select (run_id, tenant_id, thread_id, graph_name, graph_version, status, deadline_at, remaining_ms, epoch, attempt,
              takeovers, parked, max_attempts, cancel_requested, attached, created_at, started_at) on runs to holdfast_engine;
grant update (status, epoch, attempt, takeovers, parked, started_at, claimed_at) on runs to holdfast_engine;
grant select, insert, update, delete on leases to holdfast_engine;
grant select (approval_id, tenant_id, run_id, status, expires_at) on approvals to holdfast_engine;
grant select (tenant_id) on tenants to holdfast_engine;
grant select, insert, update on run_heads to holdfast_engine;
grant insert on events to holdfast_engine;
