-- Contents that a tenant's terms let go of: the words of a run, its calls and its approvals. The rows stay, with who, what
-- kind, how it ended and what it cost; the time says that there was more.
--
-- The checks are tried on the rows that are there by the next migration: to look at every call holds everyone up here.

alter table runs
    add column contents_pruned_at timestamptz,
    alter column input drop not null,
    add constraint a_run_has_its_contents_until_they_are_pruned check (
        (contents_pruned_at is null) = (input is not null)
        and (contents_pruned_at is null or finished_at is not null and context is null and output is null)) not valid;
alter table calls
    add column contents_pruned_at timestamptz,
    alter column request drop not null,
    add constraint a_call_has_its_contents_until_they_are_pruned check (
        (contents_pruned_at is null) = (request is not null)
        and (contents_pruned_at is null
             or used is not null and response is null and error_message is null and error_facts is null)) not valid;
alter table approvals
    add column contents_pruned_at timestamptz,
    alter column payload drop not null,
    add constraint an_approval_has_its_contents_until_they_are_pruned check (
        (contents_pruned_at is null) = (payload is not null)
        and (contents_pruned_at is null or status <> 'pending' and args is null and decision is null)) not valid;

create index runs_with_contents_to_prune on runs (tenant_id, finished_at)
    where finished_at is not null and contents_pruned_at is null;
