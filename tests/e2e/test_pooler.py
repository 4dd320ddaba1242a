"""Behind PgBouncer in transaction mode, where no connection is a session of our own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from tests.e2e.conftest import Program, Side, everything, fill
from tests.eventually import eventually

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")


@pytest.fixture
def pooled_url(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The test's database through a pooler of five server connections."""
    directory = tmp_path_factory.mktemp("pgbouncer")
    server = conninfo.conninfo_to_dict(database_url)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    users = directory / "users.txt"
    users.write_text('"postgres" ""\n')
    config = directory / "pgbouncer.ini"
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "auth_file": users,
        "pool_mode": "transaction",
        "default_pool_size": 5,
    }
    lines = [
        "[databases]",
        f"pooled = host={server['host']} dbname={server['dbname']} user=postgres",
        "[pgbouncer]",
        *(f"{name} = {value}" for name, value in settings.items()),
    ]
    config.write_text("\n".join(lines) + "\n")
    command = [str(PGBOUNCER), "-q", str(config)]
    if os.geteuid() == 0:  # it refuses to run as root
        for path in (directory, users, config):
            path.chmod(0o755)
        # The socket of the server is in a directory that only its owner may enter.
        command[1:1] = ["-u", Path(str(server["host"])).owner()]
    pooler = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"postgresql://postgres@127.0.0.1:{port}/pooled"
    try:
        eventually(lambda: answers(url))
        yield url
    finally:
        pooler.terminate()
        pooler.wait()


def answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def test_a_sync_through_a_pooler(
    program: Program, sides: tuple[Side, Side], pooled_url: str
) -> None:
    source, target = sides
    fill(source.client, "docs", 400)
    done = program(
        *("sync", source.url, target.url, "--workers", "3", "--chunk-size", "20"),
        timeout=120,
        DATABASE_URL=pooled_url,
        SYNC_LISTEN="false",
    )
    assert done.code == 0, done.err
    assert everything(source.client, "docs") == everything(target.client, "docs")


def test_a_pooler_that_was_not_told_of_is_named(
    program: Program, sides: tuple[Side, Side], pooled_url: str
) -> None:
    source, target = sides
    fill(source.client, "docs", 400)
    done = program(
        *("sync", source.url, target.url, "--workers", "3", "--chunk-size", "20"),
        timeout=120,
        DATABASE_URL=pooled_url,
    )
    assert done.code == 2
    assert "set SYNC_LISTEN=false" in done.err.splitlines()[-1]
