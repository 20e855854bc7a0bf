-- The keys of the operator that rows may be sealed with, by their ids. While there is one, checkpoints are encrypted.
-- The keys are not here. What is here is the key of names, which no rotation changes, sealed under each of them.

create table encryption_keys (
    key_id    text primary key,
    names_key bytea not null,
    complete  boolean not null,                   -- false while what was there before is being encrypted
    added_at  timestamptz not null default clock_timestamp()
);
grant select, insert, update, delete on encryption_keys to holdfast_app;
