-- What metrics need: events that the state of a task does not keep, and the totals of runs that have
-- ended, so that a scrape need not look at all history, and none is lost with it.

ALTER TABLE sync_tasks
    ADD COLUMN first_started_at timestamptz,
    -- Each only grows, whatever becomes of the task: `retry_count` and `lost_count` begin anew.
    ADD COLUMN failures integer NOT NULL DEFAULT 0,
    ADD COLUMN retries  integer NOT NULL DEFAULT 0,
    -- Taken over from a worker that died, or sent again because no message carried it.
    ADD COLUMN rescues  integer NOT NULL DEFAULT 0;

-- By a trigger, and so whichever statement makes the change.
CREATE FUNCTION sync_count_task_events() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    sent_again boolean := NEW.message_id <> OLD.message_id;
BEGIN
    NEW.first_started_at := coalesce(OLD.first_started_at, NEW.started_at);
    IF NEW.task_status = 'failed' AND OLD.task_status <> 'failed' THEN
        NEW.failures := OLD.failures + 1;
    ELSIF NEW.retry_count > OLD.retry_count OR (sent_again AND OLD.task_status = 'failed') THEN
        NEW.retries := OLD.retries + 1;
    ELSIF NEW.lost_count > OLD.lost_count OR sent_again THEN
        NEW.rescues := OLD.rescues + 1;
    END IF;
    RETURN NEW;
END
$$;

-- Not for what every task goes through each time: its result.
CREATE TRIGGER sync_task_events BEFORE UPDATE ON sync_tasks
    FOR EACH ROW
    WHEN ((OLD.first_started_at IS NULL AND NEW.started_at IS NOT NULL)
          OR NEW.task_status = 'failed'
          OR NEW.retry_count > OLD.retry_count
          OR NEW.lost_count > OLD.lost_count
          OR NEW.message_id <> OLD.message_id)
    EXECUTE FUNCTION sync_count_task_events();

-- The totals of all runs that have been counted. They only grow.
CREATE TABLE sync_metrics (
    metric text NOT NULL,
    kind   text NOT NULL,
    -- What was done to records, or the upper bound of a histogram's bucket.
    label  text NOT NULL,
    value  double precision NOT NULL,
    PRIMARY KEY (metric, kind, label)
);

ALTER TABLE sync_runs
    -- The end as of which the run is in `sync_metrics`; a retry gives a run another end.
    ADD COLUMN counted_at timestamptz,
    -- With how much, of a run that may be retried.
    ADD COLUMN counted    jsonb;
UPDATE sync_runs SET counted_at = finished_at WHERE finished_at IS NOT NULL;
CREATE INDEX sync_runs_uncounted ON sync_runs (id)
    WHERE finished_at IS NULL OR counted_at IS DISTINCT FROM finished_at;

-- A late result may come long after its run has ended, and been counted.
CREATE FUNCTION sync_count_suppressed() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sync_metrics
    VALUES ('results_suppressed', '', '', NEW.duplicates_suppressed - OLD.duplicates_suppressed)
    ON CONFLICT (metric, kind, label) DO UPDATE
        SET value = sync_metrics.value + excluded.value;
    RETURN NULL;
END
$$;
CREATE TRIGGER sync_run_suppressed AFTER UPDATE OF duplicates_suppressed ON sync_runs
    FOR EACH ROW
    WHEN (NEW.duplicates_suppressed > OLD.duplicates_suppressed)
    EXECUTE FUNCTION sync_count_suppressed();
