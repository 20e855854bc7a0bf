-- Try the checks on the rows that were there before them, while everybody reads and writes.

alter table runs validate constraint a_run_has_its_contents_until_they_are_pruned;
alter table calls validate constraint a_call_has_its_contents_until_they_are_pruned;
alter table approvals validate constraint an_approval_has_its_contents_until_they_are_pruned;
