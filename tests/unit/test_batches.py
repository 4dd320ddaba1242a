"""Cutting writes into requests, and finding what is refused with few of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.records import RecordBatch
from tasks.stores.base import RecordRefusal
from tasks.stores.batches import WrongDimension, require_dimension, without_removals, write
from tasks.stores.transport import ContentRefused
from tests.unit.record_batches import batch, record_batches


class Server:
    """Takes requests as a Chroma server does: a request is written whole or refused whole."""

    def __init__(self, *, bad: set[str] = frozenset(), limit: int = 10**9) -> None:  # type: ignore[assignment]
        self.bad, self.limit = bad, limit
        self.written: list[str] = []
        self.sizes: list[int] = []

    def send(self, body: bytes) -> None:
        self.sizes.append(len(body))
        if len(body) > self.limit:
            raise ContentRefused("x", reason="Payload too large")
        ids = orjson.loads(body)["ids"]
        found = self.bad & set(ids)
        if found:
            raise ContentRefused("x", reason=f"bad {min(found)}")
        self.written += ids

    def write(self, records: RecordBatch, **limits: Any) -> list[RecordRefusal]:
        limits = {"max_records": 10**6, "max_bytes": 10**9, "base64": True} | limits
        return write(records, self.send, **limits)


def numbered(count: int) -> RecordBatch:
    return batch(*(f"id{number}" for number in range(count)))


def test_everything_goes_into_one_request_if_it_fits() -> None:
    server = Server()
    assert server.write(numbered(100)) == []
    assert server.written == numbered(100).ids
    assert len(server.sizes) == 1


def test_no_records_make_no_request() -> None:
    server = Server()
    assert server.write(batch()) == []
    assert server.sizes == []


def test_requests_hold_no_more_records_than_the_server_takes() -> None:
    server = Server()
    server.write(numbered(100), max_records=30)
    assert len(server.sizes) == 4


@pytest.mark.parametrize("base64", [True, False])
@pytest.mark.parametrize("column", ["documents", "metadatas", "uris"])
def test_requests_stay_within_the_bytes_wherever_those_are(column: str, base64: bool) -> None:
    big: Any = {"k": "é\n" * 5_000} if column == "metadatas" else "é\n" * 5_000
    server = Server()
    records = batch(*"abcdefghij", **{column: [big] * 10})
    assert server.write(records, max_bytes=60_000, base64=base64) == []
    assert server.written == records.ids
    assert max(server.sizes) <= 60_000


def test_a_record_that_is_too_big_alone_is_refused_by_name() -> None:
    server = Server()
    records = batch("a", "big", "c", documents=["x", "y" * 10_000, "z"])
    (refusal,) = server.write(records, max_bytes=5_000)
    assert refusal.id == "big"
    assert "0.0 MB" in refusal.reason
    assert server.written == ["a", "c"]


def test_a_server_with_a_smaller_limit_gets_smaller_requests() -> None:
    server = Server(limit=2_000)
    assert server.write(numbered(100)) == []
    assert sorted(server.written) == sorted(numbered(100).ids)


@given(count=st.integers(1, 150), bad=st.sets(st.integers(0, 149)), max_records=st.integers(1, 200))
def test_refused_records_are_named_and_the_others_written(
    count: int, bad: set[int], max_records: int
) -> None:
    records = numbered(count)
    refused = [records.ids[row] for row in sorted(bad) if row < count]
    server = Server(bad=set(refused))
    refusals = server.write(records, max_records=max_records)
    assert [refusal.id for refusal in refusals] == refused
    assert all(refusal.reason == f"bad {refusal.id}" for refusal in refusals)
    assert server.written == [id_ for id_ in records.ids if id_ not in refused]


@pytest.mark.parametrize(("bad", "at_most"), [(1, 33), (5, 130), (1000, 1080)])
def test_refused_records_are_found_with_few_requests(bad: int, at_most: int) -> None:
    records = numbered(1000)
    server = Server(bad=set(records.ids[:: 1000 // bad]))
    assert len(server.write(records)) == bad
    assert len(server.sizes) <= at_most


@given(records=record_batches(max_size=4), base64=st.booleans())
def test_a_request_holds_the_records(records: RecordBatch, base64: bool) -> None:
    bodies: list[dict[str, Any]] = []
    write(
        records,
        lambda body: bodies.append(orjson.loads(body)),
        max_records=100,
        max_bytes=10**9,
        base64=base64,
    )
    if not len(records):
        return
    (body,) = bodies
    assert body["ids"] == records.ids
    for name, column in (
        ("documents", records.documents),
        ("metadatas", records.metadatas),
        ("uris", records.uris),
    ):
        assert (body[name] or [None] * len(records)) == column
        assert body[name] is None or any(value is not None for value in column)
    if not base64:
        sent = np.array(body["embeddings"], dtype=np.float32)
        assert sent.tobytes() == records.embeddings.tobytes()


def test_a_wrong_dimension_is_told() -> None:
    with pytest.raises(WrongDimension, match="has 2 dimensions, the collection 3"):
        require_dimension(batch("a"), 3)
    require_dimension(batch("a"), 2)
    require_dimension(batch("a"), None)
    require_dimension(batch(), 3)


def test_removals_are_left_out_of_what_is_added() -> None:
    records = batch("a", "b", "c", metadatas=[{"k": None, "l": 1}, {"k": None}, None])
    assert without_removals(records).metadatas == [{"l": 1}, None, None]
    kept = batch("a", metadatas=[{"k": 1}])
    assert without_removals(kept) is kept
