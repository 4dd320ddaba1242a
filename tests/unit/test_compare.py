"""Comparing and planning: no difference is missed, none invented, and the plan ends them all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.compare import Change, compare, plan_writes
from tasks.records import Metadata, RecordBatch
from tasks.vectors import Vectors
from tests.unit.record_batches import METADATAS, TEXT, VALUES, batch, record_batches

FEW_IDS = st.sampled_from("abcdefgh")


def test_equal_batches_are_the_same() -> None:
    records = batch("a", "b", documents=["x", None], metadatas=[{"k": 1}, None])
    difference = compare(records, replace(records, ids=list(records.ids)), space="l2")
    assert not difference
    assert difference.same == 2


def test_missing_and_extra_records_are_found_in_any_order() -> None:
    difference = compare(batch("a", "b", "c"), batch("d", "c", "a"), space="l2")
    assert (difference.missing, difference.extra) == ([1], [0])
    assert (difference.differing, difference.same) == ([], 2)


def test_empty_batches_compare() -> None:
    assert compare(batch(), batch("a"), space="l2").extra == [0]
    assert compare(batch("a"), batch(), space="cosine").missing == [0]
    assert not compare(batch(), batch(), space="ip")


def test_what_differs_is_named() -> None:
    source = batch(
        *("a", "b", "c"),
        embeddings=[[1, 2], [3, 4], [5, 6]],
        documents=["x", None, "same"],
        metadatas=[{"k": 1, "gone": 2, "kept": 3}, None, None],
        uris=["u", "v", None],
    )
    target = batch(
        *("c", "b", "a"),
        embeddings=[[5, 6], [3, 4.0000005], [9, 9]],
        documents=["same", "", "y"],
        metadatas=[None, {"new": [1]}, {"k": 1.0, "kept": 3}],
        uris=[None, "v", None],
    )
    difference = compare(source, target, space="l2")
    assert difference.differing == [
        Change(
            source_row=0,
            target_row=2,
            what=("embedding", "document", "uri", "metadata:gone", "metadata:k"),
        ),
        Change(source_row=1, target_row=1, what=("embedding", "document", "metadata:new")),
    ]
    assert difference.same == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1, True),
        (1, True, False),
        (1, 1.0, False),
        (True, 1.0, False),
        (0, False, False),
        ("1", 1, False),
        (0.0, -0.0, True),
        (0.1, 0.1 + 2**-56, True),
        (0.1, 0.1 * (1 + 3 * 2**-52), True),
        (0.1, 0.1 * (1 + 2**-49), False),
        (1e-300, 0.0, False),
        (2**53, 2**53 + 1, False),
        ([1, 2], [1, 2.0], False),
        ([0.1], [0.1 + 2**-56], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ([1], 1, False),
        ({"#type": "x", "values": [0.1]}, {"#type": "x", "values": [0.1 + 2**-56]}, True),
        ({"#type": "x", "values": [0.1]}, {"#type": "x", "values": [0.2]}, False),
    ],
)
def test_metadata_values_keep_their_types(one: Any, other: Any, same: bool) -> None:
    left, right = batch("a", metadatas=[{"k": one}]), batch("a", metadatas=[{"k": other}])
    for source, target in ((left, right), (right, left)):
        assert bool(compare(source, target, space="l2")) is not same


def _pair(one: Any, other: Any) -> tuple[RecordBatch, RecordBatch]:
    return (
        batch("same", "x", embeddings=[[1, 2], one]),
        batch("same", "x", embeddings=[[1, 2], other]),
    )


@pytest.mark.parametrize("space", ["l2", "ip"])
@pytest.mark.parametrize(
    "other", [[1.0000001, 5], [1, np.nextafter(np.float32(5), np.float32(6))], [-1, 5]]
)
def test_vectors_are_compared_bit_by_bit(space: str, other: list[float]) -> None:
    source, target = _pair([1, 5], other)
    assert [change.source_row for change in compare(source, target, space=space).differing] == [1]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([1, 5], [1 + 2**-22, 5], True),
        ([1, 5], [1 + 2**-21, 5], False),
        ([1, 5], [1, 5 - 2**-20], True),
        ([1, 5], [1, 5 - 2**-18], False),
        ([1, 5], [-1, 5], False),
        ([0, 1], [2**-149, 1], True),
        ([0, 1], [2**-140, 1], False),
        # An element far below the vector's length is rounded with it.
        ([2**-110, 2**30], [2**-110 + 2**-119, 2**30], True),
        ([2**-110, 2**30], [2**-110 + 2**-117, 2**30], False),
        ([float("nan"), 1], [float("nan"), 1], True),
        ([float("nan"), 1], [1, 1], False),
        ([float("inf"), 1], [float("inf"), 2], False),
        ([3e38, 3e38], [3e38, 1], False),
    ],
)
def test_cosine_vectors_have_the_servers_own_tolerance(
    one: list[float], other: list[float], same: bool
) -> None:
    source, target = _pair(one, other)
    assert bool(compare(source, target, space="cosine")) is not same


def test_another_dimension_differs() -> None:
    difference = compare(batch("a"), batch("a", embeddings=[[1, 2, 3]]), space="cosine")
    assert difference.differing == [Change(source_row=0, target_row=0, what=("embedding",))]


def _apply(target: RecordBatch, source: RecordBatch, space: str) -> RecordBatch:
    """A store in memory that merges as Chroma does: what an upsert does not name stays."""
    writes = plan_writes(source, target, compare(source, target, space=space))
    rows = {
        id_: (
            target.embeddings[row],
            target.documents[row],
            target.metadatas[row],
            target.uris[row],
        )
        for row, id_ in enumerate(target.ids)
    }

    def put(records: RecordBatch) -> None:
        for row, id_ in enumerate(records.ids):
            _, document, metadata, uri = rows.get(id_, (None, None, None, None))
            if records.documents[row] is not None:
                document = records.documents[row]
            if records.uris[row] is not None:
                uri = records.uris[row]
            merged: Metadata = {**(metadata or {}), **(records.metadatas[row] or {})}
            kept = {key: value for key, value in merged.items() if value is not None}
            rows[id_] = (records.embeddings[row], document, kept or None, uri)

    for id_ in [*writes.delete, *writes.replace.ids]:
        del rows[id_]
    for records in (writes.replace, writes.upsert, writes.add):
        put(records)
    values = list(rows.values())
    return RecordBatch(
        ids=list(rows),
        vectors=Vectors.of(
            np.array([value[0] for value in values], dtype=np.float32).reshape(-1, 3)
        ),
        documents=[value[1] for value in values],
        metadatas=[value[2] for value in values],
        uris=[value[3] for value in values],
    )


@given(
    source=record_batches(ids=FEW_IDS),
    target=record_batches(ids=FEW_IDS),
    space=st.sampled_from(["l2", "cosine"]),
)
def test_the_plan_makes_the_target_equal(
    source: RecordBatch, target: RecordBatch, space: str
) -> None:
    after = _apply(target, source, space)
    assert not compare(source, after, space=space)
    assert not plan_writes(source, after, compare(source, after, space=space))


@given(records=record_batches(), data=st.data())
def test_one_change_is_one_difference(records: RecordBatch, data: st.DataObject) -> None:
    if not len(records):
        return
    row = data.draw(st.integers(0, len(records) - 1))
    metadatas = list(records.metadatas)
    metadatas[row] = {**(metadatas[row] or {}), "added": data.draw(VALUES)}
    if "added" in (records.metadatas[row] or {}):
        return
    order = data.draw(st.permutations(range(len(records))))
    difference = compare(records.take(order), replace(records, metadatas=metadatas), space="ip")
    assert difference.differing == [
        Change(source_row=order.index(row), target_row=row, what=("metadata:added",))
    ]
    assert difference.same == len(records) - 1


@given(metadata=METADATAS, key=TEXT)
def test_a_removed_key_is_sent_as_none(metadata: Metadata | None, key: str) -> None:
    assume(key + "!" not in (metadata or {}))
    source = batch("a", metadatas=[metadata])
    target = batch("a", metadatas=[{**(metadata or {}), key + "!": 1}])
    writes = plan_writes(source, target, compare(source, target, space="l2"))
    assert writes.upsert.metadatas == [{**(metadata or {}), key + "!": None}]
    assert (len(writes.add), len(writes.replace), writes.delete) == (0, 0, [])


def test_a_removed_document_or_uri_takes_a_replacement() -> None:
    source = batch("a", "b", "c", documents=[None, "x", ""], uris=[None, None, "u"])
    target = batch("a", "b", "c", documents=["d", "x", "y"], uris=[None, "u", None])
    writes = plan_writes(source, target, compare(source, target, space="l2"))
    assert writes.replace.ids == ["a", "b"]
    assert writes.upsert.ids == ["c"]
