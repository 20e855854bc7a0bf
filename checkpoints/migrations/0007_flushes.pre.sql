-- Which flush wrote a run's last events: one that is sent again because its answer was lost writes them no second time.
alter table run_heads add column last_flush text;
