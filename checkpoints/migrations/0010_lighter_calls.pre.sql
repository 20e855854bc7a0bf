-- A call is written once when it is opened and once when it is closed, by whoever holds its run: the lease names the run,
-- its thread's and its tenant's rows are there. To look all three up again for each call locks them for every writer.
alter table calls drop constraint calls_tenant_id_fkey, drop constraint calls_thread_id_fkey;
alter table events drop constraint events_run_id_fkey;    -- its run has a head, or it would have no number

-- Its outcome finds room beside its intent, so that no index has to be told.
alter table calls set (fillfactor = 40);

-- Few calls have a grant; the others need no place in its index.
create unique index a_grant_is_used_by_one_call on calls (grant_id) where grant_id is not null;
alter table calls drop constraint a_grant_is_used_once;
alter index a_grant_is_used_by_one_call rename to a_grant_is_used_once;
