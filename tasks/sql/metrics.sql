-- What the metrics tell of the database. Used by coordinator/web/metrics.py and totals.py.

-- name: settle
-- No scrape may cost more than this, whatever there is to count.
SELECT set_config('statement_timeout', %(milliseconds)s::text, true)

-- name: lock_totals
-- One at a time adds to the totals.
SELECT pg_try_advisory_xact_lock(hashtext('sync_metrics'))

-- name: ended_runs
-- Runs that have ended since they were last counted; not one that a worker is still busy with.
SELECT r.id, r.counted
  FROM sync_runs r
 WHERE r.finished_at IS NOT NULL AND r.counted_at IS DISTINCT FROM r.finished_at
   AND NOT EXISTS (SELECT FROM sync_tasks t
                    WHERE t.run_id = r.id AND t.task_status = 'processing')
 ORDER BY r.finished_at
 LIMIT %(count)s
   FOR UPDATE OF r

-- name: add_totals
INSERT INTO sync_metrics (metric, kind, label, value)
VALUES (%(metric)s, %(kind)s, %(label)s, %(value)s)
ON CONFLICT (metric, kind, label) DO UPDATE SET value = sync_metrics.value + excluded.value

-- name: mark_counted
-- How much it was is kept for runs that may be retried.
UPDATE sync_runs
   SET counted_at = finished_at,
       counted = CASE WHEN status = 'failed' AND kind = 'sync' THEN %(counted)s::jsonb END
 WHERE id = %(run_id)s

-- name: counted_totals
SELECT metric, kind, label, value FROM sync_metrics

-- name: uncounted_runs
SELECT id, counted
  FROM sync_runs
 WHERE finished_at IS NULL OR counted_at IS DISTINCT FROM finished_at

-- name: run_totals
-- Everything that is counted of some runs: (run, metric, kind, label, value).
WITH runs AS (
    SELECT id, kind FROM sync_runs WHERE id = ANY (%(run_ids)s)
), tasks AS (
    SELECT r.id, r.kind, count(*) AS planned,
           count(*) FILTER (WHERE t.task_status = 'completed') AS completed,
           sum(t.failures) AS failed, sum(t.retries) AS retried, sum(t.rescues) AS rescued,
           sum(extract(epoch FROM t.first_started_at - t.created_at)) AS waited
      FROM runs r
      JOIN sync_tasks t ON t.run_id = r.id
     GROUP BY r.id, r.kind
), results AS (
    SELECT r.id, r.kind, sum(s.seconds) AS seconds,
           sum(s.added) AS added, sum(s.updated) AS updated, sum(s.deleted) AS deleted,
           sum(s.unchanged) AS unchanged, sum(s.missing) AS missing, sum(s.extra) AS extra,
           sum(s.differing) AS differing, sum(s.unreadable) AS unreadable,
           sum(s.read_bytes) AS read_bytes, sum(s.written_bytes) AS written_bytes
      FROM runs r
      JOIN sync_results s ON s.run_id = r.id
     GROUP BY r.id, r.kind
), durations AS (
    SELECT r.id, r.kind, width_bucket(s.seconds, %(duration_bounds)s::float8[]) AS bucket, count(*)
      FROM runs r
      JOIN sync_results s ON s.run_id = r.id
     GROUP BY r.id, r.kind, bucket
), waits AS (
    SELECT r.id, r.kind,
           width_bucket(extract(epoch FROM t.first_started_at - t.created_at)::float8,
                        %(wait_bounds)s::float8[]) AS bucket,
           count(*)
      FROM runs r
      JOIN sync_tasks t ON t.run_id = r.id
     WHERE t.first_started_at IS NOT NULL
     GROUP BY r.id, r.kind, bucket
), counts AS (
    SELECT id, metric, kind, '' AS label, value
      FROM tasks, LATERAL (VALUES
        ('chunks_planned', planned), ('chunks_completed', completed), ('chunks_failed', failed),
        ('chunks_retried', retried), ('chunks_rescued', rescued),
        ('chunk_queue_wait_seconds_sum', waited)) AS v (metric, value)
    UNION ALL
    SELECT id, 'chunk_duration_seconds_sum', kind, '', seconds FROM results
    UNION ALL
    SELECT id, metric, '', label, value
      FROM results, LATERAL (VALUES
        ('records', 'added', added), ('records', 'updated', updated),
        ('records', 'deleted', deleted), ('records', 'unchanged', unchanged),
        ('records', 'missing', missing), ('records', 'extra', extra),
        ('records', 'differing', differing), ('records', 'unreadable', unreadable),
        ('bytes', 'read', read_bytes), ('bytes', 'written', written_bytes)
        ) AS v (metric, label, value)
    UNION ALL
    SELECT id, 'chunk_duration_seconds', kind,
           coalesce((%(duration_bounds)s::float8[])[bucket + 1]::text, '+Inf'), count
      FROM durations
    UNION ALL
    SELECT id, 'chunk_queue_wait_seconds', kind,
           coalesce((%(wait_bounds)s::float8[])[bucket + 1]::text, '+Inf'), count
      FROM waits
)
SELECT id, metric, kind, label, value::float8 FROM counts WHERE value <> 0

-- name: queue
-- Paused messages are due at infinity: delayed, too.
SELECT queue_name,
       CASE WHEN state = 'queued' AND due_at > now() THEN 'delayed' ELSE state::text END AS what,
       count(*),
       coalesce(max(extract(epoch FROM now() - due_at))
                FILTER (WHERE state = 'queued' AND due_at <= now()), 0)::float8
  FROM dramatiq.queue
 GROUP BY queue_name, what

-- name: tasks
SELECT r.kind, t.task_status, count(*)
  FROM sync_runs r
  JOIN sync_tasks t ON t.run_id = r.id
 WHERE r.finished_at IS NULL
 GROUP BY r.kind, t.task_status

-- name: workers
-- A worker whose lease has run out is dead, noticed or not.
SELECT worker_id,
       CASE WHEN worker_status = 'active' AND NOT sync_lease_runs(w) THEN 'dead'
            ELSE worker_status END,
       extract(epoch FROM now() - last_heartbeat)::float8,
       memory_usage_mb * 1048576, cpu_percent
  FROM sync_workers w
 WHERE worker_status = 'active'
    OR last_heartbeat > now() - CASE worker_status WHEN 'dead' THEN interval '1 hour'
                                                   ELSE interval '1 day' END

-- name: leader
SELECT holder, term, expires_at > now() FROM sync_leases WHERE name = %(name)s

-- name: pairs
-- Of each pair: how long ago it was known to be alike, the last sign of life of its newest run if
-- that has not ended, how that which ended last did, and what its newest proof found.
SELECT p.name, p.paused,
       (SELECT extract(epoch FROM now() - max(v.created_at))::float8
          FROM sync_runs v
         WHERE v.pair = p.name AND v.parent_run_id IS NULL
           AND sync_run_proves_fresh(v)) AS lag,
       CASE WHEN newest.finished_at IS NULL THEN (
           SELECT extract(epoch FROM now() - max(greatest(
                      r.created_at, r.planned_at, r.finished_at,
                      (SELECT max(t.completed_at) FROM sync_tasks t WHERE t.run_id = r.id))))::float8
             FROM sync_runs r
            WHERE r.id = newest.id OR r.parent_run_id = newest.id) END AS stalled,
       coalesce(ended.verified, false),
       coalesce((SELECT sum(s.missing + s.extra + s.differing + s.unreadable)
                   FROM sync_results s
                  WHERE NOT ended.proves_fresh AND s.run_id = (SELECT v.id FROM sync_runs v
                                     WHERE v.kind = 'verify'
                                       AND (v.id = ended.id OR v.parent_run_id = ended.id)
                                     ORDER BY v.created_at DESC LIMIT 1)), 0)::float8
       + coalesce((SELECT sum(coalesce(json_array_length(t.refused),
                                       t.chunk_end_offset - t.chunk_start_offset))
                     FROM sync_runs r
                     JOIN sync_tasks t ON t.run_id = r.id AND t.task_status = 'failed'
                    WHERE r.id = ended.id OR r.parent_run_id = ended.id), 0)::float8
  FROM sync_pairs p
  LEFT JOIN LATERAL (
    SELECT id, finished_at FROM sync_runs
     WHERE pair = p.name AND parent_run_id IS NULL
     ORDER BY created_at DESC LIMIT 1) AS newest ON true
  LEFT JOIN LATERAL (
    SELECT id, verified, sync_run_proves_fresh(sync_runs) AS proves_fresh FROM sync_runs
     WHERE pair = p.name AND parent_run_id IS NULL AND finished_at IS NOT NULL
     ORDER BY created_at DESC LIMIT 1) AS ended ON true
 WHERE p.configured
 ORDER BY p.name

-- name: dead_tuples
SELECT schemaname || '.' || relname, n_dead_tup::float8
  FROM pg_stat_user_tables
 WHERE schemaname = 'dramatiq' OR relname LIKE 'sync\_%%'

-- name: connections
SELECT coalesce(state, 'unknown'), count(*)
  FROM pg_stat_activity
 WHERE datname = current_database() AND backend_type = 'client backend'
 GROUP BY 1

-- name: notification_queue
SELECT pg_notification_queue_usage()::float8
