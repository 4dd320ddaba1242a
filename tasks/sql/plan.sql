-- The coordinator's side: runs, manifests, tasks, proofs and leases. Used by coordinator/.

-- name: create_run
-- A part of a run that is paused begins so.
INSERT INTO sync_runs (kind, parent_run_id, pair, one_way, source_url, target_url, source_endpoint,
                       target_endpoint, queue_name, options, paused)
VALUES (%(kind)s, %(parent_run_id)s, %(pair)s, %(one_way)s, %(source_url)s, %(target_url)s,
        %(source_endpoint)s, %(target_endpoint)s, %(queue_name)s, %(options)s,
        coalesce((SELECT paused FROM sync_runs WHERE id = %(parent_run_id)s), false))
RETURNING id

-- name: set_run_status
-- A run that has ended stays as it ended.
UPDATE sync_runs
   SET status = %(status)s, error = %(error)s
 WHERE id = %(run_id)s AND status NOT IN ('completed', 'failed', 'cancelled')

-- name: finish_run
UPDATE sync_runs
   SET status = %(status)s, verified = %(verified)s, error = %(error)s, report = %(report)s,
       finished_at = clock_timestamp()
 WHERE id = %(run_id)s AND status NOT IN ('completed', 'failed', 'cancelled')

-- name: add_collection
INSERT INTO sync_collections (run_id, collection_id, collection_name, target_name,
                              source_definition, target_definition, source_count, target_count,
                              first_extra, manifest_end)
VALUES (%(run_id)s, %(collection_id)s, %(collection_name)s, %(target_name)s,
        %(source_definition)s, %(target_definition)s, %(source_count)s, %(target_count)s,
        %(first_extra)s, %(manifest_end)s)

-- name: set_target
UPDATE sync_collections
   SET target_definition = %(target_definition)s, losses = %(losses)s
 WHERE run_id = %(run_id)s AND collection_id = %(collection_id)s

-- name: planned_collections
SELECT collection_id, source_definition, target_definition, target_name, source_count,
       target_count, manifest_end - first_extra, losses
  FROM sync_collections
 WHERE run_id = %(run_id)s
 ORDER BY collection_name

-- name: written_rate
-- Records a second of one thread, in chunks of this collection that were written to this target.
SELECT sum(r.added + r.updated) / nullif(sum(r.seconds), 0)
  FROM (SELECT r.added, r.updated, r.seconds
          FROM sync_results r
          JOIN sync_tasks t ON t.id = r.task_id
          JOIN sync_runs s ON s.id = r.run_id
         WHERE t.collection_id = %(collection_id)s AND s.kind = 'sync'
           AND s.target_url = %(target_url)s AND r.added + r.updated > 0
         ORDER BY r.recorded_at DESC
         LIMIT 50) AS r

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
   AND parent_run_id IS NULL
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
    -- Where the manifest ended when it was frozen, against where the chunks end.
    SELECT c.collection_id, c.manifest_end AS listed,
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
-- What the results of some runs, taken together, say of each collection; `failed` of those tasks
-- that have failed for good.
SELECT c.collection_name,
       coalesce(sum(r.added), 0), coalesce(sum(r.updated), 0), coalesce(sum(r.deleted), 0),
       coalesce(sum(r.unchanged), 0), coalesce(sum(r.missing), 0), coalesce(sum(r.extra), 0),
       coalesce(sum(r.differing), 0), coalesce(sum(r.unreadable), 0),
       coalesce(sum(CASE WHEN t.task_status <> 'failed' THEN 0
                         ELSE coalesce(json_array_length(t.refused),
                                       t.chunk_end_offset - t.chunk_start_offset) END), 0)
  FROM sync_collections c
  LEFT JOIN sync_tasks t USING (run_id, collection_id)
  LEFT JOIN sync_results r ON r.task_id = t.id
 WHERE c.run_id = ANY (%(run_ids)s)
 GROUP BY c.collection_id, c.collection_name
 ORDER BY c.collection_name

-- name: collection_digests
SELECT t.collection_name, r.source_digest, r.target_digest, r.alike_digest
  FROM sync_results r
  JOIN sync_tasks t ON t.id = r.task_id
 WHERE r.run_id = %(run_id)s

-- name: findings
SELECT t.collection_name, r.findings
  FROM sync_results r
  JOIN sync_tasks t ON t.id = r.task_id
 WHERE r.run_id = %(run_id)s AND r.missing + r.extra + r.differing + r.unreadable > 0
 ORDER BY t.collection_name, t.chunk_start_offset

-- name: run
SELECT id, sync_run_kind(r), source_url, target_url, status, verified, error, report, created_at,
       planned_at, finished_at, duplicates_suppressed, options, one_way
  FROM sync_runs r
 WHERE id::text LIKE %(prefix)s || '%%'
 ORDER BY created_at DESC
 LIMIT 2

-- name: recent_runs
SELECT r.id, sync_run_kind(r), r.source_url, r.target_url, r.status, r.verified, r.error,
       r.created_at,
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

-- name: end_parts
-- Passes and verifications that their coordinator left are not taken up again: the next verification
-- lists all ids anew.
UPDATE sync_runs
   SET status = 'failed', error = 'Its coordinator was stopped.', finished_at = clock_timestamp()
 WHERE parent_run_id = %(run_id)s AND status NOT IN ('completed', 'failed', 'cancelled')

-- name: run_status
SELECT status FROM sync_runs WHERE id = %(run_id)s

-- name: pause_run
UPDATE sync_runs SET paused = %(paused)s
 WHERE (id = %(run_id)s OR parent_run_id = %(run_id)s)
   AND status NOT IN ('completed', 'failed', 'cancelled')
RETURNING id

-- name: pause_messages
-- They wait where no worker looks.
UPDATE dramatiq.queue q
   SET due_at = 'infinity'
  FROM sync_tasks t
 WHERE t.run_id = ANY (%(run_ids)s) AND q.message_id = t.message_id AND q.state = 'queued'

-- name: resume_messages
UPDATE dramatiq.queue q
   SET due_at = now()
  FROM sync_tasks t
 WHERE t.run_id = ANY (%(run_ids)s) AND q.message_id = t.message_id AND q.state = 'queued'
RETURNING q.queue_name

-- name: cancel_run
UPDATE sync_runs
   SET status = 'cancelled', error = 'Cancelled.', finished_at = clock_timestamp()
 WHERE (id = %(run_id)s OR parent_run_id = %(run_id)s)
   AND status NOT IN ('completed', 'failed', 'cancelled')
RETURNING id

-- name: cancel_messages
UPDATE dramatiq.queue q
   SET state = 'rejected', mtime = now()
  FROM sync_tasks t
 WHERE t.run_id = ANY (%(run_ids)s) AND q.message_id = t.message_id AND q.state = 'queued'

-- name: run_kind
SELECT sync_run_kind(r) FROM sync_runs r WHERE id = %(run_id)s

-- name: passes
SELECT id FROM sync_runs WHERE parent_run_id = %(run_id)s AND kind = 'sync' ORDER BY created_at

-- name: newest_verification
SELECT id FROM sync_runs
 WHERE kind = 'verify' AND (id = %(run_id)s OR parent_run_id = %(run_id)s)
 ORDER BY created_at DESC
 LIMIT 1

-- name: has_manifest
SELECT EXISTS (SELECT FROM sync_manifests m WHERE m.run_id = %(run_id)s)

-- name: discard_manifests
-- Of this run, once it has ended, and of all earlier ones of the pair. What is kept is what somebody
-- may still ask for: the manifest of a sync with failed chunks (`chroma-sync retry`), and the chunks
-- of the newest verification that hold differences (`chroma-sync repair`).
WITH gone AS (
    SELECT r.id, r.id = %(run_id)s AND r.kind = 'sync' AND r.status = 'failed' AS has_failed,
           r.id = (SELECT v.id FROM sync_runs v
                    WHERE v.kind = 'verify' AND (v.id = %(run_id)s OR v.parent_run_id = %(run_id)s)
                    ORDER BY v.created_at DESC LIMIT 1) AS is_newest
      FROM sync_runs r
      JOIN sync_runs this ON this.source_url = r.source_url AND this.target_url = r.target_url
     WHERE this.id = %(run_id)s AND this.parent_run_id IS NULL
       AND r.status IN ('completed', 'failed', 'cancelled')
       AND (r.id = this.id OR r.parent_run_id = this.id OR r.created_at < this.created_at)
), kept AS (
    SELECT t.run_id, t.collection_id, t.chunk_start_offset
      FROM sync_tasks t
      JOIN gone ON gone.id = t.run_id AND gone.is_newest
      LEFT JOIN sync_unproven u ON u.task_id = t.id
     WHERE t.task_status <> 'completed' OR u.task_id IS NOT NULL
)
DELETE FROM sync_manifests m
 USING gone
 WHERE m.run_id = gone.id AND NOT gone.has_failed
   AND (m.run_id, m.collection_id, m.chunk_start_offset) NOT IN (TABLE kept)

-- name: discard_unproven
DELETE FROM sync_unproven u
 USING sync_tasks t
 WHERE t.id = u.task_id
   AND NOT EXISTS (SELECT FROM sync_manifests m
                    WHERE m.run_id = t.run_id AND m.collection_id = t.collection_id
                      AND m.chunk_start_offset = t.chunk_start_offset)

-- name: tell_apart
-- Of what a verification found: how much changed on the source since the syncs of this run looked,
-- and how much was lost or changed on the target.
WITH found AS (
    -- Joined, since each m.ids[position] would decompress all ids of the chunk.
    SELECT t.collection_id, i.id, p.digest
      FROM sync_tasks t
      JOIN sync_manifests m USING (run_id, collection_id, chunk_start_offset)
      JOIN sync_unproven u ON u.task_id = t.id
     CROSS JOIN (unnest(m.ids) WITH ORDINALITY AS i(id, n)
                 JOIN unnest(u.positions, u.digests) AS p(position, digest)
                   ON p.position = i.n - 1)
     WHERE t.run_id = %(verification)s AND p.digest <> 1  -- could not be read
), seen AS (
    -- What the newest sync that looked knew: the digest of what it wrote; of the rest, whether the
    -- source had it.
    SELECT DISTINCT ON (t.collection_id, i.id) t.collection_id, i.id,
           t.chunk_start_offset < c.first_extra AS at_source, p.digest
      FROM sync_tasks t
      JOIN sync_collections c USING (run_id, collection_id)
      JOIN sync_manifests m USING (run_id, collection_id, chunk_start_offset)
      LEFT JOIN sync_unproven u ON u.task_id = t.id
     CROSS JOIN LATERAL unnest(m.ids) WITH ORDINALITY AS i(id, n)
      LEFT JOIN LATERAL unnest(u.positions, u.digests) AS p(position, digest)
             ON p.position = i.n - 1
     WHERE t.run_id = ANY (%(syncs)s) AND i.id IN (SELECT found.id FROM found)
     ORDER BY t.collection_id, i.id, array_position(%(syncs)s::uuid[], t.run_id) DESC
)
SELECT count(*) FILTER (WHERE changed), count(*) FILTER (WHERE NOT changed)
  FROM (SELECT CASE WHEN seen.id IS NULL THEN found.digest <> 0
                    WHEN seen.digest IS NOT NULL THEN found.digest <> seen.digest
                    ELSE (found.digest <> 0) <> seen.at_source END AS changed
          FROM found
          LEFT JOIN seen USING (collection_id, id)) AS told

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
