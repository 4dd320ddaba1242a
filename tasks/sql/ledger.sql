-- The ledger: attempts and results of tasks. Used by tasks/ledger.py.
-- Every change of state names the state it starts from.

-- name: claim_task
-- Begin an attempt. The token is made by the caller: asked again after an answer was lost, the same
-- attempt is found.
WITH waiting AS (
    SELECT id, started_at IS NULL AS untouched
      FROM sync_tasks
     WHERE id = %(task_id)s AND (task_status = 'pending' OR attempt_token = %(token)s)
       AND EXISTS (SELECT FROM sync_runs r
                    WHERE r.id = run_id AND NOT r.paused
                      AND r.status NOT IN ('completed', 'failed', 'cancelled'))
       AND EXISTS (SELECT FROM sync_workers w
                    WHERE w.worker_id = %(worker_id)s AND sync_lease_runs(w))
       FOR UPDATE
), claimed AS (
    UPDATE sync_tasks t
       SET task_status = 'processing', attempt_token = %(token)s, worker_id = %(worker_id)s,
           started_at = clock_timestamp(), error = NULL, refused = NULL,
           attempts = attempts + (attempt_token IS DISTINCT FROM %(token)s)::integer
      FROM waiting
     WHERE t.id = waiting.id
    RETURNING t.id, run_id, collection_id, chunk_start_offset, retry_count, untouched, attempts
)
SELECT c.run_id, r.kind, r.one_way, r.source_endpoint, r.target_endpoint, l.source_definition,
       l.target_definition, m.ids, c.retry_count, c.attempts, c.untouched AND l.target_count = 0,
       c.chunk_start_offset >= l.first_extra AND NOT r.one_way
  FROM claimed c
  JOIN sync_runs r ON r.id = c.run_id
  JOIN sync_collections l ON l.run_id = c.run_id AND l.collection_id = c.collection_id
  JOIN sync_manifests m ON m.run_id = c.run_id AND m.collection_id = c.collection_id
                       AND m.chunk_start_offset = c.chunk_start_offset

-- name: lease_runs
SELECT EXISTS (SELECT FROM sync_workers w
                WHERE w.worker_id = %(worker_id)s AND sync_lease_runs(w))

-- name: is_held
-- The task waits, but its run is paused.
SELECT EXISTS (SELECT FROM sync_tasks t
                 JOIN sync_runs r ON r.id = t.run_id
                WHERE t.id = %(task_id)s AND t.task_status = 'pending' AND r.paused
                  AND r.status NOT IN ('completed', 'failed', 'cancelled'))

-- name: record_result
-- The task is completed and has its result, or neither: one statement. Only the attempt that holds
-- the task, by a worker whose lease runs, gets this far.
WITH completed AS (
    UPDATE sync_tasks t
       SET task_status = 'completed', completed_at = clock_timestamp(), attempt_token = NULL,
           lost_count = 0
     WHERE id = %(task_id)s AND attempt_token = %(token)s
       AND EXISTS (SELECT FROM sync_workers w
                    WHERE w.worker_id = t.worker_id AND sync_lease_runs(w))
    RETURNING id, run_id, worker_id
), unproven AS (
    INSERT INTO sync_unproven (task_id, positions, digests)
    SELECT id, %(positions)s::integer[], %(digests)s::bigint[]
      FROM completed
     WHERE cardinality(%(positions)s::integer[]) > 0
)
INSERT INTO sync_results (task_id, run_id, attempt_token, worker_id, source_count, target_count,
                          added, updated, deleted, unchanged, missing, extra, differing, unreadable,
                          read_bytes, written_bytes, source_digest, target_digest, alike_digest, findings, seconds)
SELECT id, run_id, %(token)s, worker_id, %(source_count)s, %(target_count)s,
       %(added)s, %(updated)s, %(deleted)s, %(unchanged)s, %(missing)s, %(extra)s, %(differing)s,
       %(unreadable)s, %(read_bytes)s, %(written_bytes)s, %(source_digest)s, %(target_digest)s,
       %(alike_digest)s, %(findings)s, %(seconds)s
  FROM completed
RETURNING task_id

-- name: recorded_by
SELECT EXISTS (SELECT FROM sync_results WHERE task_id = %(task_id)s AND attempt_token = %(token)s)

-- name: count_suppressed
UPDATE sync_runs
   SET duplicates_suppressed = duplicates_suppressed + 1
 WHERE id = (SELECT run_id FROM sync_tasks WHERE id = %(task_id)s)

-- name: retry_task
-- The attempt failed and may be tried again.
UPDATE sync_tasks
   SET task_status = 'pending', attempt_token = NULL, retry_count = retry_count + 1,
       lost_count = 0, error = %(error)s
 WHERE id = %(task_id)s AND attempt_token = %(token)s

-- name: fail_task
UPDATE sync_tasks
   SET task_status = 'failed', attempt_token = NULL, error = %(error)s, refused = %(refused)s
 WHERE id = %(task_id)s AND attempt_token = %(token)s

-- name: release_task
-- The attempt was given up by no fault of its own (the worker stops).
UPDATE sync_tasks
   SET task_status = 'pending', attempt_token = NULL
 WHERE id = %(task_id)s AND attempt_token = %(token)s

-- name: progress
SELECT task_status, count(*), coalesce(sum(chunk_end_offset - chunk_start_offset), 0)
  FROM sync_tasks
 WHERE run_id = %(run_id)s
 GROUP BY task_status

-- name: failed_tasks
SELECT id, collection_name, chunk_start_offset, chunk_end_offset, error, refused
  FROM sync_tasks
 WHERE run_id = %(run_id)s AND task_status = 'failed'
 ORDER BY collection_name, chunk_start_offset
