-- LangGraph's checkpoint tables, as langgraph-checkpoint-postgres 3.2 makes them, with the tenant of each row.
-- Its saver names no tenant: the column's default is the one tenant that the session works for.

create table checkpoint_migrations (v integer primary key);
insert into checkpoint_migrations (v) select generate_series(0, 9);    -- so that LangGraph's own setup() finds it done

create table checkpoints (
    thread_id            text not null,
    checkpoint_ns        text not null default '',
    checkpoint_id        text not null,
    parent_checkpoint_id text,
    type                 text,
    checkpoint           jsonb not null,
    metadata             jsonb not null default '{}',
    tenant_id            text not null default nullif(current_setting('holdfast.tenants', true), ''),
    primary key (thread_id, checkpoint_ns, checkpoint_id)
);
create index checkpoints_thread_id_idx on checkpoints (thread_id);

create table checkpoint_blobs (
    thread_id     text not null,
    checkpoint_ns text not null default '',
    channel       text not null,
    version       text not null,
    type          text not null,
    blob          bytea,
    tenant_id     text not null default nullif(current_setting('holdfast.tenants', true), ''),
    primary key (thread_id, checkpoint_ns, channel, version)
);
create index checkpoint_blobs_thread_id_idx on checkpoint_blobs (thread_id);

create table checkpoint_writes (
    thread_id     text not null,
    checkpoint_ns text not null default '',
    checkpoint_id text not null,
    task_id       text not null,
    idx           integer not null,
    channel       text not null,
    type          text,
    blob          bytea not null,
    task_path     text not null default '',
    tenant_id     text not null default nullif(current_setting('holdfast.tenants', true), ''),
    primary key (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
);
create index checkpoint_writes_thread_id_idx on checkpoint_writes (thread_id);

do $$
declare name text;
begin
    foreach name in array array['checkpoints', 'checkpoint_blobs', 'checkpoint_writes']
    loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format(
            'create policy of_the_sessions_tenants on %I to holdfast_app using (tenant_id = any('
            '(select string_to_array(current_setting(''holdfast.tenants'', true), '',''))::text[]))', name);
    end loop;
end $$;

grant select, insert, update, delete on checkpoints, checkpoint_blobs, checkpoint_writes to holdfast_app;
grant select on checkpoint_migrations to holdfast_app;
