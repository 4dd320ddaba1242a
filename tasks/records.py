"""The record batch that flows through everything: columns, not rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tasks.vectors import Embeddings, Vectors

Metadata = dict[str, Any]

_FLOAT32 = 4  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordBatch:
    """Some records of one collection, as columns of equal length.

    Absent is `None`: a record without metadata has `None`, never `{}` (servers return either for
    the same record). An empty document `""` is a document.
    """

    ids: list[str]
    vectors: Vectors
    documents: list[str | None]
    metadatas: list[Metadata | None]
    uris: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def embeddings(self) -> Embeddings:
        """The numbers of the vectors: shape (len(ids), dimension); (0, 0) for no records."""
        return self.vectors.array

    def content_bytes(self) -> int:
        """How much the records hold: vectors as float32, everything else as JSON."""
        columns = orjson.dumps([self.ids, self.documents, self.metadatas, self.uris])
        return _FLOAT32 * len(self) * self.vectors.dimension + len(columns)

    def take(self, rows: Sequence[int]) -> RecordBatch:
        """The records at these positions, in this order."""
        return RecordBatch(
            ids=[self.ids[row] for row in rows],
            vectors=self.vectors.take(rows),
            documents=[self.documents[row] for row in rows],
            metadatas=[self.metadatas[row] for row in rows],
            uris=[self.uris[row] for row in rows],
        )
