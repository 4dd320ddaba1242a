-- What the web page and the API show. Used by coordinator/web/.

-- name: begin
-- Nobody waits longer than this for a page.
SELECT set_config('statement_timeout', '5000', true)

-- name: leader
SELECT holder, term FROM sync_leases WHERE name = %(name)s AND expires_at > now()

-- name: now
SELECT now()

-- name: runs
-- Those that somebody asked for, newest first.
SELECT r.id, sync_run_kind(r), r.pair, r.source_url, r.target_url, r.status, r.verified, r.paused,
       r.error, r.created_at, r.finished_at, r.duplicates_suppressed
  FROM sync_runs r
 WHERE r.parent_run_id IS NULL
   AND (%(pair)s::text IS NULL OR r.pair = %(pair)s)
   AND (%(before)s::timestamptz IS NULL OR r.created_at < %(before)s)
 ORDER BY r.created_at DESC
 LIMIT %(count)s

-- name: runs_at_work
SELECT r.id, sync_run_kind(r), r.pair, r.source_url, r.target_url, r.status, r.verified, r.paused,
       r.error, r.created_at, r.finished_at, r.duplicates_suppressed
  FROM sync_runs r
 WHERE r.finished_at IS NULL AND r.status <> 'interrupted' AND r.parent_run_id IS NULL
 ORDER BY r.created_at DESC
 LIMIT %(count)s

-- name: run
-- Of a part, the run that it is a part of.
SELECT r.id, sync_run_kind(r), r.pair, r.source_url, r.target_url, r.status, r.verified, r.paused,
       r.error, r.created_at, r.finished_at, r.duplicates_suppressed
  FROM sync_runs part
  JOIN sync_runs r ON r.id = coalesce(part.parent_run_id, part.id)
 WHERE part.id = %(run_id)s

-- name: parts
-- Each of these runs with its further passes and its verifications, in the order in which they were
-- begun; how far each is, and how many records a second it made of late.
SELECT coalesce(r.parent_run_id, r.id), r.id, r.kind, r.status, r.verified, r.created_at,
       r.finished_at,
       coalesce(t.planned, 0), coalesce(t.pending, 0), coalesce(t.processing, 0),
       coalesce(t.completed, 0), coalesce(t.failed, 0),
       coalesce(t.records, 0)::bigint, coalesce(t.done, 0)::bigint, coalesce(t.rate, 0)::float8
  FROM sync_runs r
  LEFT JOIN LATERAL (
    SELECT count(*) AS planned,
           count(*) FILTER (WHERE task_status = 'pending') AS pending,
           count(*) FILTER (WHERE task_status = 'processing') AS processing,
           count(*) FILTER (WHERE task_status = 'completed') AS completed,
           count(*) FILTER (WHERE task_status = 'failed') AS failed,
           sum(chunk_end_offset - chunk_start_offset) AS records,
           sum(chunk_end_offset - chunk_start_offset)
               FILTER (WHERE task_status = 'completed') AS done,
           sum(chunk_end_offset - chunk_start_offset)
               FILTER (WHERE completed_at > now() - interval '15 seconds')
           / greatest(1, least(15, extract(epoch FROM now() - min(first_started_at)))) AS rate
      FROM sync_tasks
     WHERE run_id = r.id
    ) AS t ON true
 WHERE r.id = ANY (%(run_ids)s) OR r.parent_run_id = ANY (%(run_ids)s)
 ORDER BY r.created_at

-- name: grid
-- The chunks of a run, so many to a cell, and how many of a cell are in which state.
SELECT collection_name, count(*),
       count(*) FILTER (WHERE task_status = 'completed'),
       count(*) FILTER (WHERE task_status = 'processing'),
       count(*) FILTER (WHERE task_status = 'failed')
  FROM (SELECT collection_name, collection_id, task_status,
               (row_number() OVER (PARTITION BY collection_id ORDER BY chunk_start_offset) - 1)
               / %(per_cell)s AS cell
          FROM sync_tasks
         WHERE run_id = %(run_id)s) AS placed
 GROUP BY collection_name, collection_id, cell
 ORDER BY collection_name, collection_id, cell

-- name: shares
-- How many chunks each worker completed.
SELECT worker_id, count(*)
  FROM sync_tasks
 WHERE run_id = ANY (%(run_ids)s) AND task_status = 'completed'
 GROUP BY worker_id

-- name: workers
-- Those that are active, and for a while those that no longer are.
SELECT worker_id, hostname, pid,
       CASE WHEN worker_status = 'active' AND NOT sync_lease_runs(w) THEN 'dead'
            ELSE worker_status END,
       started_at, last_heartbeat, extract(epoch FROM now() - last_heartbeat)::float8,
       (memory_usage_mb * 1048576)::bigint, cpu_percent, current_task_id, queues
  FROM sync_workers w
 WHERE worker_status = 'active' OR last_heartbeat > now() - make_interval(mins => %(minutes)s)
 ORDER BY worker_status, started_at, worker_id

-- name: failures
-- Chunks of these runs and their parts that have failed, newest first.
SELECT coalesce(r.parent_run_id, r.id), t.id, t.collection_name, t.chunk_start_offset,
       t.chunk_end_offset, t.error, coalesce(json_array_length(t.refused), 0), t.retry_count,
       t.worker_id
  FROM sync_runs r
  JOIN sync_tasks t ON t.run_id = r.id AND t.task_status = 'failed'
 WHERE r.id = ANY (%(run_ids)s) OR r.parent_run_id = ANY (%(run_ids)s)
 ORDER BY r.created_at DESC, t.id
 LIMIT %(count)s

-- name: newest_ended
-- Of each pair that is kept alike the run that ended last; and of what belongs to none, of a day.
-- With it, whether it looked for differences and found some.
SELECT newest.id, newest.pair, newest.status, newest.error,
       newest.kind = 'verify' AND newest.verified IS FALSE
  FROM sync_pairs p
 CROSS JOIN LATERAL (
    SELECT id, pair, status, error, kind, verified FROM sync_runs r
     WHERE r.pair = p.name AND r.parent_run_id IS NULL AND r.finished_at IS NOT NULL
     ORDER BY created_at DESC LIMIT 1) AS newest
 WHERE p.configured
 UNION ALL
(SELECT id, pair, status, error, kind = 'verify' AND verified IS FALSE FROM sync_runs r
  WHERE r.pair IS NULL AND r.parent_run_id IS NULL
    AND r.finished_at > now() - interval '1 day'
  ORDER BY created_at DESC LIMIT 1)

-- name: tasks
SELECT id, collection_name, chunk_start_offset, chunk_end_offset, task_status, worker_id, attempts,
       retry_count, started_at, completed_at, error
  FROM sync_tasks
 WHERE run_id = %(run_id)s AND id > %(after)s
   AND (%(status)s::text IS NULL OR task_status = %(status)s)
 ORDER BY id
 LIMIT %(count)s

-- name: ended
-- Runs for a chart: those that have ended, newest first.
SELECT r.id, sync_run_kind(r), r.pair, r.status, r.verified, r.created_at, r.finished_at
  FROM sync_runs r
 WHERE r.parent_run_id IS NULL AND r.finished_at IS NOT NULL
   AND (%(pair)s::text IS NULL OR r.pair = %(pair)s)
 ORDER BY r.created_at DESC
 LIMIT %(count)s

-- name: report
SELECT report FROM sync_runs WHERE id = %(run_id)s

-- name: stores
-- The servers of all pairs, and those that have a limit.
SELECT source_url, name, 'source' FROM sync_pairs WHERE configured
 UNION ALL
SELECT target_url, name, 'target' FROM sync_pairs WHERE configured

-- name: pair_of_run
-- The pair that a run belongs to: by its name, or by its stores; and whether a later run of the same
-- stores was verified.
SELECT p.name, r.status, r.verified,
       (SELECT l.id FROM sync_runs l
         WHERE l.source_url = r.source_url AND l.target_url = r.target_url
           AND l.parent_run_id IS NULL AND l.created_at > r.created_at AND l.verified
         ORDER BY l.created_at DESC LIMIT 1)
  FROM sync_runs r
  LEFT JOIN sync_pairs p ON p.configured
        AND (p.name = r.pair OR (p.source_url = r.source_url AND p.target_url = r.target_url))
 WHERE r.id = %(run_id)s
 ORDER BY p.name = r.pair DESC NULLS LAST
 LIMIT 1
