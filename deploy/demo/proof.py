"""The demo's own comparison of the two servers, by Chroma's client and none of our code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import chromadb
import numpy as np
from chromadb.api.models.Collection import Collection
from chromadb.config import Settings as ClientSettings

from deploy.demo.embedding import Vectors

PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How many records are alike on both sides, and the ids of those that are not."""

    alike: int
    unlike: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A record that a query found."""

    id: str
    similarity: float  # the cosine
    text: str


def client(url: str) -> Any:
    """Chroma's client for the server at that address."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    settings = ClientSettings(anonymized_telemetry=False)
    return chromadb.HttpClient(host=host, port=int(port), settings=settings)


def compare(source: Collection, target: Collection) -> Comparison:
    """Every record of both, vectors bit by bit; ids on one side only are unlike too."""
    ids = [set(side.get(include=[])["ids"]) for side in (source, target)]
    unlike = sorted(ids[0] ^ ids[1])
    alike = 0
    shared = sorted(ids[0] & ids[1])
    for start in range(0, len(shared), PAGE):
        page = shared[start : start + PAGE]
        left, right = (dict(_records(side, page)) for side in (source, target))
        for id_ in page:
            if left[id_] == right[id_]:
                alike += 1
            else:
                unlike.append(id_)
    return Comparison(alike=alike, unlike=unlike)


def _records(collection: Collection, ids: list[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    found = collection.get(ids=ids, include=["embeddings", "documents", "metadatas", "uris"])
    vectors = np.asarray(found["embeddings"], np.float32)
    for row, id_ in enumerate(found["ids"]):
        rest = (
            (found[part] or [None] * len(ids))[row] for part in ("documents", "metadatas", "uris")
        )
        yield id_, (vectors[row].tobytes(), *rest)


def neighbours(collection: Collection, question: Vectors, count: int) -> list[Neighbour]:
    """The records nearest to the question, nearest first."""
    found = collection.query(
        query_embeddings=[question.tolist()], n_results=count, include=["documents", "distances"]
    )
    documents, distances = found["documents"], found["distances"]
    assert documents is not None
    assert distances is not None
    # Between vectors of length 1, the squared distance is 2 - 2 cosines.
    return [
        Neighbour(id=id_, similarity=1 - distance / 2, text=document)
        for id_, distance, document in zip(found["ids"][0], distances[0], documents[0], strict=True)
    ]
