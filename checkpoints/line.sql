-- name: work_for_tenants_from_now_on
-- Let this session see and write the rows of these tenants (separated by commas), and of no others.
select set_config('holdfast.tenants', %(tenants)s, false)
