-- Forks and resumed runs: where a thread and a run come from, and what a run inherits.

alter table threads
    add column fork text not null default '';    -- salts the identities of a forked thread's calls; '' for any other

alter table runs
    add column forked_from  uuid references runs,  -- the run that wrote the checkpoint that this one goes on from
    add column forked_at    text,                  -- that checkpoint
    add column resumed_from uuid references runs,  -- the ended run of the same thread that this one goes on for
    add constraint a_fork_names_its_checkpoint check ((forked_from is null) = (forked_at is null)),
    add constraint a_run_has_one_origin check (forked_from is null or resumed_from is null);

-- Nothing reopens a run, and what goes on for it goes on once: a second resumption would spend its budget again.
create unique index a_run_is_resumed_once on runs (resumed_from) where resumed_from is not null;

alter table budgets
    add column inherited jsonb;                  -- what the runs before a resumed one had spent: part of what is spent

alter table calls
    add column sent_by uuid references runs;     -- the run that sent it last, where that is not the one that opened it
