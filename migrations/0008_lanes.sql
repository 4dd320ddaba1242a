-- Lanes instead of turns: of the runs whose messages wait in a queue, the one that has the fewest in
-- hand is next. In turns, a run whose target is slow came to hold every worker.
--
-- The column `turn` and `sync_next_turn` stay for workers of the version before, until these are
-- replaced.

-- The run that a message belongs to; '' for messages that belong to none.
ALTER TABLE dramatiq.queue ADD COLUMN lane text NOT NULL DEFAULT '';
UPDATE dramatiq.queue q
   SET lane = t.run_id
  FROM sync_tasks t
 WHERE t.message_id = q.message_id AND q.state IN ('queued', 'consumed');

DROP INDEX dramatiq.queue_next;
CREATE INDEX queue_next ON dramatiq.queue (queue_name, lane, seq)
    WHERE state = 'queued' AND due_at < 'infinity';

-- Hand this worker the next messages of a queue that are due and that nobody else is just claiming,
-- at most so many. Rows that another transaction has locked are skipped, so that consumers never wait
-- for each other. A worker whose lease is lost gets nothing: it could not do the work, and nobody
-- would take it back from a worker that is dead. What this worker has `finished`, and not yet
-- acknowledged here, counts as in nobody's hands.
CREATE FUNCTION sync_claim(of_queue text, claimant text, wanted integer, finished uuid[])
RETURNS TABLE (seq bigint, delivery integer, message text)
LANGUAGE plpgsql
-- A plan that was made while the queue was empty would be kept when it is long.
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    lanes text[];
    next_lane text;
    share integer;
    taken integer;
BEGIN
    IF NOT EXISTS (SELECT FROM sync_workers w
                    WHERE w.worker_id = claimant AND sync_lease_runs(w)) THEN
        RETURN;
    END IF;
    -- From each lane to the next one in the index, whatever waits in them.
    WITH RECURSIVE waiting AS (
        SELECT min(q.lane) AS lane
          FROM dramatiq.queue q
         WHERE q.queue_name = of_queue AND q.state = 'queued'
           AND q.due_at <= now() AND q.due_at < 'infinity'
        UNION ALL
        SELECT (SELECT min(q.lane)
                  FROM dramatiq.queue q
                 WHERE q.queue_name = of_queue AND q.state = 'queued'
                   AND q.due_at <= now() AND q.due_at < 'infinity'
                   AND q.lane > waiting.lane)
          FROM waiting
         WHERE waiting.lane IS NOT NULL
    )
    SELECT array_agg(w.lane) INTO lanes FROM waiting w WHERE w.lane IS NOT NULL;

    WHILE wanted > 0 AND cardinality(lanes) > 0 LOOP
        FOR next_lane, share IN
            -- So that all have the same in hand, as far as that goes; what is left over, by chance.
            WITH held AS (
                SELECT q.lane, count(*) AS count
                  FROM dramatiq.queue q
                 WHERE cardinality(lanes) > 1
                   AND q.queue_name = of_queue AND q.state = 'consumed'
                   AND q.message_id <> ALL (finished)
                 GROUP BY q.lane
            ), places AS (
                SELECT lane
                  FROM unnest(lanes) AS l(lane)
                  LEFT JOIN held h USING (lane)
                 CROSS JOIN generate_series(1, wanted) AS n
                 ORDER BY coalesce(h.count, 0) + n, random()
                 LIMIT wanted
            )
            SELECT lane, count(*) FROM places GROUP BY lane
        LOOP
            RETURN QUERY
                WITH next AS (
                    SELECT q.message_id
                      FROM dramatiq.queue q
                     WHERE q.queue_name = of_queue AND q.lane = next_lane AND q.state = 'queued'
                       AND q.due_at <= now() AND q.due_at < 'infinity'
                     ORDER BY q.seq
                     LIMIT share
                       FOR UPDATE SKIP LOCKED
                )
                UPDATE dramatiq.queue q
                   SET state = 'consumed', worker_id = claimant, deliveries = q.deliveries + 1,
                       mtime = now()
                  FROM next
                 WHERE q.message_id = next.message_id
                RETURNING q.seq, q.deliveries, q.message::text;
            GET DIAGNOSTICS taken = ROW_COUNT;
            wanted := wanted - taken;
            IF taken < share THEN  -- there is no more of it
                lanes := array_remove(lanes, next_lane);
            END IF;
        END LOOP;
    END LOOP;
END
$$;
