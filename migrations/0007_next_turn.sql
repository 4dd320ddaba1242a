-- The turn that is next in a queue. What is paused takes no turn, and what is to be tried again later
-- has had its own.
CREATE FUNCTION sync_next_turn(of_queue text) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(min(turn), 0)
      FROM dramatiq.queue
     WHERE queue_name = of_queue AND state = 'queued' AND due_at <= now() AND due_at < 'infinity'
$$;
