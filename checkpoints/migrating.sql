-- name: take_our_turn
-- One upgrade of a database at a time, to the end of its session; whoever waited finds the work done. The number is
-- arbitrary, and ours.
select pg_advisory_lock(7218540367213000)

-- name: make_list
-- Where applied migrations are written down.
create table if not exists applied_migrations (
    number     integer not null,
    phase      text not null,
    name       text not null,
    checksum   text not null,
    applied_at timestamptz not null default clock_timestamp(),
    primary key (number, phase),
    constraint a_migration_is_of_a_known_phase check (phase in ('pre', 'post'))
)

-- name: let_the_app_read
-- The application compares the schema's version with its own when it starts.
grant select on applied_migrations to holdfast_app

-- name: lists_present
-- Has this database ever been upgraded, and has it the list of the first version?
select to_regclass('applied_migrations') is not null as ours, to_regclass('holdfast_migrations') is not null as first

-- name: applied
-- The migrations that were applied, in the order of their numbers.
select number, phase, name, checksum, applied_at from applied_migrations order by number, phase desc

-- name: applied_by_the_first_version
-- What the first version applied, which knew no phases.
select number, 'pre' as phase, name, checksum, applied_at from holdfast_migrations order by number

-- name: take_over_the_first_list
-- What the first version applied counts as pre. Its own list stays as it is, so that it can still start.
insert into applied_migrations (number, phase, name, checksum, applied_at)
select number, 'pre', name, checksum, applied_at from holdfast_migrations
on conflict do nothing

-- name: write_down
-- This migration is applied.
insert into applied_migrations (number, phase, name, checksum)
values (%(number)s, %(phase)s, %(name)s, %(checksum)s)

-- name: connected
-- Who is connected to this database as the application, and the schema that its code knows, by the name that each session
-- gives of itself: the first version said none, and what a connection is for may follow (`heartbeat`).
select application_name as name, client_addr::text as address, array_agg(pid order by pid) as pids,
       coalesce(substring(application_name from '^holdfast schema (\d+)'), %(first)s::text)::integer as schema
from pg_stat_activity
where datname = current_database() and application_name ~ '^holdfast( schema \d+( .*)?)?$'
group by application_name, client_addr
order by application_name, client_addr

-- name: roles_present
-- Which of our roles does the server have, and may the application become the engine?
select
    exists (select from pg_roles where rolname = 'holdfast_engine') as engine,
    exists (select from pg_roles where rolname = 'holdfast_app') as app,
    exists (select from pg_auth_members m
              join pg_roles granted on granted.oid = m.roleid and granted.rolname = 'holdfast_engine'
              join pg_roles member on member.oid = m.member and member.rolname = 'holdfast_app'
             where m.set_option) as membership

-- name: create_engine
-- The role that claims, renews and expires across tenants, with column grants and no payload.
create role holdfast_engine nologin

-- name: create_app
-- The role that the application logs in as; row-level security holds for it.
create role holdfast_app login noinherit nobypassrls

-- name: let_the_app_become_engine
-- The application may become the engine by saying so, and never has its rights by itself.
grant holdfast_engine to holdfast_app with inherit false, set true
