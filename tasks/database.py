"""Postgres: the connection pool, the named queries, and the translation of its errors."""

from __future__ import annotations

import math
import re
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any, LiteralString, cast

import psycopg
from psycopg import conninfo
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from tasks.errors import DatabaseRefused, DatabaseUnavailable, InvalidInput

Connection = psycopg.Connection[TupleRow]

CONNECT_TIMEOUT = 5  # seconds; for each host of the address
POOL_TIMEOUT = 10.0  # seconds to wait for a free connection
ASK_AGAIN = 1.0  # seconds between two attempts to connect while Postgres is away

OPEN_TIMEOUT = 8.0  # seconds that a Postgres which is there may keep us waiting at the start

# What a Postgres says that will take connections soon. libpq gives a failed connection no SQLSTATE,
# so there is only the text; in another language than English it counts as a refusal.
_PASSING = (
    "starting up",
    "shutting down",
    "in recovery mode",
    "not yet accepting connections",
    "too many clients",
    "remaining connection slots",
    "too many connections",
)

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


def load_queries(name: str) -> dict[str, LiteralString]:
    """The queries of `tasks/sql/<name>.sql`: a block after each line `-- name: <query>`.

    The text comes from a file of this package, never from input, hence `LiteralString`.
    """
    text = resources.files("tasks.sql").joinpath(f"{name}.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)
    return {
        query: cast(LiteralString, body.strip())
        for query, body in zip(parts[1::2], parts[2::2], strict=True)
    }


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what psycopg raises for a lost or refused connection into our own types."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseRefused(
            f"Postgres lacks rights: {_first_line(error)}. Grant the database's user CREATE on the "
            "database and on schema public, and ownership of what chroma-sync made."
        ) from error
    except (
        psycopg.errors.DuplicatePreparedStatement,
        psycopg.errors.InvalidSqlStatementName,
    ) as error:
        raise DatabaseRefused(
            "Postgres is behind a pooler in transaction mode, which mixes up prepared statements; "
            "set SYNC_LISTEN=false, or connect to Postgres itself."
        ) from error
    except (PoolTimeout, PoolClosed) as error:
        raise DatabaseUnavailable(f"No connection to Postgres: {_first_line(error)}.") from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(f"Postgres is unavailable: {_first_line(error)}.") from error


def _check_if_it_stirs(connection: Connection) -> None:
    """Make sure of a connection that is about to be lent out, without asking the server each time.

    An idle connection has nothing to read. One that has was closed, or was told something by the
    server; then it is worth the question. Raises what psycopg raises for a broken connection.
    """
    readable, _, _ = select.select([connection], [], [], 0)
    if readable:
        ConnectionPool.check_connection(connection)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


class Database:
    """A pool of autocommit connections to one Postgres.

    `listen` says whether the connections are sessions of our own: behind a pooler in transaction
    mode, neither LISTEN nor prepared statements work.
    """

    def __init__(self, url: str, *, max_connections: int = 8, listen: bool = True) -> None:
        self.url = url
        self.listen = listen
        self._last_call = math.inf
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            url,
            min_size=1,
            max_size=max_connections,
            reconnect_timeout=ASK_AGAIN,
            max_idle=60,
            open=False,
            configure=self._configure,
            kwargs=self._options(),
        )

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "autocommit": True,
            "application_name": "chroma-sync",
            "connect_timeout": CONNECT_TIMEOUT,
            # A peer that vanished is noticed within about 15 seconds.
            "keepalives_idle": 5,
            "keepalives_interval": 3,
            "keepalives_count": 3,
        }
        if not self.listen:
            options["prepare_threshold"] = None
        return options

    def _configure(self, connection: Connection) -> None:
        # A process that is paused within a transaction must not hold its locks for ever. Not in a
        # session that a pooler shares with others.
        if self.listen:
            connection.execute("SET idle_in_transaction_session_timeout = '10s'")

    def open(self) -> None:
        """Connect once, so that a wrong address is told at once and clearly, then fill the pool.

        Raises `InvalidInput`, `DatabaseRefused` or `DatabaseUnavailable`, within 10 seconds.
        """
        try:
            conninfo.conninfo_to_dict(self.url)
        except psycopg.ProgrammingError:
            # Its message quotes the address, with the password.
            raise InvalidInput(
                "DATABASE_URL is not a Postgres address; "
                "it looks like postgresql://user@host:5432/database."
            ) from None
        deadline = time.monotonic() + OPEN_TIMEOUT
        while True:
            try:
                self.connect().close()
                break
            except psycopg.OperationalError as error:
                reason = _first_line(error)
            passing = any(text in reason for text in _PASSING)
            if passing and time.monotonic() < deadline:
                time.sleep(ASK_AGAIN)
                continue
            kind = DatabaseRefused if "FATAL" in reason and not passing else DatabaseUnavailable
            raise kind(
                f"DATABASE_URL does not connect: {reason}. Check host, port, database and user."
            )
        self._pool.open()

    def connect(self) -> Connection:
        """A connection beside the pool, for a caller that keeps it (LISTEN, a long COPY)."""
        return psycopg.connect(self.url, **self._options())

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """An autocommit connection of the pool."""
        with translated_errors():
            connection = self._lend()
            try:
                with connection:
                    yield connection
            finally:
                self._pool.putconn(connection)

    def _lend(self) -> Connection:
        """Take a connection that works out of the pool.

        The pool by itself waits twice as long after each broken connection that it comes upon, and
        after each failure to connect, and would be minutes behind a Postgres that is back. So what
        is broken makes us look at all the others at once, since they probably broke together, and
        we ask anew every second, which makes the pool try to connect.
        """
        began = time.monotonic()
        while True:
            left = min(began + POOL_TIMEOUT, self._last_call) - time.monotonic()
            try:
                connection = self._pool.getconn(timeout=max(0.0, min(left, ASK_AGAIN)))
            except PoolTimeout:
                if left <= 0:
                    raise PoolTimeout(f"none within {time.monotonic() - began:.0f} s") from None
                continue
            try:
                _check_if_it_stirs(connection)
            except psycopg.Error:
                self._pool.putconn(connection)
                self._pool.check()
            else:
                return connection

    def hurry(self, seconds: float) -> None:
        """The process is to end: from now on nobody waits longer than so many seconds, all in all,
        for a connection."""
        self._last_call = time.monotonic() + seconds

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection of the pool inside a transaction."""
        with self.connection() as connection, connection.transaction():
            yield connection

    @contextmanager
    def hasty_transaction(self) -> Iterator[Connection]:
        """A transaction that need not survive a crash of Postgres, in one round trip.

        For what is done again if it is lost. Statements are sent without waiting for each other's
        results, which are there once the transaction has ended.
        """
        with self.connection() as connection, connection.pipeline(), connection.transaction():
            connection.execute("SET LOCAL synchronous_commit = off")
            yield connection

    def close(self) -> None:
        self._pool.close(timeout=2)
