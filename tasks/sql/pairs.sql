-- Pairs on a schedule. Used by coordinator/pair_state.py.

-- name: register
INSERT INTO sync_pairs (name, source_url, target_url, schedule)
VALUES (%(name)s, %(source_url)s, %(target_url)s, %(schedule)s)
ON CONFLICT (name) DO UPDATE
    SET source_url = excluded.source_url, target_url = excluded.target_url,
        schedule = excluded.schedule, configured = true

-- name: unregister_others
UPDATE sync_pairs SET configured = false, next_run_at = NULL
 WHERE configured AND NOT name = ANY (%(names)s)

-- name: state
SELECT p.paused, p.requested, r.created_at,
       r.status NOT IN ('completed', 'failed', 'cancelled')
  FROM sync_pairs p
  LEFT JOIN LATERAL (
    SELECT created_at, status FROM sync_runs
     WHERE pair = p.name AND kind = 'sync' AND parent_run_id IS NULL
     ORDER BY created_at DESC
     LIMIT 1) AS r ON true
 WHERE p.name = %(name)s

-- name: note_due
UPDATE sync_pairs SET next_run_at = %(due)s
 WHERE name = %(name)s AND next_run_at IS DISTINCT FROM %(due)s

-- name: note_error
UPDATE sync_pairs SET error = %(error)s
 WHERE name = %(name)s AND error IS DISTINCT FROM %(error)s

-- name: take_request
UPDATE sync_pairs SET requested = NULL WHERE name = %(name)s AND requested IS NOT NULL

-- name: request
UPDATE sync_pairs SET requested = %(wanted)s WHERE name = %(name)s AND configured RETURNING name

-- name: set_paused
UPDATE sync_pairs SET paused = %(paused)s WHERE name = %(name)s RETURNING name

-- name: pairs
-- Each with its newest run, and since when it is known to be alike.
SELECT p.name, p.source_url, p.target_url, p.schedule, p.paused, p.requested, p.next_run_at, p.error,
       newest.id, newest.status, newest.verified, newest.created_at, verified.created_at,
       greatest(newest.created_at, moved.at)
  FROM sync_pairs p
  LEFT JOIN LATERAL (
    SELECT id, status, verified, created_at FROM sync_runs
     WHERE pair = p.name AND parent_run_id IS NULL
     ORDER BY created_at DESC LIMIT 1) AS newest ON true
  LEFT JOIN LATERAL (
    SELECT created_at FROM sync_runs
     WHERE pair = p.name AND parent_run_id IS NULL AND sync_run_proves_fresh(sync_runs)
     ORDER BY created_at DESC LIMIT 1) AS verified ON true
  LEFT JOIN LATERAL (
    SELECT max(t.completed_at) AS at
      FROM sync_tasks t
      JOIN sync_runs r ON r.id = t.run_id
     WHERE r.id = newest.id OR r.parent_run_id = newest.id) AS moved ON true
 WHERE p.configured
 ORDER BY p.name
