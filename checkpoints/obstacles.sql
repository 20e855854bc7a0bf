-- name: be_brief
-- Wait this long for a lock, in this transaction.
select set_config('lock_timeout', %(lock_timeout)s, true);

-- name: obstacles
-- Whom a session waits for: what each calls itself, and since when its transaction is open, where we may see that.
select distinct b.pid, a.application_name as name, a.usename as login, a.xact_start as since,
       a.pid is not null and a.usesysid is null as autovacuum, current_user as us
  from unnest(pg_blocking_pids(%(pid)s)) as b(pid)
  left join pg_stat_activity a on a.pid = b.pid
 order by b.pid;
