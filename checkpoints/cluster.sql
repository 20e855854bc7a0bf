-- name: is_alive
-- Does the server answer, and for which data?
select current_setting('data_directory') as data
