-- name: claim_runs
-- Take queued runs and runs whose lease has run out, oldest first; the engine's query, without their payload.
with seen as materialized (             -- more than wanted, since other workers take from the same end of the queue
    select r.run_id, r.epoch, r.status, r.created_at
      from runs r
     where r.status in ('queued', 'running')
       and not r.attached
       and (r.graph_name, r.graph_version) in (select * from unnest(%(graphs)s::text[], %(versions)s::text[]))
       and (%(tenants)s::text[] is null or r.tenant_id = any(%(tenants)s::text[]))
       and case r.status
           when 'running' then not exists (
               select from leases l where l.run_id = r.run_id and l.expires_at > clock_timestamp())
           else not exists (
               select from runs other
                where other.thread_id = r.thread_id and other.run_id <> r.run_id and not other.attached
                  and (other.status in ('running', 'interrupted')
                       or other.status = 'queued' and (other.created_at, other.run_id) < (r.created_at, r.run_id)))
           end
     order by r.created_at, r.run_id
     limit %(slots)s + 64),
lapsed as materialized (                -- a lease that was renewed meanwhile, or has a writer in it, is left alone
    select l.run_id
      from seen join leases l on l.run_id = seen.run_id and l.epoch = seen.epoch
     where seen.status = 'running' and l.expires_at <= clock_timestamp()
       for update of l skip locked),
locked as materialized (                -- a run of the same epoch and status has not been touched since it was seen
    select r.run_id
      from seen join runs r on r.run_id = seen.run_id and r.epoch = seen.epoch and r.status = seen.status
     where seen.status = 'queued' or exists (select from lapsed where lapsed.run_id = r.run_id)
        or not exists (select from leases l where l.run_id = r.run_id)
     order by seen.created_at, seen.run_id
     limit %(slots)s
       for no key update of r skip locked),
claimed as (
    update runs r
       set status = 'running', epoch = r.epoch + 1, attempt = r.attempt + 1, claimed_at = clock_timestamp(),
           takeovers = case r.status when 'running' then r.takeovers + 1 else 0 end,
           parked = r.parked and r.status = 'queued',
           started_at = coalesce(r.started_at, clock_timestamp())
      from locked
     where r.run_id = locked.run_id
 returning r.run_id, r.tenant_id, r.graph_name, r.graph_version, r.epoch, r.attempt),
leased as (
    insert into leases (run_id, tenant_id, epoch, worker_id, expires_at)
    select run_id, tenant_id, epoch, %(worker_id)s, clock_timestamp() + make_interval(secs => %(ttl_seconds)s)
      from claimed
        on conflict (run_id) do update
       set epoch = excluded.epoch, worker_id = excluded.worker_id,
           heartbeat_at = clock_timestamp(), expires_at = excluded.expires_at
 returning run_id, heartbeat_at, expires_at)
select run_id::text, tenant_id, graph_name, graph_version, epoch, attempt, heartbeat_at, expires_at
  from claimed join leased using (run_id);

-- name: disown_leases
-- Let a worker's leases run out now, all but those of the runs that it holds.
update leases
   set expires_at = clock_timestamp()
 where worker_id = %(worker_id)s and expires_at > clock_timestamp() and run_id <> all(%(held)s::uuid[]);

-- name: next_expiry
-- Seconds until the first lease runs out that is good now.
select extract(epoch from min(expires_at) - clock_timestamp())::float8 as seconds
  from leases
 where expires_at > clock_timestamp();
