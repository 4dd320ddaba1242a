-- The queue: dramatiq.queue. Used by tasks/broker.py.

-- name: enqueue_one
-- A message that is sent anew under its id replaces one that still waits; one that is being worked
-- on, done or rejected is left alone (a late producer must not bring it back to life).
INSERT INTO dramatiq.queue (message_id, queue_name, state, message, due_at, lane)
VALUES (%(message_id)s, %(queue_name)s, 'queued', %(message)s,
        now() + make_interval(secs => %(delay)s), %(lane)s)
ON CONFLICT (message_id) DO UPDATE
    SET message = excluded.message, due_at = excluded.due_at, mtime = now()
    WHERE queue.state = 'queued'

-- name: copy_messages
COPY dramatiq.queue (message_id, queue_name, state, message, lane) FROM STDIN

-- name: requeue_delivery
-- A retry: the worker that holds the message puts it back, to be delivered later. It must still
-- hold it: after its lease ran out the message may be with somebody else. What is given up by no
-- fault of its own, without a delay, keeps its place and is not last again.
UPDATE dramatiq.queue
   SET state = 'queued', message = %(message)s, worker_id = NULL, mtime = now(),
       due_at = CASE WHEN %(delay)s = 0 THEN due_at
                     ELSE now() + make_interval(secs => %(delay)s) END
 WHERE message_id = %(message_id)s AND state = 'consumed' AND deliveries = %(delivery)s

-- name: hand_back
-- Messages that were prefetched and not begun go back to the front of their queue. See `settle`.
UPDATE dramatiq.queue q
   SET state = 'queued', worker_id = NULL, mtime = now()
  FROM unnest(%(message_ids)s::uuid[], %(deliveries)s::integer[]) AS b (message_id, delivery),
       LATERAL (SELECT FROM dramatiq.queue h
                 WHERE h.message_id = b.message_id AND h.deliveries = b.delivery
                   AND h.state::text = 'consumed'
                   FOR UPDATE) AS held
 WHERE q.message_id = b.message_id

-- name: claim
SELECT seq, delivery, message
  FROM sync_claim(%(queue_name)s, %(worker_id)s, %(count)s, %(finished)s::uuid[])

-- name: release_unknown
-- After a claim whose answer was lost: what we hold by the table and not by our own books.
UPDATE dramatiq.queue
   SET state = 'queued', worker_id = NULL, mtime = now()
 WHERE worker_id = %(worker_id)s AND state = 'consumed' AND queue_name = %(queue_name)s
   AND message_id <> ALL (%(known)s::uuid[])

-- name: settle
-- Acknowledgements and rejections, many at a time. Each names its delivery: one that comes after
-- the lease was lost changes nothing. The rows must be found by their ids, one by one. Left to
-- itself the planner thinks that hardly any row is held, and looks at all that are for each id; or
-- walks the index of held messages, most of which is dead entries of what was held a moment ago.
-- Hence the lateral lookup, and the state in a form that no index has.
UPDATE dramatiq.queue q
   SET state = s.state::dramatiq.state, message = coalesce(s.message::jsonb, q.message),
       worker_id = NULL, mtime = now()
  FROM unnest(%(message_ids)s::uuid[], %(deliveries)s::integer[], %(states)s::text[],
              %(messages)s::text[]) AS s (message_id, delivery, state, message),
       LATERAL (SELECT FROM dramatiq.queue h
                 WHERE h.message_id = s.message_id AND h.deliveries = s.delivery
                   AND h.state::text = 'consumed'
                   FOR UPDATE) AS held
 WHERE q.message_id = s.message_id

-- name: notify
SELECT pg_notify(%(channel)s, '')

-- name: purge
-- Finished messages, oldest first, a bounded number at a time.
DELETE FROM dramatiq.queue
 WHERE message_id IN (
    SELECT message_id
      FROM dramatiq.queue
     WHERE state IN ('done', 'rejected') AND mtime < now() - make_interval(secs => %(age)s)
     ORDER BY mtime
     LIMIT %(count)s
       FOR UPDATE SKIP LOCKED
)

-- name: unfinished
SELECT count(*) FROM dramatiq.queue
 WHERE queue_name = %(queue_name)s AND state IN ('queued', 'consumed')

-- name: flush
DELETE FROM dramatiq.queue WHERE queue_name = %(queue_name)s AND state = 'queued'
