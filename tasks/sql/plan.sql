-- The coordinator's side: runs, manifests, tasks, proofs and leases. Used by coordinator/.

-- name: create_run
INSERT INTO sync_runs (kind, parent_run_id, source_url, target_url, source_endpoint,
                       target_endpoint, queue_name, options)
VALUES (%(kind)s, %(parent_run_id)s, %(source_url)s, %(target_url)s, %(source_endpoint)s,
        %(target_endpoint)s, %(queue_name)s, %(options)s)
RETURNING id

-- name: set_run_status
-- A run that has ended stays as it ended.
UPDATE sync_runs
   SET status = %(status)s, error = %(error)s
 WHERE id = %(run_id)s AND status NOT IN ('completed', 'failed')

-- name: finish_run
UPDATE sync_runs
   SET status = %(status)s, verified = %(verified)s, error = %(error)s, report = %(report)s,
       finished_at = clock_timestamp()
 WHERE id = %(run_id)s AND status NOT IN ('completed', 'failed')

-- name: copy_manifest
COPY sync_manifests (run_id, collection_id, chunk_start_offset, chunk_end_offset, ids)
FROM STDIN (FORMAT BINARY)

-- name: stage_target_ids
CREATE TEMPORARY TABLE sync_target_ids (id bytea NOT NULL) ON COMMIT DROP

-- name: copy_target_ids
COPY sync_target_ids (id) FROM STDIN (FORMAT BINARY)

-- name: freeze_extra_ids
-- What only the target has, behind what the source has. EXCEPT, since it spills to disk where an
-- anti-join on unnest() would be planned blindly.
WITH extra AS (
    SELECT id FROM sync_target_ids
    EXCEPT
    SELECT unnest(ids) FROM sync_manifests
     WHERE run_id = %(run_id)s AND collection_id = %(collection_id)s
), numbered AS (
    SELECT id, row_number() OVER () - 1 AS n FROM extra
)
INSERT INTO sync_manifests (run_id, collection_id, chunk_start_offset, chunk_end_offset, ids)
SELECT %(run_id)s, %(collection_id)s, %(start)s + min(n), %(start)s + max(n) + 1,
       array_agg(id ORDER BY n)
  FROM numbered
 GROUP BY n / %(chunk_size)s

-- name: add_collection
INSERT INTO sync_collections (run_id, collection_id, collection_name, source_definition,
                              target_definition, source_count, target_count)
VALUES (%(run_id)s, %(collection_id)s, %(collection_name)s, %(source_definition)s,
        %(target_definition)s, %(source_count)s, %(target_count)s)

-- name: begin_run
-- The row lock makes a plan that is enqueued twice impossible.
UPDATE sync_runs
   SET status = 'running', planned_at = clock_timestamp()
 WHERE id = %(run_id)s AND status = 'planning'
RETURNING kind, queue_name

-- name: create_tasks
INSERT INTO sync_tasks (run_id, collection_id, collection_name, chunk_start_offset,
                        chunk_end_offset, message_id)
SELECT m.run_id, m.collection_id, c.collection_name, m.chunk_start_offset, m.chunk_end_offset,
       gen_random_uuid()
  FROM sync_manifests m
  JOIN sync_collections c USING (run_id, collection_id)
 WHERE m.run_id = %(run_id)s
 ORDER BY c.collection_name, m.chunk_start_offset
RETURNING id, message_id

-- name: lost_tasks
-- Unfinished tasks that no message carries any more get a new one; an attempt that may still be
-- under way loses the task. A message outlives its task's last attempt, so none of this is normal.
UPDATE sync_tasks
   SET task_status = 'pending', attempt_token = NULL, message_id = gen_random_uuid()
 WHERE id IN (
    SELECT t.id
      FROM sync_tasks t
     WHERE t.run_id = %(run_id)s AND t.task_status IN ('pending', 'processing')
       AND NOT EXISTS (SELECT FROM dramatiq.queue q
                        WHERE q.message_id = t.message_id AND q.state IN ('queued', 'consumed'))
       FOR UPDATE OF t SKIP LOCKED
)
RETURNING id, message_id

-- name: run_messages
SELECT kind, queue_name FROM sync_runs WHERE id = %(run_id)s

-- name: reset_failed_tasks
UPDATE sync_tasks
   SET task_status = 'pending', retry_count = 0, lost_count = 0, error = NULL, refused = NULL,
       message_id = gen_random_uuid()
 WHERE run_id = %(run_id)s AND task_status = 'failed'
RETURNING id, message_id

-- name: reopen_run
UPDATE sync_runs
   SET status = 'running', error = NULL, finished_at = NULL, verified = NULL, report = NULL
 WHERE id = %(run_id)s AND kind = 'sync' AND status IN ('failed', 'interrupted', 'running')
   AND EXISTS (SELECT FROM sync_manifests m WHERE m.run_id = id)
RETURNING id

-- name: newest_run
SELECT id, status, options
  FROM sync_runs
 WHERE source_url = %(source_url)s AND target_url = %(target_url)s AND kind = 'sync'
 ORDER BY created_at DESC
 LIMIT 1

-- name: resume_run
UPDATE sync_runs
   SET status = 'running', error = NULL, source_endpoint = %(source_endpoint)s,
       target_endpoint = %(target_endpoint)s, queue_name = %(queue_name)s
 WHERE id = %(run_id)s AND status IN ('running', 'verifying', 'interrupted')
RETURNING id

-- name: move_messages
-- The tasks of a run go to another queue with it.
UPDATE dramatiq.queue q
   SET queue_name = %(queue_name)s,
       message = jsonb_set(message, '{queue_name}', to_jsonb(%(queue_name)s::text))
  FROM sync_tasks t
 WHERE t.run_id = %(run_id)s AND q.message_id = t.message_id AND q.state IN ('queued', 'consumed')
   AND q.queue_name <> %(queue_name)s

-- name: proof
-- The ledger proof: in every manifest the chunks follow each other without hole or overlap, from 0
-- to the last, each has one task, each task one result; and no id is in a manifest twice.
WITH tiles AS (
    SELECT t.id, t.collection_id, t.chunk_start_offset AS start,
           coalesce(lag(t.chunk_end_offset) OVER (PARTITION BY t.collection_id
                                                  ORDER BY t.chunk_start_offset), 0) AS expected,
           (SELECT count(*) FROM sync_results r WHERE r.task_id = t.id) AS results
      FROM sync_tasks t
     WHERE t.run_id = %(run_id)s
), ends AS (
    -- The count that was taken while the ids were listed, against where the chunks end.
    SELECT c.collection_id, c.source_count AS listed,
           coalesce((SELECT max(t.chunk_end_offset) FROM sync_tasks t
                      WHERE t.run_id = c.run_id AND t.collection_id = c.collection_id), 0) AS reached
      FROM sync_collections c
     WHERE c.run_id = %(run_id)s
), untasked AS (
    SELECT count(*) AS chunks
      FROM sync_manifests m
     WHERE m.run_id = %(run_id)s
       AND NOT EXISTS (SELECT FROM sync_tasks t
                        WHERE t.run_id = m.run_id AND t.collection_id = m.collection_id
                          AND t.chunk_start_offset = m.chunk_start_offset
                          AND t.chunk_end_offset = m.chunk_end_offset)
), repeated AS (
    SELECT coalesce(sum(copies - 1), 0) AS ids
      FROM (SELECT count(*) AS copies
              FROM (SELECT collection_id, unnest(ids) AS id
                      FROM sync_manifests WHERE run_id = %(run_id)s) AS listed
             GROUP BY collection_id, id
            HAVING count(*) > 1) AS twice
)
SELECT (SELECT count(*) FROM tiles WHERE start > expected OR results = 0)
       + (SELECT count(*) FROM ends WHERE reached < listed)
       + (SELECT chunks FROM untasked) AS gaps,
       (SELECT count(*) FROM tiles WHERE start < expected)
       + (SELECT coalesce(sum(results - 1), 0) FROM tiles WHERE results > 1)
       + (SELECT ids FROM repeated) AS duplicates

-- name: collection_results
SELECT c.collection_name, c.source_count, c.target_count,
       coalesce(sum(r.added), 0), coalesce(sum(r.updated), 0), coalesce(sum(r.deleted), 0),
       coalesce(sum(r.unchanged), 0), coalesce(sum(r.missing), 0), coalesce(sum(r.extra), 0),
       coalesce(sum(r.differing), 0),
       coalesce(sum(CASE WHEN t.task_status <> 'failed' THEN 0
                         ELSE coalesce(json_array_length(t.refused),
                                       t.chunk_end_offset - t.chunk_start_offset) END), 0)
  FROM sync_collections c
  LEFT JOIN sync_tasks t USING (run_id, collection_id)
  LEFT JOIN sync_results r ON r.task_id = t.id
 WHERE c.run_id = %(run_id)s
 GROUP BY c.collection_id, c.collection_name, c.source_count, c.target_count
 ORDER BY c.collection_name

-- name: findings
SELECT t.collection_name, r.findings
  FROM sync_results r
  JOIN sync_tasks t ON t.id = r.task_id
 WHERE r.run_id = %(run_id)s AND r.missing + r.extra + r.differing > 0
 ORDER BY t.collection_name, t.chunk_start_offset

-- name: run
SELECT id, kind, source_url, target_url, status, verified, error, report, created_at, planned_at,
       finished_at, duplicates_suppressed, options
  FROM sync_runs
 WHERE id::text LIKE %(prefix)s || '%%'
 ORDER BY created_at DESC
 LIMIT 2

-- name: recent_runs
SELECT r.id, r.kind, r.source_url, r.target_url, r.status, r.verified, r.error, r.created_at,
       r.finished_at,
       (SELECT count(*) FROM sync_tasks t WHERE t.run_id = r.id) AS planned,
       (SELECT count(*) FROM sync_tasks t
         WHERE t.run_id = r.id AND t.task_status = 'completed') AS completed,
       (SELECT count(*) FROM sync_tasks t
         WHERE t.run_id = r.id AND t.task_status = 'failed') AS failed
  FROM sync_runs r
 WHERE r.parent_run_id IS NULL
 ORDER BY r.created_at DESC
 LIMIT %(count)s

-- name: run_workers
SELECT t.worker_id, count(*) FILTER (WHERE t.task_status = 'completed')
  FROM sync_tasks t
 WHERE t.run_id = %(run_id)s AND t.worker_id IS NOT NULL
 GROUP BY t.worker_id
 ORDER BY t.worker_id

-- name: end_verifications
-- A verification that its coordinator left is not taken up again: the next one lists all ids anew.
UPDATE sync_runs
   SET status = 'failed', error = 'Its coordinator was stopped.', finished_at = clock_timestamp()
 WHERE parent_run_id = %(run_id)s AND status NOT IN ('completed', 'failed')

-- name: discard_manifests
-- The ids of verifications that have ended, and of ended syncs before this one. A sync's own are
-- kept, for `chroma-sync retry`.
DELETE FROM sync_manifests
 WHERE run_id IN (
    SELECT r.id
      FROM sync_runs r
      JOIN sync_runs this ON this.source_url = r.source_url AND this.target_url = r.target_url
     WHERE this.id = %(run_id)s AND r.status IN ('completed', 'failed')
       AND (r.kind = 'verify' OR r.created_at < this.created_at)
)

-- name: take_lease
INSERT INTO sync_leases (name, holder, expires_at)
VALUES (%(name)s, %(holder)s, now() + make_interval(secs => %(seconds)s))
ON CONFLICT (name) DO UPDATE
    SET holder = excluded.holder, term = sync_leases.term + 1, expires_at = excluded.expires_at
    WHERE sync_leases.expires_at <= now()
RETURNING term

-- name: lock_lease
-- Still ours? And nobody takes it before this transaction ends.
SELECT term FROM sync_leases
 WHERE name = %(name)s AND holder = %(holder)s AND term = %(term)s
   FOR SHARE

-- name: renew_lease
UPDATE sync_leases
   SET expires_at = now() + make_interval(secs => %(seconds)s)
 WHERE name = %(name)s AND holder = %(holder)s AND term = %(term)s

-- name: release_lease
UPDATE sync_leases
   SET expires_at = now()
 WHERE name = %(name)s AND holder = %(holder)s AND term = %(term)s
