"""Record batches for tests, drawn by Hypothesis or made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tasks.records import Metadata, RecordBatch
from tasks.vectors import Vectors

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = (
    TEXT
    | st.booleans()
    | NUMBERS
    | st.lists(TEXT, min_size=1, max_size=3)
    | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3)
    | st.lists(st.booleans(), min_size=1, max_size=3)
)
METADATAS = st.none() | st.dictionaries(TEXT, VALUES, min_size=1, max_size=4)


@st.composite
def record_batches(
    draw: st.DrawFn, *, max_size: int = 6, dimension: int = 3, ids: st.SearchStrategy[str] = TEXT
) -> RecordBatch:
    names = draw(st.lists(ids, unique=True, max_size=max_size))
    size = len(names)

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=size, max_size=size))

    elements = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return RecordBatch(
        ids=names,
        vectors=Vectors.of(draw(arrays.arrays(np.float32, (size, dimension), elements=elements))),
        documents=column(st.none() | TEXT),
        metadatas=column(METADATAS),
        uris=column(st.none() | TEXT),
    )


def batch(
    *ids: str,
    embeddings: list[list[float]] | None = None,
    documents: list[str | None] | None = None,
    metadatas: list[Metadata | None] | None = None,
    uris: list[str | None] | None = None,
) -> RecordBatch:
    """Records with these ids; what is not given is absent, and vectors are (1, 2)."""
    size = len(ids)
    vectors = np.array(embeddings or [[1, 2]] * size, dtype=np.float32)
    return RecordBatch(
        ids=list(ids),
        vectors=Vectors.of(vectors if size else np.empty((0, 0), dtype=np.float32)),
        documents=documents or [None] * size,
        metadatas=metadatas or [None] * size,
        uris=uris or [None] * size,
    )
