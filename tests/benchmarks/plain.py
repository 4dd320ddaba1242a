"""The script that people write: page through the source by offset, upsert everything.

    python -m tests.benchmarks.plain SOURCE TARGET

It proves nothing, deletes nothing, and loses its place when it is stopped.
"""

from __future__ import annotations

import sys

from tests.benchmarks.corpus import BATCH, collection_of


def main(source_url: str, target_url: str) -> None:
    source, target = collection_of(source_url), collection_of(target_url)
    offset = 0
    while True:
        page = source.get(
            limit=BATCH, offset=offset, include=["embeddings", "documents", "metadatas", "uris"]
        )
        if not page["ids"]:
            return
        target.upsert(
            ids=page["ids"],
            embeddings=page["embeddings"],
            documents=page["documents"],
            metadatas=page["metadatas"],
        )
        offset += len(page["ids"])


if __name__ == "__main__":
    main(*sys.argv[1:])
