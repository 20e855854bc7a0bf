-- name: has_owner
-- Is there a role that owns the tables?
select exists (select from pg_roles where rolname = 'holdfast_owner') as present

-- name: make_owner
-- The role that migrations run as; neither the application nor the engine is a member of it.
create role holdfast_owner login

-- name: has_database
-- Is there our database?
select exists (select from pg_database where datname = 'holdfast') as present

-- name: make_database
-- Our database, which belongs to the owner.
create database holdfast owner holdfast_owner
