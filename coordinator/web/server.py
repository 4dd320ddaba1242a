"""An ASGI application, served from a thread until it is closed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from coordinator.web.address import Listen, bind

STOP_SECONDS = 2  # for requests that are under way


@contextlib.contextmanager
def served(app: ASGIApp, listen: Listen) -> Iterator[str]:
    """Serve `app` within this; gives its URL. Raises `InvalidInput` if the port is taken."""
    listening = bind(listen)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,  # ours; and no access log, which would hold what people ask for
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            limit_concurrency=200,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listening]}, name="web", daemon=True
    )
    thread.start()
    try:
        host = f"[{listen.host}]" if ":" in listen.host else listen.host
        yield f"http://{host}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(STOP_SECONDS + 1)
        listening.close()
