-- Runs that share workers take turns: a message's turn is its place within its run, counted from the
-- turn that was next when it was enqueued. See tasks/sql/queue.sql.
ALTER TABLE dramatiq.queue ADD COLUMN turn bigint NOT NULL DEFAULT 0;

DROP INDEX dramatiq.queue_next;
CREATE INDEX queue_next ON dramatiq.queue (queue_name, turn, seq)
    WHERE state = 'queued' AND due_at < 'infinity';
