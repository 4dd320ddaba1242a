"""Records for the benchmarks, and the collections that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import chromadb
import numpy as np
import numpy.typing as npt
from chromadb.api import ClientAPI
from chromadb.config import Settings

COLLECTION = "docs"
BATCH = 1000
DOCUMENT = 250  # characters
_WORDS = ("chunk", "lease", "ledger", "manifest", "proof", "queue", "record", "source", "target")


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Columns, as the chromadb client takes them."""

    ids: list[str]
    embeddings: npt.NDArray[np.float32]
    documents: list[str]
    metadatas: list[dict[str, Any]]

    @classmethod
    def make(cls, numbers: Sequence[int], dimension: int, *, version: int = 0) -> Self:
        """Records with these numbers; another `version` of one differs in all but its id."""
        rng = np.random.default_rng([version, dimension, len(numbers)])
        documents = [" ".join(words) for words in rng.choice(_WORDS, (len(numbers), DOCUMENT // 5))]
        return cls(
            ids=[f"record-{number:07}" for number in numbers],
            embeddings=rng.standard_normal((len(numbers), dimension), dtype=np.float32),
            documents=[document[:DOCUMENT] for document in documents],
            metadatas=[
                {"number": number, "score": number / 7, "even": number % 2 == 0, "version": version}
                for number in numbers
            ],
        )

    def batches(self, size: int = BATCH) -> Iterator[Records]:
        for start in range(0, len(self.ids), size):
            part = slice(start, start + size)
            yield Records(
                ids=self.ids[part],
                embeddings=self.embeddings[part],
                documents=self.documents[part],
                metadatas=self.metadatas[part],
            )


def connect(url: str) -> ClientAPI:
    """The chromadb client of a store's address, in the form that chroma-sync takes."""
    parts = urlsplit(url)
    (database,) = parse_qs(parts.query)["database"]
    return chromadb.HttpClient(
        host=parts.hostname or "",
        port=parts.port or 0,
        database=database,
        settings=Settings(anonymized_telemetry=False),
    )


def new_database(server: str, name: str) -> str:
    """Make a database on a server; returns its address."""
    parts = urlsplit(server)
    admin = chromadb.AdminClient(
        Settings(
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host=parts.hostname,
            chroma_server_http_port=parts.port,
            anonymized_telemetry=False,
        )
    )
    admin.create_database(name)
    return f"{server}?database={name}"


def collection_of(url: str) -> chromadb.Collection:
    """The collection of the benchmark there, made if it is not there."""
    return connect(url).get_or_create_collection(
        COLLECTION, configuration={"hnsw": {"space": "l2"}}, embedding_function=None
    )
