"""Manifests: whatever the ids of the two sides are, chunks tile them without hole or overlap."""

from __future__ import annotations

import dataclasses
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator import manifest
from tasks.database import Connection, Database
from tests.integration.ledger_rows import plan_run

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def pages(ids: list[str]) -> list[list[str]]:
    """As a store lists them."""
    return [ids[start : start + 20] for start in range(0, len(ids), 20)]


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
            staged = manifest.stage(connection, pages(source), pages(target))
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


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What a task of a run has left behind."""

    ids: list[str]
    status: str
    unproven: frozenset[int]

    def alike(self) -> set[str]:
        """The ids that the run is sure of."""
        if self.status != "completed":
            return set()
        return {id_ for place, id_ in enumerate(self.ids) if place not in self.unproven}


SOME_IDS = [f"id-{n}" for n in range(12)]
CHUNKS = st.builds(
    Chunk,
    ids=st.lists(st.sampled_from(SOME_IDS), min_size=1, max_size=6, unique=True),
    status=st.sampled_from(["completed", "completed", "failed"]),
    unproven=st.frozensets(st.integers(0, 5), max_size=6),
)


def lay(connection: Connection, kind: str, chunks: list[Chunk]) -> UUID:
    """A run with these chunks, as its workers would have left it."""
    row = connection.execute(
        "INSERT INTO sync_runs (kind, source_url, target_url, source_endpoint, target_endpoint,"
        " queue_name) VALUES (%s, 's', 't', 's', 't', 'q') RETURNING id",
        [kind],
    ).fetchone()
    assert row is not None
    (run_id,) = row
    for number, chunk in enumerate(chunks):
        start, end = number * 10, number * 10 + len(chunk.ids)
        connection.execute(
            "INSERT INTO sync_manifests VALUES (%s, %s, %s, %s, %s)",
            [run_id, UUID(int=1), start, end, [id_.encode() for id_ in chunk.ids]],
        )
        task = connection.execute(
            "INSERT INTO sync_tasks (run_id, collection_id, collection_name, chunk_start_offset,"
            " chunk_end_offset, message_id, task_status, worker_id, started_at,"
            " completed_at) VALUES (%s, %s, 'c', %s, %s, gen_random_uuid(), %s, 'w', now(),"
            " CASE WHEN %s = 'completed' THEN now() END) RETURNING id",
            [run_id, UUID(int=1), start, end, chunk.status, chunk.status],
        ).fetchone()
        assert task is not None
        places = sorted(place for place in chunk.unproven if place < len(chunk.ids))
        if places and chunk.status == "completed":
            connection.execute(
                "INSERT INTO sync_unproven VALUES (%s, %s, %s)",
                [task[0], places, [7] * len(places)],
            )
    return UUID(str(run_id))


def test_a_verification_leaves_out_only_what_is_known_to_be_alike(database: Database) -> None:
    collection_id = UUID(int=1)

    def without_repeats(chunks: list[Chunk]) -> list[Chunk]:
        seen: set[str] = set()
        return [
            dataclasses.replace(chunk, ids=ids)
            for chunk in chunks
            for ids in ([id_ for id_ in chunk.ids if not (id_ in seen or seen.add(id_))],)  # type: ignore[func-returns-value]
            if ids
        ]

    chunk_lists = st.lists(CHUNKS, max_size=3).map(without_repeats)

    @given(
        first=chunk_lists,
        found=chunk_lists,
        again=chunk_lists,
        passes=st.booleans(),
        source=st.lists(st.sampled_from(SOME_IDS), unique=True),
        target=st.lists(st.sampled_from(SOME_IDS), unique=True),
        one_way=st.booleans(),
    )
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    def leave_out(
        first: list[Chunk],
        found: list[Chunk],
        again: list[Chunk],
        passes: bool,
        source: list[str],
        target: list[str],
        one_way: bool,
    ) -> None:
        with database.transaction() as connection, connection.transaction(force_rollback=True):
            runs = [("sync", first)]
            if passes:
                runs += [("verify", found), ("sync", again)]
            known = [lay(connection, kind, chunks) for kind, chunks in runs]
            written = known[-1:]
            run_id = lay(connection, "verify", [])
            manifest.stage(connection, pages(source), pages(target))
            manifest.settle(connection, collection_id, known=known, written=written)
            manifest.freeze(connection, run_id, collection_id, chunk_size=5, one_way=one_way)
            rows = connection.execute(
                "SELECT unnest(ids) FROM sync_manifests WHERE run_id = %s", [run_id]
            ).fetchall()
        # A model of it: alike by some run, and not touched without proof by the last that wrote.
        alike = {id_ for _, chunks in runs for one in chunks for id_ in one.alike()}
        touched = {id_ for one in runs[-1][1] for id_ in {*one.ids} - one.alike()}
        settled = (alike - touched) & {*source} & {*target}
        expected = {*source} - settled
        if not one_way:
            expected |= {*target} - {*source}
        looked_at = [str(id_, "utf-8") for (id_,) in rows]
        assert sorted(looked_at) == sorted(expected)

    leave_out()
