-- name: write_events
-- Move the run's head by the number of new events and write them under the numbers passed, in the order given. One that comes from no span belongs to the span in which the run was asked for.
with head as (
    update run_heads
       set seq = seq + cardinality(%(kind)s::text[])
     where run_id = %(run_id)s and tenant_id = %(tenant_id)s
 returning run_id, tenant_id, seq - cardinality(%(kind)s::text[]) as last,
           split_part(trace_parent, '-', 2) as trace_id, split_part(trace_parent, '-', 3) as span_id)
insert into events (run_id, seq, tenant_id, attempt, kind, node, task_id, call_id, trace_id, span_id, payload)
select head.run_id, head.last + draft.n, head.tenant_id, %(attempt)s,
       draft.kind, draft.node, draft.task_id, draft.call_id,
       coalesce(draft.trace_id, head.trace_id), coalesce(draft.span_id, head.span_id), draft.payload
  from head
 cross join unnest(%(kind)s::text[], %(node)s::text[], %(task_id)s::text[], %(call_id)s::uuid[], %(trace_id)s::text[],
                   %(span_id)s::text[], %(payload)s::bytea[]) with ordinality
            as draft(kind, node, task_id, call_id, trace_id, span_id, payload, n)
 order by draft.n;

-- name: read_events
-- A run's events after a number, in order.
select tenant_id, run_id::text, seq, at, attempt, kind, node, task_id, call_id::text, trace_id, span_id, payload
  from events
 where tenant_id = %(tenant_id)s and run_id = %(run_id)s and seq > %(after)s
 order by seq
 limit %(limit)s;
