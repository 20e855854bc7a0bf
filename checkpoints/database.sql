-- name: work_for_tenants
-- Let this transaction see and write the rows of these tenants (separated by commas), and of no others.
select set_config('holdfast.tenants', %(tenants)s, true)

-- name: describe_login
-- What the login may do, and what stands on the server: production runs as none of the mighty.
select
    current_user::text as login,
    current_setting('server_version_num')::integer as server_version,
    login.rolsuper as superuser,
    login.rolbypassrls as bypasses_rls,
    coalesce((select pg_has_role(current_user, app.oid, 'USAGE')
                from pg_roles app where app.rolname = 'holdfast_app'), false) as is_app,
    coalesce((select pg_has_role(current_user, engine.oid, 'SET')
                from pg_roles engine where engine.rolname = 'holdfast_engine'), false) as may_be_engine,
    coalesce((select pg_has_role(current_user, engine.oid, 'USAGE')
                from pg_roles engine where engine.rolname = 'holdfast_engine'), false) as is_always_engine,
    coalesce((select pg_has_role(current_user, tables.relowner, 'MEMBER')
                from pg_class tables where tables.oid = to_regclass('runs')), false) as owns_the_tables,
    to_regclass('applied_migrations') is not null as upgraded
from pg_roles login
where login.rolname = current_user

-- name: listen_for_runs
-- Be told when there is work: a hint only, for polling is the truth.
listen holdfast_runs

-- name: still_there
-- Does the server answer?
select 1 as answer
