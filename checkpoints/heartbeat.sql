-- name: renew_leases
-- Prolong a worker's leases that have neither run out nor moved on, and tell which runs are asked to stop.
with asked as materialized (
    select * from unnest(%(run_ids)s::uuid[], %(epochs)s::bigint[]) as asked(run_id, epoch)),
renewed as (
    update leases l
       set heartbeat_at = clock_timestamp(), expires_at = clock_timestamp() + make_interval(secs => %(ttl_seconds)s)
      from asked
     where l.run_id = asked.run_id and l.epoch = asked.epoch
       and l.worker_id = %(worker_id)s and l.expires_at > clock_timestamp()
 returning l.run_id)
select asked.run_id::text, renewed.run_id is not null as held,
       coalesce(r.cancel_requested is not null, false) as cancel_requested
  from asked
  left join renewed using (run_id)
  left join runs r using (run_id);
