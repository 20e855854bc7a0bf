-- name: lock_keys
-- Let one process after another see which keys are in use, and add its own.
select pg_advisory_xact_lock(hashtext('holdfast.encryption_keys'))

-- name: keys_in_use
-- The keys that rows may be sealed with, each with the key of names under it.
select key_id, names_key, complete
  from encryption_keys
 order by key_id

-- name: tenants_of_the_database
-- Whose rows there may be; for the engine.
select tenant_id
  from tenants

-- name: holds_rows
-- Whether there is anything of the session's tenants that would be encrypted.
select exists (select from runs) or exists (select from checkpoints) as found

-- name: add_key
-- Note that rows may be sealed with a key from now on.
insert into encryption_keys (key_id, names_key, complete)
values (%(key_id)s, %(names_key)s, %(complete)s)
    on conflict (key_id) do nothing

-- name: complete_encryption
-- Note that whatever the database held before is encrypted too.
update encryption_keys
   set complete = true
 where not complete

-- name: retire_keys
-- Note that no row is sealed with any other key than this one.
delete from encryption_keys
 where key_id <> %(key_id)s
returning key_id
