"""The JSON API under /api/v1."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, HTTPException, Query

from coordinator import control, pair_state
from coordinator.web.documents import (
    Accepted,
    Ended,
    Error,
    Failure,
    Overview,
    Pair,
    Run,
    Store,
    StoreLimits,
    TaskPage,
    TaskStatus,
    Work,
    Worker,
)
from coordinator.web.shared import Shared
from coordinator.web.views import QUERIES, Views, reading
from tasks.database import Database
from tasks.errors import InvalidInput, RunNotFound
from tasks.stores.address import parse_address
from tasks.throttle import Limits, set_limits

PREFIX = "/api/v1"
PATIENCE = 6.0  # seconds; a statement may take 5
FRESH = 0.5  # seconds; the page asks once a second, on each screen that shows it
FRESH_HISTORY = 5.0
MOST = 500  # of anything in one answer

Count = Annotated[int, Query(ge=1, le=MOST)]

_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Error, "description": "Not there."}}
_CHANGES: dict[int | str, dict[str, Any]] = {
    401: {"model": Error, "description": "The token is missing or wrong."},
    403: {"model": Error, "description": "Asked from another site, or no token is set."},
    **_MISSING,
    409: {"model": Error, "description": "Not as things are; the reason says what to do."},
}


def api_router(database: Database, *, may_change: bool) -> APIRouter:
    """All routes of the API. The guard has looked at who asks."""
    router = APIRouter(
        prefix=PREFIX, responses={503: {"model": Error, "description": "Postgres is away."}}
    )
    views = Views(database, may_change=may_change)
    overview = Shared(views.overview, patience=PATIENCE, fresh=FRESH)
    history = Shared(
        lambda: views.history(pair=None, count=60), patience=PATIENCE, fresh=FRESH_HISTORY
    )

    @router.get("/overview")
    def get_overview() -> Overview:
        """All that the page shows, but for the past; as of a moment ago."""
        return overview.get()

    @router.get("/history")
    def get_history(pair: str | None = None, count: Count = 60) -> list[Ended]:
        """Runs that have ended, oldest first; as of some seconds ago."""
        if pair is None and count == 60:
            return history.get()
        return Views(database, may_change=may_change).history(pair=pair, count=count)

    @router.get("/workers")
    def get_workers() -> list[Worker]:
        """Workers that are active, and those that were within ten minutes."""
        return views.workers()

    _add_pairs(router, database, views)
    _add_runs(router, database, views)
    _add_stores(router, database, views)
    return router


def _add_pairs(router: APIRouter, database: Database, views: Views) -> None:
    @router.get("/pairs")
    def get_pairs() -> list[Pair]:
        """The pairs that are kept alike."""
        return views.pairs()

    @router.get("/pairs/{name}", responses=_MISSING)
    def get_pair(name: str) -> Pair:
        """One pair."""
        for pair in views.pairs():
            if pair.name == name:
                return pair
        raise HTTPException(HTTPStatus.NOT_FOUND, f"There is no pair {name!r}.")

    def ask(name: str, wanted: str) -> Accepted:
        get_pair(name)
        return _ask_leader(database, name, wanted)

    @router.post("/pairs/{name}/sync", status_code=HTTPStatus.ACCEPTED, responses=_CHANGES)
    def sync_now(name: str) -> Accepted:
        """Sync a pair now, whatever its schedule says."""
        return ask(name, "sync")

    @router.post("/pairs/{name}/verify", status_code=HTTPStatus.ACCEPTED, responses=_CHANGES)
    def verify_now(name: str) -> Accepted:
        """Compare every record of a pair now; nothing is written."""
        return ask(name, "verify")

    @router.post("/pairs/{name}/pause", responses=_CHANGES)
    def pause_pair(name: str) -> Accepted:
        """Begin no run of a pair; one that is under way goes on."""
        get_pair(name)
        pair_state.set_paused(database, name, paused=True)
        return Accepted(accepted=f"No run of {name} is begun until it is resumed.")

    @router.post("/pairs/{name}/resume", responses=_CHANGES)
    def resume_pair(name: str) -> Accepted:
        """Let a pair follow its schedule again."""
        get_pair(name)
        pair_state.set_paused(database, name, paused=False)
        return Accepted(accepted=f"{name} follows its schedule again.")


def _add_runs(router: APIRouter, database: Database, views: Views) -> None:
    @router.get("/runs")
    def get_runs(
        pair: str | None = None,
        before: Annotated[datetime | None, Query(description="Begun before this moment.")] = None,
        count: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> list[Run]:
        """Runs, newest first, each with its verifications and further passes."""
        return views.runs(pair=pair, before=before, count=count)

    @router.get("/runs/{run_id}", responses=_MISSING)
    def get_run(run_id: UUID) -> Work:
        """One run, with a grid of its chunks, and what each worker did of it."""
        return views.work(run_id)

    @router.get("/runs/{run_id}/failures", responses=_MISSING)
    def get_failures(run_id: UUID, count: Count = 100) -> list[Failure]:
        """Chunks that failed, with their reasons."""
        return views.failures(run_id, count=count)

    @router.get("/runs/{run_id}/tasks", responses=_MISSING)
    def get_tasks(
        run_id: UUID, status: TaskStatus | None = None, after: int = 0, count: Count = 100
    ) -> TaskPage:
        """The tasks of a run, or of a part of one, a page at a time."""
        return views.tasks(run_id, status=status, after=after, count=count)

    def change(run_id: UUID, act: Callable[[Database, UUID], bool], done: str) -> Accepted:
        run = views.run(run_id)
        if not act(database, run.run_id):
            raise HTTPException(
                HTTPStatus.CONFLICT, f"Run {run.run_id} has ended: it is {run.status}."
            )
        return Accepted(accepted=f"Run {run.run_id} {done}.")

    @router.post("/runs/{run_id}/pause", responses=_CHANGES)
    def pause_run(run_id: UUID) -> Accepted:
        """Let the chunks of a run wait; those under way are finished."""
        return change(run_id, control.pause, "is paused")

    @router.post("/runs/{run_id}/resume", responses=_CHANGES)
    def resume_run(run_id: UUID) -> Accepted:
        """Let a run that was paused go on."""
        return change(run_id, control.resume, "goes on")

    @router.post("/runs/{run_id}/cancel", responses=_CHANGES)
    def cancel_run(run_id: UUID) -> Accepted:
        """End a run; chunks under way are finished, and what was written stays."""
        return change(run_id, control.cancel, "is cancelled")

    @router.post("/runs/{run_id}/retry", status_code=HTTPStatus.ACCEPTED, responses=_CHANGES)
    def retry_run(run_id: UUID) -> Accepted:
        """Have the leader sync the run's pair again, which tries again what failed.

        It compares everything and writes only what is not alike.
        """
        run = views.run(run_id)
        with reading(database) as connection:
            row = connection.execute(QUERIES["pair_of_run"], {"run_id": run.run_id}).fetchone()
        assert row is not None
        pair, status, verified, verified_since = row
        if reason := _no_retry(run, pair, status, verified, verified_since):
            raise HTTPException(HTTPStatus.CONFLICT, reason)
        assert pair is not None
        return _ask_leader(database, pair, "sync")


def _ask_leader(database: Database, name: str, wanted: str) -> Accepted:
    """Want something of whoever leads, now or next, which looks once a second."""
    if pair_state.read_state(database, name).paused:
        raise HTTPException(
            HTTPStatus.CONFLICT, f"Pair {name} is paused; resume it, and ask again."
        )
    pair_state.request(database, name, wanted)
    return Accepted(accepted=f"A {wanted} of {name} begins as soon as its leader is free.")


def _no_retry(
    run: Run, pair: str | None, status: str, verified: bool | None, verified_since: UUID | None
) -> str | None:
    """Why a run cannot be tried again from here."""
    if verified:
        return "There is nothing to retry: the run was verified."
    if verified_since is not None:
        return f"There is nothing to retry: run {verified_since} was verified since."
    if run.ended is None and status != "interrupted":
        return f"The run goes on: it is {status}."
    if pair is None:
        return (
            "No pair of this schedule has the run's source and target; "
            f"use `chroma-sync retry {run.run_id}`."
        )
    return None


def _add_stores(router: APIRouter, database: Database, views: Views) -> None:
    @router.get("/stores")
    def get_stores() -> list[Store]:
        """The servers of all pairs, and those that have limits."""
        return views.stores()

    @router.put("/stores/limits", responses=_CHANGES)
    def put_limits(limits: StoreLimits) -> Store:
        """Set the limits of a server anew; workers keep to them within seconds."""
        server = parse_address(limits.server).location
        known = {store.server for store in views.stores()}
        if server not in known:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"No pair has the server {server}.")
        set_limits(
            database,
            server,
            Limits(
                records_per_second=limits.records_per_second,
                requests_in_flight=limits.requests_in_flight,
            ),
        )
        found = {store.server: store for store in views.stores()}
        return found.get(server) or Store(
            server=server, roles=[], records_per_second=None, requests_in_flight=None
        )


def status_of(error: Exception) -> HTTPStatus:
    """How an error of ours is answered."""
    if isinstance(error, RunNotFound):
        return HTTPStatus.NOT_FOUND
    if isinstance(error, InvalidInput):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    return HTTPStatus.SERVICE_UNAVAILABLE
