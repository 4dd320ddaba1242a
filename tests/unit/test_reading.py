"""Reading in parts: all of it, in order, in answers of a bounded size."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.stores import chroma_http
from tasks.stores.address import parse_address
from tasks.stores.base import Collection
from tasks.stores.batches import read
from tasks.stores.chroma_http import ChromaHttpStore


@given(count=st.integers(0, 60), max_records=st.integers(1, 70))
def test_all_is_read_once_in_order_in_even_parts(count: int, max_records: int) -> None:
    ids = [str(number) for number in range(count)]
    parts = read(ids, list, max_records=max_records)
    assert [id_ for part in parts for id_ in part] == ids
    sizes = {len(part) for part in parts}
    assert all(0 < size <= max_records for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


class Server:
    """Answers what it is asked for, with records of so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.answers: list[int] = []

    def get(self, path: str, *, operation: str) -> str:
        assert path == "/api/v2/version", operation
        return "1.0.0"

    def post_for_bytes(self, _path: str, body: bytes, *, operation: str) -> bytes:
        ids = orjson.loads(body)["ids"]
        count = len(ids)
        columns: dict[str, Any] = {"ids": ids, "embeddings": [[1, 2]] * count}
        answer = orjson.dumps(columns | {"documents": ["x" * self.size] * count})
        self.answers.append(len(answer))
        return answer


@pytest.mark.parametrize("size", [0, 100, 30_000, 300_000])
def test_answers_are_no_larger_than_a_worker_can_hold(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    server = Server(size)
    store = ChromaHttpStore(parse_address("http://localhost"), headers={})
    monkeypatch.setattr(store, "_transport", server)
    collection = Collection.new("books", configuration={})
    ids = [f"id{number}" for number in range(500)]
    assert store.read(collection, [*ids, *ids]).ids == ids
    assert store.read(collection, ids).ids == ids
    assert max(server.answers[1:]) <= max(chroma_http._READ_BYTES * 1.01, size + 100)
    assert server.answers[0] <= chroma_http._FIRST_READ * (size + 100)
    assert len(server.answers) <= 3 + 2 * 500 * (size + 100) / chroma_http._READ_BYTES * 1.3


def test_every_collection_is_got_to_know_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(10)
    store = ChromaHttpStore(parse_address("http://localhost"), headers={})
    monkeypatch.setattr(store, "_transport", server)
    small = Collection.new("small", configuration={})
    store.read(small, ["a"])
    server.size = 100_000
    large = Collection(**{**small.to_json(), "id": UUID(int=1), "name": "large"})
    store.read(large, [str(number) for number in range(400)])
    assert len(server.answers) > 4
    assert max(server.answers[2:]) <= chroma_http._READ_BYTES
