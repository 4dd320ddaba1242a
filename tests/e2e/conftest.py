"""Real servers, and the command as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import chromadb
import numpy as np
import psycopg
import pytest
from chromadb.api import ClientAPI
from chromadb.config import Settings

from tasks.stores.server import ChromaServer
from tests.eventually import eventually

COMMAND = [sys.executable, "-m", "coordinator.cli"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def error_line(self) -> str:
        """The one line of an error; fails if there is more, or less."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0]


class Running(subprocess.Popen[str]):
    """A process that a test has started; within a `with`, it does not outlive a test that fails."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)


class Program:
    """Runs `chroma-sync` with nothing in its environment but what it is given."""

    def __init__(self, home: Path, database_url: str | None) -> None:
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if database_url is not None:
            self.environ["DATABASE_URL"] = database_url

    def start(self, *arguments: str, **environ: str) -> Running:
        return Running(
            [*COMMAND, *arguments],
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, timeout: float = 120, **environ: str) -> Finished:
        process = self.start(*arguments, **environ)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return Finished(code=process.returncode, out=out, err=err)


@pytest.fixture
def program(tmp_path: Path, database_url: str) -> Program:
    return Program(tmp_path, database_url)


Ask = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def ask(database_url: str) -> Iterator[Ask]:
    """Plain SQL on the ledger."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield lambda query: connection.execute(query.encode()).fetchall()


def wait_for_a_chunk(ask: Ask) -> None:
    eventually(
        lambda: ask("SELECT 1 FROM sync_tasks WHERE task_status = 'completed' LIMIT 1"), within=60
    )


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URLs of two servers that all tests share; each test has a database of its own there."""
    root = tmp_path_factory.mktemp("chroma")
    for side in ("source", "target"):
        (root / side).mkdir()
    with ChromaServer(root / "source") as source, ChromaServer(root / "target") as target:
        yield source.endpoint, target.endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One store, by its address and by the chromadb client."""

    url: str
    client: ClientAPI


@pytest.fixture
def sides(servers: tuple[str, str]) -> tuple[Side, Side]:
    """A fresh database on either server."""
    name = f"db_{uuid4().hex[:8]}"
    return open_side(servers[0], name), open_side(servers[1], name)


def open_side(url: str, database: str) -> Side:
    parts = urlsplit(url)
    admin = chromadb.AdminClient(
        Settings(
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host=parts.hostname,
            chroma_server_http_port=parts.port,
            anonymized_telemetry=False,
        )
    )
    admin.create_database(database)
    client = chromadb.HttpClient(host=parts.hostname or "", port=parts.port or 0, database=database)
    return Side(url=f"{url}?database={database}", client=client)


def fill(
    client: ClientAPI,
    name: str,
    count: int,
    *,
    dimension: int = 16,
    space: Literal["l2", "cosine", "ip"] = "l2",
) -> chromadb.Collection:
    """A collection of records of every common shape."""
    collection = client.create_collection(
        name,
        metadata={"owner": "tests"},
        configuration={"hnsw": {"space": space, "ef_construction": 77, "max_neighbors": 12}},
        embedding_function=None,
    )
    rng = np.random.default_rng(count)
    for start in range(0, count, 2000):
        rows = range(start, min(start + 2000, count))
        collection.add(
            ids=[f"id-{row}" for row in rows],
            embeddings=rng.standard_normal((len(rows), dimension)).astype(np.float32),
            documents=[f"document {row} " + "é" * (row % 50) for row in rows],
            metadatas=[
                {"row": row, "half": row / 2, "even": row % 2 == 0, "name": f"n{row}"}
                for row in rows
            ],
        )
    return collection


def embedding_of(client: ClientAPI, name: str, id_: str) -> Any:
    """The vector of one record, to write it again unchanged: the client wants one."""
    found = client.get_collection(name, embedding_function=None).get([id_], include=["embeddings"])
    assert found["embeddings"] is not None
    return found["embeddings"]


def everything(client: ClientAPI, name: str) -> dict[str, tuple[Any, ...]]:
    """All records by id, as the chromadb client reads them."""
    collection = client.get_collection(name, embedding_function=None)
    records: dict[str, tuple[Any, ...]] = {}
    for offset in range(0, collection.count(), 5000):
        page = collection.get(
            limit=5000, offset=offset, include=["embeddings", "documents", "metadatas", "uris"]
        )
        columns = (page["embeddings"], page["documents"], page["metadatas"], page["uris"])
        for id_, embedding, document, metadata, uri in zip(page["ids"], *columns, strict=True):  # type: ignore[arg-type]
            records[id_] = (tuple(map(float, embedding)), document, metadata or None, uri)
    assert len(records) == collection.count()
    return records
