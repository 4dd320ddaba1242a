-- Worker processes and their leases: sync_workers. Used by tasks/workers.py.

-- name: register
-- A worker that comes back under its name (its lease was lost) gets a new term.
INSERT INTO sync_workers (worker_id, lease_expires_at, lease_seconds, hostname, pid, queues)
VALUES (%(worker_id)s, now() + make_interval(secs => %(lease)s), %(lease)s, %(hostname)s, %(pid)s,
        %(queues)s)
ON CONFLICT (worker_id) DO UPDATE
    SET worker_status = 'active', lease_term = sync_workers.lease_term + 1,
        lease_expires_at = excluded.lease_expires_at, last_heartbeat = now()

-- name: renew
-- Only a lease that still runs can be renewed.
UPDATE sync_workers w
   SET lease_expires_at = now() + make_interval(secs => lease_seconds), last_heartbeat = now(),
       memory_usage_mb = %(memory)s, cpu_percent = %(cpu)s, current_task_id = %(task_id)s
 WHERE worker_id = %(worker_id)s AND sync_lease_runs(w)

-- name: stop
UPDATE sync_workers
   SET worker_status = 'stopped', lease_expires_at = now(), last_heartbeat = now(),
       current_task_id = NULL
 WHERE worker_id = %(worker_id)s

-- name: bury
-- Workers whose lease ran out. Rows that somebody else is burying are skipped.
UPDATE sync_workers
   SET worker_status = 'dead', current_task_id = NULL
 WHERE worker_id IN (
    SELECT worker_id
      FROM sync_workers w
     WHERE worker_status = 'active' AND NOT sync_lease_runs(w)
       FOR UPDATE SKIP LOCKED
)
RETURNING worker_id

-- name: release_tasks
-- Tasks that these workers hold wait for another. `lost` is 1 for a worker that died and 0 for one
-- that stopped: a task that took three workers with it in a row is not tried for ever.
UPDATE sync_tasks
   SET task_status = CASE WHEN lost_count + %(lost)s >= 3 THEN 'failed' ELSE 'pending' END,
       error = CASE WHEN lost_count + %(lost)s >= 3
                    THEN 'Three workers in a row died while they worked on this chunk.' END,
       attempt_token = NULL, lost_count = lost_count + %(lost)s
 WHERE worker_id = ANY (%(worker_ids)s) AND task_status = 'processing'
RETURNING id

-- name: release_messages
UPDATE dramatiq.queue
   SET state = 'queued', worker_id = NULL, mtime = now()
 WHERE worker_id = ANY (%(worker_ids)s) AND state = 'consumed'
RETURNING queue_name

-- name: release_orphans
-- Messages that a worker claimed just when its lease was lost, after what it held was released.
UPDATE dramatiq.queue q
   SET state = 'queued', worker_id = NULL, mtime = now()
 WHERE state = 'consumed'
   AND NOT EXISTS (SELECT FROM sync_workers w
                    WHERE w.worker_id = q.worker_id AND w.worker_status = 'active')
RETURNING queue_name

-- name: live
SELECT count(*) FROM sync_workers w
 WHERE sync_lease_runs(w) AND %(queue_name)s = ANY (queues)

-- name: live_pids
SELECT count(DISTINCT pid) FROM sync_workers w
 WHERE sync_lease_runs(w) AND hostname = %(hostname)s AND pid = ANY (%(pids)s)
