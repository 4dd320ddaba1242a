"""Rows of a planned run, without stores: for tests of the ledger alone."""

from __future__ import annotations

from uuid import UUID

import orjson
from psycopg.types.json import Json

from coordinator import manifest
from coordinator.enqueue import enqueue_plan
from coordinator.runs import NewRun, Runs
from tasks.chunk import Outcome
from tasks.database import Database
from tasks.stores.base import Collection

OUTCOME = Outcome(
    source_count=1,
    target_count=0,
    added=1,
    source_digest="0" * 32,
    target_digest="0" * 32,
    alike_digest="0" * 32,
    seconds=0.1,
)


def plan_run(
    database: Database,
    ids: list[str],
    *,
    chunk_size: int,
    enqueue: bool = True,
    kind: str = "sync",
    parent: UUID | None = None,
) -> tuple[UUID, list[int]]:
    """A run over one collection with these ids; its id and its tasks' ids, in order."""
    run_id = Runs(database.transaction).create(
        NewRun(
            kind=kind,
            parent_run_id=parent,
            source_url="http://127.0.0.1:9",
            target_url="http://127.0.0.1:9/target",
            source_endpoint="http://127.0.0.1:9",
            target_endpoint="http://127.0.0.1:9/target",
            queue_name="sync",
            options={},
        )
    )
    collection = Collection.new("c", configuration={"hnsw": {"space": "l2"}})
    definition = Json(collection.to_json(), dumps=orjson.dumps)
    with database.transaction() as connection:
        manifest.stage(connection, [ids], [])
        extent = manifest.freeze(connection, run_id, collection.id, chunk_size=chunk_size)
        connection.execute(
            "INSERT INTO sync_collections VALUES (%s, %s, 'c', 'c', %s, %s, %s, 0, %s, %s)",
            [run_id, collection.id, definition, definition, *[extent.end] * 3],
        )
    if enqueue:
        enqueue_plan(database.transaction, run_id)
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT id FROM sync_tasks WHERE run_id = %s ORDER BY 1", [run_id]
        )
        return run_id, [task_id for (task_id,) in rows]


def add_worker(database: Database, worker_id: str, *, lease: float = 60) -> None:
    """A worker with a lease, and no process behind it."""
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO sync_workers (worker_id, lease_expires_at, lease_seconds, hostname, pid)"
            " VALUES (%s, now() + make_interval(secs => %s), %s, 'host', 1)",
            [worker_id, lease, lease],
        )


def end_lease(database: Database, worker_id: str) -> None:
    """Let a lease run out now."""
    with database.connection() as connection:
        connection.execute(
            "UPDATE sync_workers SET lease_expires_at = now() - interval '1 second',"
            " lease_seconds = 0.000001 WHERE worker_id = %s",
            [worker_id],
        )
