-- The ledger: the truth about what was planned, tried and done. Times are Postgres's own.

CREATE TABLE sync_workers (
    worker_id        text PRIMARY KEY,
    worker_status    text NOT NULL DEFAULT 'active'
                     CHECK (worker_status IN ('active', 'stopped', 'dead')),
    -- The lease: everything the worker holds is its own until then. The term grows each time that
    -- the lease was lost and taken anew.
    lease_expires_at timestamptz NOT NULL,
    lease_seconds    double precision NOT NULL CHECK (lease_seconds > 0),
    lease_term       bigint NOT NULL DEFAULT 1,
    last_heartbeat   timestamptz NOT NULL DEFAULT now(),
    started_at       timestamptz NOT NULL DEFAULT now(),
    current_task_id  bigint,
    memory_usage_mb  double precision,
    cpu_percent      double precision,
    hostname         text NOT NULL,
    pid              integer NOT NULL,
    queues           text[] NOT NULL DEFAULT '{}'
);
CREATE INDEX sync_workers_active ON sync_workers (worker_id) WHERE worker_status = 'active';

-- Does this worker's lease run? While Postgres was down nobody could renew, so a lease runs at
-- least its own length from the moment that Postgres was up again.
CREATE FUNCTION sync_lease_runs(worker sync_workers) RETURNS boolean
LANGUAGE sql STABLE
RETURN worker.worker_status = 'active'
   AND greatest(worker.lease_expires_at,
                pg_postmaster_start_time() + make_interval(secs => worker.lease_seconds)) > now();

CREATE TABLE sync_leases (
    name       text PRIMARY KEY,
    holder     text NOT NULL,
    term       bigint NOT NULL DEFAULT 1,
    expires_at timestamptz NOT NULL
);

CREATE TABLE sync_runs (
    id                    uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    kind                  text NOT NULL CHECK (kind IN ('sync', 'verify')),
    -- The run that this one is a part of: a verification of it, or a further pass. NULL for one that
    -- somebody asked for.
    parent_run_id         uuid REFERENCES sync_runs ON DELETE CASCADE,
    -- What only the target has is let be: nothing is deleted, and it is no finding.
    one_way               boolean NOT NULL DEFAULT false,
    source_url            text NOT NULL,
    target_url            text NOT NULL,
    -- Where workers reach the stores: the same as above, or the loopback address at which the
    -- coordinator serves a directory.
    source_endpoint       text NOT NULL,
    target_endpoint       text NOT NULL,
    queue_name            text NOT NULL,
    options               jsonb NOT NULL DEFAULT '{}',
    status                text NOT NULL DEFAULT 'planning'
                          CHECK (status IN ('planning', 'running', 'verifying', 'interrupted',
                                            'completed', 'failed')),
    verified              boolean,
    error                 text,
    report                json,
    duplicates_suppressed bigint NOT NULL DEFAULT 0,
    created_at            timestamptz NOT NULL DEFAULT now(),
    planned_at            timestamptz,
    finished_at           timestamptz,
    CHECK (status <> 'completed' OR finished_at IS NOT NULL)
);

-- What people call a run.
CREATE FUNCTION sync_run_kind(run sync_runs) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN coalesce(run.options ->> 'purpose',
                CASE WHEN run.kind = 'sync' AND run.one_way THEN 'copy' ELSE run.kind END);

CREATE INDEX sync_runs_parent ON sync_runs (parent_run_id);
CREATE INDEX sync_runs_recent ON sync_runs (created_at DESC);
CREATE INDEX sync_runs_pair ON sync_runs (source_url, target_url, created_at DESC);

CREATE TABLE sync_collections (
    run_id            uuid NOT NULL REFERENCES sync_runs ON DELETE CASCADE,
    collection_id     uuid NOT NULL,
    collection_name   text NOT NULL,
    target_name       text NOT NULL,
    -- json, not jsonb: strings may hold \u0000, which jsonb refuses.
    source_definition json NOT NULL,
    -- NULL where the target has no such collection (a verification or a dry run makes none).
    target_definition json,
    -- Records on either side when the ids were listed.
    source_count      bigint NOT NULL,
    target_count      bigint NOT NULL,
    -- The manifest: from here on, what only the target has; and its end.
    first_extra       bigint NOT NULL,
    manifest_end      bigint NOT NULL,
    -- What of the source's definition the target's collection does not have, a line each.
    losses            json,
    PRIMARY KEY (run_id, collection_id),
    CHECK (first_extra BETWEEN 0 AND manifest_end)
);

-- The frozen ids of a run, one row a chunk: first the source's, in its order, then those that only
-- the target has; all of them, or those that a verification or a further pass has to look at. bytea, not text: an id may hold \x00, which text refuses. To read them:
--   SELECT convert_from(unnest(ids), 'UTF8') FROM sync_manifests WHERE run_id = ...
CREATE TABLE sync_manifests (
    run_id             uuid NOT NULL REFERENCES sync_runs ON DELETE CASCADE,
    collection_id      uuid NOT NULL,
    chunk_start_offset bigint NOT NULL CHECK (chunk_start_offset >= 0),
    chunk_end_offset   bigint NOT NULL,
    ids                bytea[] NOT NULL,
    PRIMARY KEY (run_id, collection_id, chunk_start_offset),
    CHECK (cardinality(ids) = chunk_end_offset - chunk_start_offset)
);

CREATE TABLE sync_tasks (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id             uuid NOT NULL REFERENCES sync_runs ON DELETE CASCADE,
    collection_id      uuid NOT NULL,
    collection_name    text NOT NULL,
    chunk_start_offset bigint NOT NULL CHECK (chunk_start_offset >= 0),
    chunk_end_offset   bigint NOT NULL,
    task_status        text NOT NULL DEFAULT 'pending'
                       CHECK (task_status IN ('pending', 'processing', 'completed', 'failed')),
    worker_id          text,
    started_at         timestamptz,
    completed_at       timestamptz,
    -- Failed tries since the task was planned, or since `chroma-sync retry`.
    retry_count        integer NOT NULL DEFAULT 0 CHECK (retry_count >= 0),
    -- Executions that were begun, whatever became of them.
    attempts           integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    -- Workers that died while holding the task, one after the other.
    lost_count         integer NOT NULL DEFAULT 0 CHECK (lost_count >= 0),
    -- Names the one attempt whose result is accepted.
    attempt_token      uuid,
    -- The message that carries the task, in dramatiq.queue.
    message_id         uuid NOT NULL,
    error              text,
    refused            json,
    created_at         timestamptz NOT NULL DEFAULT now(),
    UNIQUE (run_id, collection_id, chunk_start_offset),
    CHECK (chunk_end_offset > chunk_start_offset),
    CHECK ((task_status = 'processing') = (attempt_token IS NOT NULL)),
    CHECK (task_status NOT IN ('processing', 'completed')
           OR (worker_id IS NOT NULL AND started_at IS NOT NULL)),
    CHECK ((task_status = 'completed') = (completed_at IS NOT NULL))
);
CREATE INDEX sync_tasks_by_status ON sync_tasks (run_id, task_status);
CREATE INDEX sync_tasks_held ON sync_tasks (worker_id) WHERE task_status = 'processing';

CREATE TABLE sync_results (
    task_id       bigint PRIMARY KEY REFERENCES sync_tasks ON DELETE CASCADE,
    run_id        uuid NOT NULL REFERENCES sync_runs ON DELETE CASCADE,
    attempt_token uuid NOT NULL UNIQUE,
    worker_id     text NOT NULL,
    -- Records of the chunk found on either side before anything was written, and what was done.
    source_count  bigint NOT NULL,
    target_count  bigint NOT NULL,
    added         bigint NOT NULL DEFAULT 0,
    updated       bigint NOT NULL DEFAULT 0,
    deleted       bigint NOT NULL DEFAULT 0,
    unchanged     bigint NOT NULL DEFAULT 0,
    -- What a verification found.
    missing       bigint NOT NULL DEFAULT 0,
    extra         bigint NOT NULL DEFAULT 0,
    differing     bigint NOT NULL DEFAULT 0,
    unreadable    bigint NOT NULL DEFAULT 0,
    -- Of what the records hold: vectors as float32, everything else as JSON.
    read_bytes    bigint NOT NULL DEFAULT 0,
    written_bytes bigint NOT NULL DEFAULT 0,
    -- 32 hexadecimal digits, over ids and contents of what was found on either side, and of what the
    -- target has alike. Digests add up modulo 2^128: those of chunks to the collection's.
    source_digest text NOT NULL,
    target_digest text NOT NULL,
    alike_digest  text NOT NULL,
    -- What differs, record by record: [[sign, id, [part, ...]], ...].
    findings      json,
    seconds       double precision NOT NULL,
    recorded_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sync_results_by_run ON sync_results (run_id);

-- The records that a task has not found alike: what a sync wrote, what a verification found. They are
-- what is to be looked at next. Positions count from 0 within the task's chunk.
CREATE TABLE sync_unproven (
    task_id   bigint PRIMARY KEY REFERENCES sync_tasks ON DELETE CASCADE,
    positions integer[] NOT NULL,
    -- 63 bits of the source record's digest as the task read it; 0: the source had none.
    digests   bigint[] NOT NULL,
    CHECK (cardinality(positions) = cardinality(digests))
);
