-- name: hold_lease
-- Lock the lease of exactly this epoch against a change of owner, but not against its own heartbeat.
select 1
  from leases
 where run_id = %(run_id)s and epoch = %(epoch)s and tenant_id = %(tenant_id)s
   for key share;

-- name: hold_lease_alone
-- Lock the lease of exactly this epoch against everyone, to end the attempt.
select 1
  from leases
 where run_id = %(run_id)s and epoch = %(epoch)s and tenant_id = %(tenant_id)s
   for update;

-- name: hold_attached
-- An attached run has no lease: lock the run itself while it is running.
select 1
  from runs
 where run_id = %(run_id)s and epoch = %(epoch)s and tenant_id = %(tenant_id)s and attached and status = 'running'
   for no key update;
