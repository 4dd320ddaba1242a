"""What the servers themselves can do: prepared bodies are sent, answers are thrown away."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any
from urllib.parse import urlsplit

import chromadb
import numpy as np
import numpy.typing as npt
import orjson
import urllib3

from tests.benchmarks.corpus import Records, collection_of

_EVERYTHING = ["embeddings", "documents", "metadatas", "uris"]


def write_bodies(records: Records) -> list[bytes]:
    """The requests that write all records, as the chromadb client sends them."""
    return [
        write_body(
            ids=batch.ids,
            embeddings=batch.embeddings,
            documents=batch.documents,
            metadatas=batch.metadatas,
        )
        for batch in records.batches()
    ]


def write_body(
    *,
    ids: Sequence[str],
    embeddings: npt.NDArray[np.float32],
    documents: Sequence[str] | None = None,
    metadatas: Sequence[Mapping[str, Any]],
) -> bytes:
    """The request that writes these records."""
    return orjson.dumps(
        {
            "ids": ids,
            "embeddings": [b64encode(vector.tobytes()).decode() for vector in embeddings],
            "documents": documents,
            "metadatas": metadatas,
            "uris": None,
        }
    )


def read_bodies(ids: Sequence[str], size: int) -> list[bytes]:
    """The requests that read everything of all these records."""
    return [
        orjson.dumps({"ids": ids[start : start + size], "include": _EVERYTHING})
        for start in range(0, len(ids), size)
    ]


def write(url: str, bodies: Sequence[bytes], *, verb: str = "upsert", threads: int = 1) -> float:
    """Send these one after the other, or several at once; returns the seconds it took."""
    return _send([(_path(url, verb), body) for body in bodies], threads)


def read(urls: Sequence[str], bodies: Sequence[bytes], *, threads: int) -> float:
    """Send these to each of the addresses, so many at once in all; returns the seconds."""
    paths = [_path(url, "get") for url in urls]
    return _send([(path, body) for body in bodies for path in paths], threads)


def _path(url: str, verb: str) -> str:
    collection: chromadb.Collection = collection_of(url)
    parts = urlsplit(url)
    root = f"{parts.scheme}://{parts.netloc}/api/v2/tenants/{collection.tenant}"
    return f"{root}/databases/{collection.database}/collections/{collection.id}/{verb}"


def _send(requests: Sequence[tuple[str, bytes]], threads: int) -> float:
    with (
        urllib3.PoolManager(maxsize=threads, retries=False) as pool,
        ThreadPoolExecutor(threads) as executor,
    ):
        began = time.monotonic()
        for _ in executor.map(_post, repeat(pool), requests):
            pass
        return time.monotonic() - began


def _post(pool: urllib3.PoolManager, request: tuple[str, bytes]) -> None:
    url, body = request
    answer = pool.request(
        "POST", url, body=body, headers={"content-type": "application/json"}, preload_content=False
    )
    while answer.read(1 << 20):
        pass
    answer.release_conn()
    if answer.status >= 300:
        raise RuntimeError(f"{url}: HTTP {answer.status}")
