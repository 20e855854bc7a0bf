-- name: announce_worker
-- Note that a worker is there and what it serves, and forget those who have not said so in time.
with gone as (
    delete from workers
     where worker_id in (select worker_id
                           from workers
                          where expires_at < clock_timestamp() and worker_id <> %(worker_id)s
                          order by worker_id
                            for update skip locked))
insert into workers (worker_id, serves, expires_at)
values (%(worker_id)s, %(serves)s, clock_timestamp() + make_interval(secs => %(ttl_seconds)s))
    on conflict (worker_id) do update set serves = excluded.serves, expires_at = excluded.expires_at;

-- name: forget_worker
-- Note that a worker is gone.
delete from workers
 where worker_id = %(worker_id)s;

-- name: live_workers
-- The workers that are there, the longest there first.
select worker_id, serves, since
  from workers
 where expires_at >= clock_timestamp()
 order by since, worker_id;

-- name: wanted_versions
-- The versions of graphs that open runs are pinned to, with how many runs of each there are.
select graph_name, graph_version, min(created_at) as oldest_at,
       count(*) filter (where status = 'queued') as queued,
       count(*) filter (where status = 'running') as running,
       count(*) filter (where status = 'interrupted') as interrupted
  from runs
 where status in ('queued', 'running', 'interrupted') and not attached
 group by graph_name, graph_version
 order by graph_name, graph_version;

-- name: claimable_versions
-- The versions of these graphs that waiting or running runs are pinned to, from one to the next along the index.
with recursive versions as (
    select first.graph_name, first.graph_version
      from unnest(%(names)s::text[]) as names(name)
     cross join lateral (
           select r.graph_name, r.graph_version
             from runs r
            where r.status in ('queued', 'running') and not r.attached and r.graph_name = names.name
            order by r.graph_version
            limit 1) as first
     union
    select next.graph_name, next.graph_version
      from versions v
     cross join lateral (
           select r.graph_name, r.graph_version
             from runs r
            where r.status in ('queued', 'running') and not r.attached
              and r.graph_name = v.graph_name and r.graph_version > v.graph_version
            order by r.graph_version
            limit 1) as next)
select graph_name, graph_version
  from versions;
