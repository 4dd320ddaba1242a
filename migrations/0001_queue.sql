-- dramatiq-pg's message table, as its own `dramatiq-pg init` would make it; one that is there stays.
CREATE SCHEMA IF NOT EXISTS dramatiq;

DO $$
BEGIN
    IF to_regtype('dramatiq.state') IS NULL THEN
        CREATE TYPE dramatiq.state AS ENUM ('queued', 'consumed', 'rejected', 'done');
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS dramatiq.queue (
    message_id uuid PRIMARY KEY,
    queue_name text NOT NULL DEFAULT 'default',
    state      dramatiq.state,
    mtime      timestamptz DEFAULT now(),
    message    jsonb,
    result     jsonb,
    result_ttl timestamptz
);
