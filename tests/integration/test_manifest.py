"""Manifests: whatever the ids of the two sides are, chunks tile them without hole or overlap."""

from __future__ import annotations

from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator import manifest
from tasks.database import Database
from tests.integration.ledger_rows import plan_run

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def test_chunks_tile_any_manifest(database: Database) -> None:
    run_id, _ = plan_run(database, ["unused"], chunk_size=1, enqueue=False)

    @given(
        source=st.lists(ANY_TEXT, unique=True, max_size=60),
        target=st.lists(ANY_TEXT, unique=True, max_size=30),
        shared=st.integers(0, 60),
        chunk_size=st.integers(1, 70),
    )
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    def tile(source: list[str], target: list[str], shared: int, chunk_size: int) -> None:
        target = list(dict.fromkeys(source[:shared] + target))
        collection_id = UUID(int=1)
        with database.transaction() as connection, connection.transaction(force_rollback=True):
            staged = manifest.stage(
                connection, (id_.encode() for id_ in source), (id_.encode() for id_ in target)
            )
            extent = manifest.freeze(connection, run_id, collection_id, chunk_size=chunk_size)
            rows = connection.execute(
                "SELECT chunk_start_offset, chunk_end_offset, ids FROM sync_manifests"
                " WHERE collection_id = %s ORDER BY 1",
                [collection_id],
            ).fetchall()
        assert (staged.source_count, staged.target_count) == (len(source), len(target))
        assert extent.first_extra == len(source)
        assert extent.end == len({*source, *target})
        # Without hole or overlap, none empty, none too large ...
        assert [start for start, _, _ in rows] == [0, *(end for _, end, _ in rows)][: len(rows)]
        assert all(0 < end - start == len(ids) <= chunk_size for start, end, ids in rows)
        # ... the source's ids in their order, then those that only the target has, each once.
        frozen = [str(id_, "utf-8") for _, _, ids in rows for id_ in ids]
        assert frozen[: len(source)] == source
        assert sorted(frozen[len(source) :]) == sorted(set(target) - set(source))

    tile()
