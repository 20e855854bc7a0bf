-- Each event carries the hash of the event before it with itself, and the run's head the hash of the last one: an event
-- that is changed, taken out or put in later does not fit any more. docs/events.md has the bytes that are hashed, so
-- that anyone can verify a log without these functions.

-- What of an event is hashed. Stable, as `convert_to` is: so its body becomes part of the statement that calls it.
create function event_content_v1(run_id uuid, seq bigint, at timestamptz, attempt integer, kind text, node text,
                                 task_id text, call_id uuid, trace_id text, span_id text, payload bytea)
    returns bytea language sql stable parallel safe
    return '\x00000010'::bytea || uuid_send(run_id)
        || '\x00000008'::bytea || int8send(seq)
        || '\x00000008'::bytea || timestamptz_send(at)
        || '\x00000004'::bytea || int4send(attempt)
        || int4send(octet_length(kind)) || convert_to(kind, 'UTF8')
        || coalesce(int4send(octet_length(node)) || convert_to(node, 'UTF8'), '\xffffffff')
        || coalesce(int4send(octet_length(task_id)) || convert_to(task_id, 'UTF8'), '\xffffffff')
        || coalesce('\x00000010'::bytea || uuid_send(call_id), '\xffffffff')
        || coalesce(int4send(octet_length(trace_id)) || convert_to(trace_id, 'UTF8'), '\xffffffff')
        || coalesce(int4send(octet_length(span_id)) || convert_to(span_id, 'UTF8'), '\xffffffff')
        || int4send(octet_length(payload)) || payload;

create function event_link_v1(last bytea, before_the_first bytea, content bytea)
    returns bytea language sql immutable parallel safe
    return sha256(coalesce(last, before_the_first) || content);

-- The hashes of a run's events one after the other, as a window over them, from the hash before the first of them on.
create aggregate event_chain_v1(before_the_first bytea, content bytea) (sfunc = event_link_v1, stype = bytea);

lock table run_heads, events in access exclusive mode;
alter table run_heads
    add column hash bytea not null default decode(repeat('00', 32), 'hex'),
    add column anchor_seq bigint not null default 0,      -- the last event that retention took out, none: 0
    add column anchor_hash bytea not null default decode(repeat('00', 32), 'hex');
alter table events add column hash bytea;

-- The events there are. The owner sees no row while row-level security is forced.
alter table run_heads no force row level security;
alter table events no force row level security;
update events e
   set hash = chained.hash
  from (select run_id, seq, event_chain_v1(decode(repeat('00', 32), 'hex'), event_content_v1(
                   run_id, seq, at, attempt, kind, node, task_id, call_id, trace_id, span_id, payload))
               over (partition by run_id order by seq rows unbounded preceding) as hash
          from events) chained
 where e.run_id = chained.run_id and e.seq = chained.seq;
update run_heads h
   set hash = e.hash
  from events e
 where e.run_id = h.run_id and e.seq = h.seq;
alter table events force row level security;
alter table run_heads force row level security;
alter table events alter column hash set not null;

-- The version of the code before this one writes events without a hash, its head moved already. Taken away by the post.
create function chain_event() returns trigger language plpgsql as $$
begin
    update run_heads
       set hash = event_link_v1(null, hash, event_content_v1(
                      new.run_id, new.seq, new.at, new.attempt, new.kind, new.node, new.task_id, new.call_id,
                      new.trace_id, new.span_id, new.payload))
     where run_id = new.run_id
 returning hash into new.hash;
    return new;
end $$;
create trigger an_event_of_older_code_is_chained before insert on events
    for each row when (new.hash is null) execute function chain_event();
