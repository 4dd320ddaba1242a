-- What running as a service needs: pairs on a schedule, and runs that can be held and cancelled.

-- One row for each source and target that the leading coordinator keeps alike.
CREATE TABLE sync_pairs (
    name        text PRIMARY KEY,
    source_url  text NOT NULL,
    target_url  text NOT NULL,
    schedule    text NOT NULL,
    paused      boolean NOT NULL DEFAULT false,
    -- What somebody wants now, whatever the schedule says.
    requested   text CHECK (requested IN ('sync', 'verify')),
    next_run_at timestamptz,
    -- Why the last run could not even be begun; NULL if it could.
    error       text,
    -- Pairs that are in nobody's configuration any more stay, for their history.
    configured  boolean NOT NULL DEFAULT true
);

ALTER TABLE sync_runs
    ADD COLUMN pair text,
    -- Its chunks wait; those that are being worked on are finished.
    ADD COLUMN paused boolean NOT NULL DEFAULT false,
    DROP CONSTRAINT sync_runs_status_check,
    ADD CONSTRAINT sync_runs_status_check
        CHECK (status IN ('planning', 'running', 'verifying', 'interrupted', 'completed', 'failed',
                          'cancelled'));
CREATE INDEX sync_runs_by_pair ON sync_runs (pair, created_at DESC) WHERE parent_run_id IS NULL;

-- How much a store is to bear, from all workers together.
CREATE TABLE sync_throttles (
    store              text PRIMARY KEY,
    records_per_second double precision CHECK (records_per_second > 0),
    requests_in_flight integer CHECK (requests_in_flight > 0),
    -- The records that have been let through are paid for by then.
    free_at            timestamptz NOT NULL DEFAULT now()
);

-- The requests that are under way at a throttled store; those of a worker without a lease do not
-- count.
CREATE UNLOGGED TABLE sync_requests (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    store     text NOT NULL,
    worker_id text NOT NULL
);
CREATE INDEX sync_requests_by_store ON sync_requests (store);

-- Since a run began that this is true of, the target is known to have held what the source held: it
-- was verified, or has caught up with a source that never rests (a sync that completed, though what
-- changed during its last pass is left).
CREATE FUNCTION sync_run_proves_fresh(run sync_runs) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN run.status = 'completed' AND (run.verified IS TRUE OR run.kind = 'sync');
