-- name: wait_for_our_turn
-- One upgrade of a database at a time; whoever waited finds the work done. The number is arbitrary, and ours.
select pg_advisory_lock(7218540367213000)

-- name: make_table
-- Where applied migrations are written down.
create table if not exists holdfast_migrations (
    number     integer primary key,
    name       text not null,
    checksum   text not null,
    applied_at timestamptz not null default clock_timestamp()
)

-- name: let_the_app_read
-- The application compares the schema's version with its own when it starts.
grant select on holdfast_migrations to holdfast_app

-- name: has_table
-- Has this database ever been upgraded?
select to_regclass('holdfast_migrations') is not null as present

-- name: applied
-- The migrations that were applied, oldest first.
select number, name, checksum from holdfast_migrations order by number

-- name: write_down
-- This migration is applied.
insert into holdfast_migrations (number, name, checksum) values (%(number)s, %(name)s, %(checksum)s)

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
-- The role that claims, renews and reaps across tenants, with column grants and no payload.
create role holdfast_engine nologin

-- name: create_app
-- The role that the application logs in as; row-level security holds for it.
create role holdfast_app login noinherit nobypassrls

-- name: let_the_app_become_engine
-- The application may become the engine by saying so, and never has its rights by itself.
grant holdfast_engine to holdfast_app with inherit false, set true
