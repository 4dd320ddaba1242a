-- What `chroma-sync doctor` looks at. Used by coordinator/doctor.py. Nothing here writes.

-- name: version
SELECT current_setting('server_version'), current_setting('server_version_num')::integer

-- name: rights_to_create
SELECT has_database_privilege(current_database(), 'CREATE'),
       has_schema_privilege('public', 'CREATE')

-- name: missing_rights
SELECT string_agg(name, ', ')
  FROM unnest(ARRAY['sync_runs', 'sync_collections', 'sync_manifests', 'sync_tasks',
                    'sync_results', 'sync_unproven', 'sync_workers', 'sync_leases',
                    'dramatiq.queue']) AS name
 WHERE NOT has_table_privilege(name, 'SELECT, INSERT, UPDATE, DELETE')

-- name: connections
SELECT current_setting('max_connections')::integer,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')

-- name: clock
SELECT clock_timestamp()

-- name: leader
SELECT holder FROM sync_leases WHERE name = %(name)s AND expires_at > now()

-- name: oldest_waiting
SELECT extract(epoch FROM now() - min(due_at))
  FROM dramatiq.queue
 WHERE state = 'queued' AND due_at <= now()
