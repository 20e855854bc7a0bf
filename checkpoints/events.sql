-- name: write_events
-- Number events from their runs' heads on, in the order given, chain each to the one before it, write them, and move the heads. One that comes from no span belongs to the span in which the run was asked for.
with drafts as materialized (
    select *
      from unnest(%(tenant_id)s::text[], %(run_id)s::uuid[], %(attempt)s::integer[], %(kind)s::text[], %(node)s::text[],
                  %(task_id)s::text[], %(call_id)s::uuid[], %(trace_id)s::text[], %(span_id)s::text[],
                  %(payload)s::bytea[]) with ordinality
           as draft(tenant_id, run_id, attempt, kind, node, task_id, call_id, trace_id, span_id, payload, n)),
heads as materialized (     -- locked in one order, so that no two such statements wait for each other
    select h.run_id, h.tenant_id, h.seq, h.hash,
           split_part(h.trace_parent, '-', 2) as trace_id, split_part(h.trace_parent, '-', 3) as span_id
      from run_heads h
     where h.run_id = any(%(run_id)s::uuid[])
     order by h.run_id
       for no key update of h),
numbered as materialized (  -- the time is taken under the lock, and once: what is hashed is what is written
    select h.run_id, h.seq + row_number() over (partition by h.run_id order by d.n) as seq, h.tenant_id,
           clock_timestamp() as at, d.attempt, d.kind, d.node, d.task_id, d.call_id,
           coalesce(d.trace_id, h.trace_id) as trace_id, coalesce(d.span_id, h.span_id) as span_id, d.payload,
           h.hash as before_the_first
      from drafts d
      join heads h using (run_id, tenant_id)),
chained as materialized (
    select n.*, event_chain_v1(before_the_first, event_content_v1(
                    run_id, seq, at, attempt, kind, node, task_id, call_id, trace_id, span_id, payload))
                over (partition by run_id order by seq rows unbounded preceding) as hash
      from numbered n),
moved as (
    update run_heads h
       set seq = newest.seq, hash = newest.hash
      from (select distinct on (run_id) run_id, seq, hash from chained order by run_id, seq desc) newest
     where h.run_id = newest.run_id)
insert into events (run_id, seq, tenant_id, at, attempt, kind, node, task_id, call_id, trace_id, span_id, payload, hash)
select run_id, seq, tenant_id, at, attempt, kind, node, task_id, call_id, trace_id, span_id, payload, hash
  from chained;

-- name: read_events
-- A run's events after a number, in order. A time outside of years that Python knows is none of ours, and comes as null.
select tenant_id, run_id::text, seq, case when at between '0002-01-01' and '9998-12-31' then at end as at,
       attempt, kind, node, task_id, call_id::text, trace_id, span_id, payload
  from events
 where tenant_id = %(tenant_id)s and run_id = %(run_id)s and seq > %(after)s
 order by seq
 limit %(limit)s;

-- name: latest_event
-- A run's last event of a kind; the time as when events are read.
select tenant_id, run_id::text, seq, case when at between '0002-01-01' and '9998-12-31' then at end as at,
       attempt, kind, node, task_id, call_id::text, trace_id, span_id, payload
  from events
 where tenant_id = %(tenant_id)s and run_id = %(run_id)s and kind = %(kind)s
 order by seq desc
 limit 1;

-- name: read_links
-- A run's events after a number as the chain has them, in order; the time as when events are read.
select seq, case when at between '0002-01-01' and '9998-12-31' then at end as at,
       attempt, kind, node, task_id, call_id::text, trace_id, span_id, payload, hash
  from events
 where tenant_id = %(tenant_id)s and run_id = %(run_id)s and seq > %(after)s
 order by seq
 limit %(limit)s;

-- name: read_head
-- Where a run's chain ends and where it is anchored, and the greatest number that one of its events has, as of one moment.
select h.seq, h.hash, h.anchor_seq, h.anchor_hash,
       (select max(e.seq) from events e where e.run_id = h.run_id and e.tenant_id = h.tenant_id) as newest
  from run_heads h
 where h.tenant_id = %(tenant_id)s and h.run_id = %(run_id)s;

-- name: find_logs
-- A tenant's runs after one of them, by id.
select run_id::text
  from runs
 where tenant_id = %(tenant_id)s and (%(after)s::uuid is null or run_id > %(after)s::uuid)
 order by run_id
 limit %(limit)s;
