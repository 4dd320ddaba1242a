"""Digests: equal for equal records in any order and any chunks, and for no others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.digest import (
    add,
    batch_digest,
    from_hex,
    record_digests,
    to_hex,
    total,
)
from tasks.records import RecordBatch
from tasks.vectors import Vectors
from tests.unit.record_batches import batch, record_batches


@given(records=record_batches(), data=st.data(), embeddings=st.booleans())
def test_order_and_chunks_do_not_matter(
    records: RecordBatch, data: st.DataObject, embeddings: bool
) -> None:
    order = data.draw(st.permutations(range(len(records))))
    cut = data.draw(st.integers(0, len(records)))
    first, second = records.take(order[:cut]), records.take(order[cut:])
    assert add(
        batch_digest(first, embeddings=embeddings), batch_digest(second, embeddings=embeddings)
    ) == batch_digest(records, embeddings=embeddings)


@given(records=record_batches())
def test_the_order_of_metadata_keys_does_not_matter(records: RecordBatch) -> None:
    turned = [
        dict(reversed(list(metadata.items()))) if metadata else metadata
        for metadata in records.metadatas
    ]
    assert record_digests(replace(records, metadatas=turned), embeddings=True) == record_digests(
        records, embeddings=True
    )


PLAIN = batch("a", documents=["text"], metadatas=[{"k": 1}], uris=["u"])


@pytest.mark.parametrize(
    "change",
    [
        {"ids": ["b"]},
        {"documents": [None]},
        {"documents": [""]},
        {"documents": ["text "]},
        {"documents": ["u"], "uris": ["text"]},
        {"uris": [None]},
        {"metadatas": [None]},
        {"metadatas": [{"k": 1.0}]},
        {"metadatas": [{"k": True}]},
        {"metadatas": [{"k": "1"}]},
        {"metadatas": [{"k": [1]}]},
        {"metadatas": [{"k": 2}]},
        {"metadatas": [{"K": 1}]},
        {"metadatas": [{"k": 1, "l": 1}]},
        {"vectors": Vectors.of(np.array([[1, 2.0000002]], dtype=np.float32))},
        {"vectors": Vectors.of(np.array([[2, 1]], dtype=np.float32))},
    ],
)
def test_every_change_changes_the_digest(change: dict[str, Any]) -> None:
    changed = replace(PLAIN, **change)
    assert batch_digest(changed, embeddings=True) != batch_digest(PLAIN, embeddings=True)


def test_large_integers_and_signs_of_zero_are_told_apart() -> None:
    def one(value: Any) -> int:
        return batch_digest(batch("a", metadatas=[{"k": value}]), embeddings=False)

    values = [2**53, 2**53 + 1, 2**63 - 1, -(2**63), 0, 0.5, [1, 2], [2, 1], ["1", "2"], ""]
    assert len({one(value) for value in values}) == len(values)


def test_embeddings_count_only_where_they_are_asked_for() -> None:
    other = replace(PLAIN, vectors=Vectors.of(PLAIN.embeddings + 1))
    assert batch_digest(other, embeddings=False) == batch_digest(PLAIN, embeddings=False)
    assert batch_digest(PLAIN, embeddings=True) != batch_digest(PLAIN, embeddings=False)


@pytest.mark.parametrize(("text", "shortest"), [("1.0,2.0", True), ("1,2.00", False)])
def test_a_text_has_the_digest_of_its_numbers(text: str, shortest: bool) -> None:
    read = replace(PLAIN, vectors=Vectors.written([text.encode()], shortest=shortest))
    assert batch_digest(read, embeddings=True) == batch_digest(PLAIN, embeddings=True)


def test_a_digest_stays_what_it_was() -> None:
    """Digests are stored, and compared with those of other machines and later versions."""
    assert to_hex(batch_digest(PLAIN, embeddings=True)) == "1faddc3bda53647e1bad47af510a84cb"
    assert to_hex(batch_digest(PLAIN, embeddings=False)) == "74fbc808285469273d255161e26da25a"


def test_no_records_have_the_digest_zero() -> None:
    assert batch_digest(batch(), embeddings=True) == 0
    assert record_digests(batch(), embeddings=True) == []


def test_a_sum_stays_within_128_bits() -> None:
    assert add(2**128 - 1, 2) == 1
    assert total([2**127, 2**127, 5]) == 5


@given(st.integers(0, 2**128 - 1))
def test_hex_round_trips_in_32_characters(digest: int) -> None:
    assert len(to_hex(digest)) == 32
    assert from_hex(to_hex(digest)) == digest


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "g" * 32])
def test_other_text_is_no_digest(text: str) -> None:
    with pytest.raises(ValueError, match=r"hexadecimal|invalid literal"):
        from_hex(text)
