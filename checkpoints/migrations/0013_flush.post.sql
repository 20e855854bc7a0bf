-- flush_v2 does it.
drop function flush_v1;
