-- What is kept of the past, and for how long. Used by coordinator/history.py.

-- name: delete_runs
-- With their parts, tasks and results. Rows that another coordinator deletes just now are skipped.
DELETE FROM sync_runs
 WHERE id IN (
    SELECT r.id
      FROM sync_runs r
     WHERE r.parent_run_id IS NULL AND r.finished_at < now() - make_interval(days => 1) * %(days)s
       AND EXISTS (SELECT FROM sync_runs later
                    WHERE later.source_url = r.source_url AND later.target_url = r.target_url
                      AND later.parent_run_id IS NULL AND later.created_at > r.created_at)
       AND (r.verified IS NOT TRUE
            OR EXISTS (SELECT FROM sync_runs later
                        WHERE later.source_url = r.source_url AND later.target_url = r.target_url
                          AND later.parent_run_id IS NULL AND later.verified
                          AND later.created_at > r.created_at))
     ORDER BY r.finished_at
     LIMIT %(at_once)s
       FOR UPDATE OF r SKIP LOCKED)

-- name: delete_workers
DELETE FROM sync_workers
 WHERE worker_status <> 'active' AND last_heartbeat < now() - make_interval(days => 1) * %(days)s
