"""The web applications, put together: a coordinator's, and a worker's with its metrics only."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from coordinator.pairs import ScheduledPair
from coordinator.web.address import Listen
from coordinator.web.api import PREFIX, api_router, status_of
from coordinator.web.guard import Guard
from coordinator.web.health import Health
from coordinator.web.metrics import DatabaseCollector
from tasks.database import Database
from tasks.errors import ChromaSyncError
from tasks.settings import Settings

STATIC = Path(__file__).parent / "static"


def coordinator_app(
    settings: Settings,
    database: Database,
    pairs: Sequence[ScheduledPair],
    listen: Listen,
    registry: CollectorRegistry,
) -> ASGIApp:
    """Health, metrics, the API and the page."""
    app = _app(registry)
    health = Health(database, pairs)
    DatabaseCollector(database, registry)

    @app.get("/readyz", include_in_schema=False)
    def readyz(request: Request) -> JSONResponse:
        found = health.readiness()
        shown = found if request.scope["may_see_all"] else found.without_details()
        return JSONResponse(
            shown.model_dump(exclude_none=True), status_code=200 if found.ready else 503
        )

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> FileResponse:
        return FileResponse(STATIC / "icon.svg")

    app.include_router(api_router(database, may_change=settings.sync_api_token is not None))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    return _guarded(app, settings, listen)


def worker_app(settings: Settings, listen: Listen, registry: CollectorRegistry) -> ASGIApp:
    """Health and metrics."""
    return _guarded(_app(registry), settings, listen)


def _guarded(app: FastAPI, settings: Settings, listen: Listen) -> ASGIApp:
    token = settings.sync_api_token
    return Guard(
        app,
        token=token.get_secret_value() if token is not None else None,
        is_loopback=listen.is_loopback,
    )


def _app(registry: CollectorRegistry) -> FastAPI:
    app = FastAPI(
        title="chroma-sync",
        version=version("chroma-sync"),
        description="What a coordinator knows, and what it can be asked to do. A change needs "
        "`SYNC_API_TOKEN` as a bearer token, and a JSON body (`{}` if there is nothing to say).",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # it would load its scripts from elsewhere
        redoc_url=None,
    )

    # In the event loop: it needs no thread, all of which may be waiting for Postgres.
    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/metrics", include_in_schema=False)
    def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": kind})

    @app.exception_handler(ChromaSyncError)
    def refused(_request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=status_of(error))

    @app.exception_handler(HTTPException)
    def answered(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, status_code=error.status_code)

    @app.exception_handler(RequestValidationError)
    def misunderstood(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{where}: {first['msg']}"}, status_code=422)

    @app.exception_handler(Exception)
    def failed(_request: Request, _error: Exception) -> JSONResponse:
        # It goes on to the server, which logs it.
        return JSONResponse({"error": "Something unexpected; see the log."}, status_code=500)

    return app
