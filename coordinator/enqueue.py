"""Makes the tasks of a plan and their messages, in one transaction: both are there, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from coordinator.runs import Transaction
from tasks.actors import task_message
from tasks.broker import enqueue_many
from tasks.database import Connection, load_queries
from tasks.errors import RunNotFound

QUERIES = load_queries("plan")


def enqueue_plan(transaction: Transaction, run_id: UUID) -> int:
    """Turn the manifests of a planned run into tasks and messages; returns how many.

    Raises `RunNotFound` if the run does not wait for this (it was enqueued before).
    """
    with transaction() as connection:
        begun = connection.execute(QUERIES["begin_run"], {"run_id": run_id}).fetchone()
        if begun is None:
            raise RunNotFound(f"Run {run_id} is not being planned.")
        created = connection.execute(QUERIES["create_tasks"], {"run_id": run_id}).fetchall()
        _send(connection, run_id, created)
        return len(created)


def resend_lost(transaction: Transaction, run_id: UUID) -> int:
    """Give tasks that no message carries any more a new one; returns how many there were."""
    return _renew(transaction, run_id, "lost_tasks")


def retry_failed(transaction: Transaction, run_id: UUID) -> int:
    """Let failed tasks be tried again, with all their retries; returns how many there were."""
    return _renew(transaction, run_id, "reset_failed_tasks")


def _renew(transaction: Transaction, run_id: UUID, query: str) -> int:
    with transaction() as connection:
        renewed = connection.execute(QUERIES[query], {"run_id": run_id}).fetchall()
        _send(connection, run_id, renewed)
        return len(renewed)


def _send(connection: Connection, run_id: UUID, tasks: Sequence[tuple[int, UUID]]) -> None:
    if not tasks:
        return
    row = connection.execute(QUERIES["run_messages"], {"run_id": run_id}).fetchone()
    assert row is not None
    kind, queue_name = row
    enqueue_many(
        (
            task_message(kind, task_id, run_id=run_id, message_id=message_id, queue_name=queue_name)
            for task_id, message_id in sorted(tasks)
        ),
        connection,
    )
