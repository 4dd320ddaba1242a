"""The record batch that flows through everything: columns, not rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

Metadata = dict[str, Any]
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordBatch:
    """Some records of one collection, as columns of equal length.

    Absent is `None`: a record without metadata has `None`, never `{}` (servers return either for
    the same record). An empty document `""` is a document.
    """

    ids: list[str]
    embeddings: Embeddings  # shape (len(ids), dimension); (0, 0) when there are no records
    documents: list[str | None]
    metadatas: list[Metadata | None]
    uris: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    def content_bytes(self) -> int:
        """How much the records hold: vectors as float32, everything else as JSON."""
        columns = orjson.dumps([self.ids, self.documents, self.metadatas, self.uris])
        return self.embeddings.nbytes + len(columns)

    def take(self, rows: Sequence[int]) -> RecordBatch:
        """The records at these positions, in this order."""
        return RecordBatch(
            ids=[self.ids[row] for row in rows],
            embeddings=self.embeddings[list(rows)],
            documents=[self.documents[row] for row in rows],
            metadatas=[self.metadatas[row] for row in rows],
            uris=[self.uris[row] for row in rows],
        )
