-- Every version that runs from here on chains its events itself.

drop trigger if exists an_event_of_older_code_is_chained on events;
drop function if exists chain_event();
