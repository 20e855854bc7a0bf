-- Who is there to work and what they serve, so that a run that nobody can serve is seen from anywhere. No tenant's data.
create table workers (
    worker_id  text primary key,
    serves     jsonb not null,                    -- graphs by name and version, with what each declares compatible
    since      timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null
);
grant select, insert, update, delete on workers to holdfast_engine;

-- A worker that goes on with a range of versions asks which there are: the index is skipped through, one row a version.
create index open_versions on runs (graph_name, graph_version) where status in ('queued', 'running') and not attached;
