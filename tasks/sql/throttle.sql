-- Throttles: what a server is to bear. Used by tasks/throttle.py.

-- name: limits
SELECT store, records_per_second, requests_in_flight
  FROM sync_throttles
 WHERE records_per_second IS NOT NULL OR requests_in_flight IS NOT NULL
 ORDER BY store

-- name: set_limits
INSERT INTO sync_throttles (store, records_per_second, requests_in_flight)
VALUES (%(store)s, %(records_per_second)s, %(requests_in_flight)s)
ON CONFLICT (store) DO UPDATE
    SET records_per_second = excluded.records_per_second,
        requests_in_flight = excluded.requests_in_flight, free_at = clock_timestamp()

-- name: reserve
-- Each who comes pays for its records from when those before it have paid; the seconds to wait are
-- until then. clock_timestamp, not now: it may have waited for the row.
UPDATE sync_throttles t
   SET free_at = greatest(t.free_at, clock_timestamp())
                 + make_interval(secs => %(records)s / t.records_per_second)
 WHERE store = %(store)s AND records_per_second IS NOT NULL
RETURNING extract(epoch FROM t.free_at - make_interval(secs => %(records)s / t.records_per_second)
                             - clock_timestamp())

-- name: lock_limit
-- First, in the transaction that takes a slot: then counting and taking is one step.
SELECT FROM sync_throttles WHERE store = %(store)s FOR UPDATE

-- name: take_slot
INSERT INTO sync_requests (store, worker_id)
SELECT %(store)s, %(worker_id)s
  FROM sync_throttles
 WHERE store = %(store)s
   AND requests_in_flight > (SELECT count(*)
                               FROM sync_requests r
                               JOIN sync_workers w USING (worker_id)
                              WHERE r.store = %(store)s AND sync_lease_runs(w))
RETURNING id

-- name: leave_slot
DELETE FROM sync_requests
 WHERE id = %(id)s
    OR NOT EXISTS (SELECT FROM sync_workers w
                    WHERE w.worker_id = sync_requests.worker_id AND w.worker_status = 'active')
