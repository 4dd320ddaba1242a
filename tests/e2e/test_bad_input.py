"""Bad input: one clear line, exit 2, no traceback, and nothing lost."""

from __future__ import annotations

import time
from pathlib import Path

import chromadb
import numpy as np
import psycopg
import pytest

from tests.e2e.conftest import Program, Side, everything, fill

Sides = tuple[Side, Side]


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("http://127.0.0.1:9", "{target}", "127.0.0.1:9"),
        ("{source}", "http://127.0.0.1:9", "127.0.0.1:9"),
        ("{source}", "{source}", "are the same store"),
        ("/nowhere/at/all", "{target}", "/nowhere/at/all"),
        ("{not_chroma}", "{target}", "not_chroma"),
        ("{source}", "{not_chroma}", "not_chroma"),
        ("{server}?database=nope", "{target}", "no database 'nope'"),
        ("{server}?tenant=nope", "{target}", "no tenant 'nope'"),
        ("ftp://host", "{target}", "ftp://"),
        ("http://user:hush@host", "{target}", "token_env"),
        ("{server}?token_env=NOT_SET_ANYWHERE", "{target}", "NOT_SET_ANYWHERE"),
    ],
)
def test_an_address_that_cannot_be_used(
    program: Program,
    servers: tuple[str, str],
    sides: Sides,
    tmp_path: Path,
    source: str,
    target: str,
    says: str,
) -> None:
    not_chroma = tmp_path / "not_chroma"
    not_chroma.mkdir()
    (not_chroma / "notes.txt").write_text("mine")
    known = {
        "source": sides[0].url,
        "target": sides[1].url,
        "server": servers[0],
        "not_chroma": str(not_chroma),
    }
    done = program("sync", source.format(**known), target.format(**known))
    assert done.code == 2
    assert says in done.error_line
    assert "hush" not in done.err + done.out
    assert done.out == ""
    assert (not_chroma / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sync", "{source}", "{target}", "--collection", "nope"), "nope"),
        (("sync", "{source}", "{target}", "--chunk-size", "0"), "--chunk-size"),
        (("sync", "{source}", "{target}", "--chunk-size", "-5"), "--chunk-size"),
        (("sync", "{source}", "{target}", "--chunk-size", "many"), "--chunk-size"),
        (("sync", "{source}", "{target}", "--workers", "-1"), "--workers"),
        (("sync", "{source}"), "TARGET"),
        (("status", "ffffffff"), "No run 'ffffffff'"),
        (("retry", "ffffffff"), "No run 'ffffffff'"),
        (("frobnicate",), "frobnicate"),
        (("coordinator",), "SYNC_SOURCE_URL"),
    ],
)
def test_arguments_that_cannot_be_used(
    program: Program, sides: Sides, arguments: tuple[str, ...], says: str
) -> None:
    known = {"source": sides[0].url, "target": sides[1].url}
    done = program(*(argument.format(**known) for argument in arguments))
    assert done.code == 2
    assert says in done.error_line


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"DATABASE_URL": "postgresql://u:hush@127.0.0.1:9/db"}, "does not connect"),
        ({"DATABASE_URL": "postgresql://u:hush@10.255.255.1/db"}, "does not connect"),
        ({"DATABASE_URL": "hush hush"}, "not a Postgres address"),
        ({"SYNC_CHUNK_SIZE": "zero"}, "SYNC_CHUNK_SIZE"),
    ],
)
def test_settings_that_cannot_be_used(program: Program, environ: dict[str, str], says: str) -> None:
    began = time.monotonic()
    done = program("status", timeout=60, **environ)
    assert time.monotonic() - began < 10
    assert done.code == 2
    assert says in done.error_line
    assert "hush" not in done.err + done.out


def test_a_schema_newer_than_the_program(program: Program, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO sync_migrations VALUES (9999, 'future', 'x')")
    done = program("status")
    assert done.code == 2
    assert "newer than this program" in done.error_line


def test_a_target_collection_that_does_not_fit_is_refused_before_anything_is_written(
    program: Program, sides: Sides
) -> None:
    source, target = sides
    fill(source.client, "aaa", 20)
    fill(source.client, "space", 20)
    fill(target.client, "space", 5, space="cosine")
    before = everything(target.client, "space")
    done = program("sync", source.url, target.url)
    assert done.code == 2
    assert "source has space l2, 16 dimensions" in done.error_line
    assert "target has space cosine, 16 dimensions" in done.error_line
    assert everything(target.client, "space") == before
    assert [one.name for one in target.client.list_collections()] == ["space"]

    fill(source.client, "dimension", 20)
    fill(target.client, "dimension", 5, dimension=8)
    done = program("sync", source.url, target.url, "--collection", "dimension")
    assert done.code == 2
    assert "target has space l2, 8 dimensions" in done.error_line


def test_a_server_that_is_no_chroma(program: Program, sides: Sides) -> None:
    import http.server
    import threading

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = program("sync", f"http://127.0.0.1:{server.server_port}", sides[1].url)
        server.shutdown()
    assert done.code == 2
    assert "no Chroma server" in done.error_line


def test_a_directory_that_is_open_elsewhere_is_refused(
    program: Program, sides: Sides, tmp_path: Path
) -> None:
    import gc

    directory = tmp_path / "mine"
    client = chromadb.PersistentClient(str(directory))
    client.create_collection("docs", embedding_function=None).add(
        ids=["a"], embeddings=np.asarray([[1.0, 2.0]], dtype=np.float32)
    )
    done = program("sync", str(directory), sides[1].url)
    assert done.code == 2
    assert str(directory) in done.error_line
    del client
    gc.collect()
