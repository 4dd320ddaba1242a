"""A real server of Chroma 0.6.3, the oldest that is supported, and a plain client for it.

chromadb's own client refuses servers of other versions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen
from uuid import UUID

import numpy as np
import pytest

from tasks.stores import server
from tasks.stores.server import ChromaServer

PROGRAM = Path(sys.prefix) / "chroma-0.6.3" / "bin" / "chroma"


@contextmanager
def old_chroma(directory: Path) -> Iterator[str]:
    """The URL of a 0.6.3 that serves this directory; skips the test where it is not installed."""
    if not PROGRAM.exists():
        pytest.skip("Chroma 0.6.3 is not installed: make test installs it, on Python 3.11 or 3.12")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_executable", lambda: str(PROGRAM))
        running = ChromaServer(directory).start()
    with running:
        yield running.endpoint


class PlainClient:
    """As much of chromadb's client as tests need, by plain HTTP, with the same names."""

    def __init__(self, url: str, *, database: str = "default_database") -> None:
        self._path = f"{url}/api/v2/tenants/default_tenant/databases/{database}/collections"

    def create_collection(
        self,
        name: str,
        *,
        metadata: dict[str, Any] | None = None,
        configuration: dict[str, Any] | None = None,
        embedding_function: None = None,
    ) -> PlainCollection:
        space = (configuration or {}).get("hnsw", {}).get("space", "l2")
        given = {**(metadata or {}), **({"hnsw:space": space} if space != "l2" else {})}
        return self._opened(ask(self._path, {"name": name, "metadata": given or None}))

    def get_collection(self, name: str, embedding_function: None = None) -> PlainCollection:
        return self._opened(ask(f"{self._path}/{quote(name, safe='')}"))

    def delete_collection(self, name: str) -> None:
        ask(f"{self._path}/{quote(name, safe='')}", method="DELETE")

    def list_collections(self) -> list[PlainCollection]:
        return [self._opened(one) for one in ask(self._path)]

    def count_collections(self) -> int:
        return len(self.list_collections())

    def _opened(self, found: dict[str, Any]) -> PlainCollection:
        return PlainCollection(
            id=UUID(found["id"]),
            name=found["name"],
            metadata=found["metadata"],
            path=f"{self._path}/{found['id']}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainCollection:
    id: UUID
    name: str
    metadata: dict[str, Any] | None
    path: str

    def add(self, ids: Sequence[str], embeddings: Any, **columns: Any) -> None:
        self._write("add", ids, embeddings, columns)

    def update(self, ids: Sequence[str], embeddings: Any = None, **columns: Any) -> None:
        self._write("update", ids, embeddings, columns)

    def get(
        self,
        ids: Sequence[str] | None = None,
        include: Sequence[str] = ("metadatas", "documents"),
        limit: int | None = None,
        offset: int | None = None,
    ) -> dict[str, Any]:
        body = {"ids": ids, "include": list(include), "limit": limit, "offset": offset}
        found = ask(f"{self.path}/get", body)
        assert isinstance(found, dict)
        if found["embeddings"] is not None:  # in JSON, a float32 is the decimal number next to it
            found["embeddings"] = np.array(found["embeddings"], dtype=np.float32)
        return found

    def delete(self, ids: Sequence[str]) -> None:
        ask(f"{self.path}/delete", {"ids": list(ids)})

    def count(self) -> int:
        return int(ask(f"{self.path}/count"))

    def _write(
        self, verb: str, ids: Sequence[str], embeddings: Any, columns: dict[str, Any]
    ) -> None:
        vectors = None if embeddings is None else np.asarray(embeddings).tolist()
        ask(f"{self.path}/{verb}", {"ids": list(ids), "embeddings": vectors, **columns})


def ask(url: str, body: Any = None, *, method: str | None = None) -> Any:
    """The JSON that a server answers with; a body is posted."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {"content-type": "application/json"}, method=method)
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)
