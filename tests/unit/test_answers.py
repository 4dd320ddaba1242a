"""Answers parsed fast are what the plain way makes of them, to the bit; and so are broken ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.records import Embeddings, Metadata, RecordBatch
from tasks.stores import answers
from tasks.stores.answers import Answer, VectorCache
from tests.unit.record_batches import METADATAS, TEXT, batch, record_batches

FAST = answers._PARSER is not None
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
# What a server may write, and what it had better not: float32 in few digits, float64 in full (which
# round twice), integers of any size, numbers beyond float32, signed zeros.
NUMBERS = (
    FLOAT32.map(lambda value: str(np.float32(value)))
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.integers().map(str)
    | st.sampled_from(["0", "-0", "0.0", "-0.0", "1e-45", "-1e-46", "7e-46", "1e39", "0.1e-5"])
    # Half way between two float32, and just beside it.
    | FLOAT32.map(lambda value: repr(float(value) * (1 + 2.0**-24)))
)


@pytest.fixture(params=["simdjson", "orjson"], autouse=True, scope="module")
def parser(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test is run with either parser; the fast one is not on every machine."""
    if request.param == "simdjson" and not FAST:
        pytest.skip("simdjson is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "orjson":
            patch.setattr(answers, "_PARSER", None)
        yield request.param


def answer(records: RecordBatch, **columns: Any) -> bytes:
    """What a server answers that has these records."""
    return orjson.dumps(
        {
            "ids": records.ids,
            "embeddings": records.embeddings.tolist(),
            "documents": records.documents,
            "uris": records.uris,
            "metadatas": records.metadatas,
            "include": ["embeddings"],
        }
        | columns
    )


def embeddings_of(text: str, size: int) -> bytes:
    ids = [f"id{row}" for row in range(size)]
    return f'{{"ids":{json.dumps(ids)},"embeddings":{text},"documents":null}}'.encode()


@given(data=st.data(), size=st.integers(1, 5), dimension=st.integers(1, 5))
def test_numbers_become_the_float32_next_to_their_float64(
    data: st.DataObject, size: int, dimension: int
) -> None:
    row = st.lists(NUMBERS, min_size=dimension, max_size=dimension)
    texts = data.draw(st.lists(row, min_size=size, max_size=size))
    with np.errstate(over="ignore"):
        expected = np.array([[float(text) for text in row] for row in texts]).astype(np.float32)
    text = "[" + ",".join(f"[{','.join(row)}]" for row in texts) + "]"
    found = answers.records(embeddings_of(text, size), [f"id{row}" for row in range(size)])
    # An integer has no sign of zero.
    signed = np.array([[text != "-0" for text in row] for row in texts])
    assert found.embeddings.dtype == np.float32
    assert np.where(signed, found.embeddings, abs(found.embeddings)).tobytes() == (
        np.where(signed, expected, abs(expected)).tobytes()
    )


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_every_float32_comes_back_bit_by_bit(bits: list[int]) -> None:
    numbers = np.array(bits, dtype=np.uint32).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    for text in (
        "[" + ",".join(map(str, numbers)) + "]",  # the fewest digits, as servers write it
        json.dumps(numbers.tolist()),  # all that a float64 has
    ):
        if len(numbers):
            found = answers.records(embeddings_of(f"[{text}]", 1), ["id0"])
            assert found.embeddings.tobytes() == numbers.tobytes()


@given(records=record_batches(), data=st.data())
def test_records_are_put_in_the_order_that_was_asked_for(
    records: RecordBatch, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(records))))
    expected = records.take(order)
    wanted = [id_ for row in order for id_ in (records.ids[row], f"{row}, not there")]
    found = answers.records(answer(records), wanted)
    assert found.ids == expected.ids
    assert found.embeddings.tobytes() == expected.embeddings.tobytes()
    assert found.documents == expected.documents
    assert found.uris == expected.uris
    assert repr(found.metadatas) == repr(expected.metadatas)


@given(metadata=METADATAS, document=st.none() | TEXT)
def test_texts_and_metadata_are_what_json_says(
    metadata: Metadata | None, document: str | None
) -> None:
    body = {"ids": ["a"], "embeddings": [[1.5]], "documents": [document], "metadatas": [metadata]}
    found = answers.records(json.dumps(body).encode(), ["a"])  # with \u escapes, and spaces
    assert repr(found.metadatas) == repr([metadata])
    assert found.documents == [document]


def test_absent_columns_and_empty_metadata_are_none() -> None:
    body = b'{"ids":["a","b"],"embeddings":[[1],[2]],"metadatas":[{},{"k":null,"l":1}],"uris":null}'
    found = answers.records(body, ["a", "b"])
    assert found.metadatas == [None, {"l": 1}]
    assert found.documents == found.uris == [None, None]


def test_no_records_are_an_empty_batch() -> None:
    found = answers.records(b'{"ids":[],"embeddings":[],"documents":[],"metadatas":[]}', ["a"])
    assert len(found) == 0
    assert found.embeddings.shape == (0, 0)


def test_a_null_in_a_vector_reads_as_nan() -> None:
    found = answers.records(embeddings_of("[[1, null, 3]]", 1), ["id0"])
    assert str(found.embeddings.tolist()) == "[[1.0, nan, 3.0]]"


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "7",
        "{}",
        '"AAAA"',
        "[null, null]",
        "[[1], null]",
        "[[1]]",
        "[[1], [2], [3]]",
        "[[1], [2, 3]]",
        "[[1, 2, 3], [4]]",
        "[[], [1, 2]]",
        '[["1"], ["x"]]',
        "[[1], [2]",
        "[[1], [2e]]",
        "[[1], [1e999]]",
    ],
)
def test_embeddings_of_another_shape_are_garbled(text: str) -> None:
    assert answers.records(embeddings_of("[[1], [2]]", 2), ["id0", "id1"]).ids == ["id0", "id1"]
    with pytest.raises((KeyError, TypeError, ValueError)):
        answers.records(embeddings_of(text, 2), ["id0", "id1"])


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"7", b'"x"', b"{}", b"<html>", b'{"ids":['])
def test_what_is_no_answer_is_garbled(data: bytes) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        answers.records(data, ["a"])


@pytest.mark.parametrize("dimension", [1, 7, 3000, 30_000])
def test_many_vectors_are_parsed_in_pieces(
    parser: str, dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parser == "simdjson":
        monkeypatch.setattr(answers, "_embeddings", None)  # what is slow
    size = 4 * answers._PIECE_BYTES // (10 * dimension) + 3
    rng = np.random.default_rng(dimension)
    vectors = rng.standard_normal((size, dimension)).astype(np.float32)
    ids = [str(row) for row in range(size)]
    body = {"ids": ids, "embeddings": vectors.tolist(), "documents": None}
    found = answers.records(orjson.dumps(body), ids)
    assert found.embeddings.tobytes() == vectors.tobytes()
    for row in (0, size // 2, size - 1):
        odd = vectors.tolist()
        odd[row].append(odd[row - 1].pop())
        with pytest.raises((KeyError, TypeError, ValueError)):
            answers.records(orjson.dumps(body | {"embeddings": odd}), ids)


MARKS = st.sampled_from(
    ['"embeddings":[[1]],"documents":', ']],"documents":', ']],"', '"embeddings":[[', "]],", '"']
)


@given(
    records=record_batches(ids=MARKS | TEXT),
    texts=st.lists(st.none() | MARKS | TEXT, min_size=6, max_size=6),
)
def test_texts_that_look_like_the_answer_around_them_change_nothing(
    records: RecordBatch, texts: list[str | None]
) -> None:
    size = len(records)
    odd = [{text: text, "list": [text]} if text else None for text in texts[:size]]
    changed = replace(records, documents=texts[:size], uris=texts[-size:] if size else [])
    changed = replace(changed, metadatas=odd)
    found = answers.records(answer(changed), records.ids)
    assert found.embeddings.tobytes() == records.embeddings.tobytes()
    assert (found.ids, found.documents, found.uris, found.metadatas) == (
        changed.ids,
        changed.documents,
        changed.uris,
        changed.metadatas,
    )


def test_the_vectors_are_found_in_what_servers_answer(
    parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parser == "simdjson":
        monkeypatch.setattr(answers, "_embeddings", None)  # what is slow
        assert len(answers.records(answer(batch("a", "b")), ["a", "b"])) == 2


@given(record_batches(), record_batches())
def test_the_same_answer_again_and_another_one_read_as_they_are(
    one: RecordBatch, other: RecordBatch
) -> None:
    for records in (one, other, one, one, other):
        found = answers.records(answer(records), records.ids)
        assert found.ids == records.ids
        assert found.embeddings.tobytes() == records.embeddings.tobytes()


class TestVectorCache:
    """With a parser that notes what it is asked for."""

    @pytest.fixture
    def asked(self) -> list[str]:
        return []

    @pytest.fixture
    def cache(self, asked: list[str]) -> VectorCache:
        def parse(data: bytes, start: int, end: int) -> Embeddings:
            asked.append(data[start:end].decode())
            return np.array(orjson.loads(data[start:end]), dtype=np.float32)

        return VectorCache(parse, max_bytes=1000)

    def ask(
        self, cache: VectorCache, ids: str, text: str, *, wanted: str = "abc", around: int = 7
    ) -> None:
        """Have an answer with these ids parsed, and look at what comes out."""
        data = f"{'(' * around}{text}{')' * around}".encode()
        found = cache.parsed(
            list(wanted), Answer(data=data, start=around, end=len(data) - around, ids=list(ids))
        )
        assert found.tolist() == orjson.loads(text)
        assert not found.flags.writeable

    def test_a_text_that_comes_twice_is_parsed_once(
        self, cache: VectorCache, asked: list[str]
    ) -> None:
        one, other = "[[1,2],[3,4],[5,6]]", "[[7,8],[3,4],[5,6]]"
        self.ask(cache, "abc", one)
        self.ask(cache, "xyz", other, wanted="xyz")
        self.ask(cache, "abc", one)
        self.ask(cache, "xyz", other, wanted="xyz", around=9)
        assert asked == [one, other]
        self.ask(cache, "abc", one)
        assert asked == [one, other, one]

    def test_rows_in_another_order_are_not_parsed_again(
        self, cache: VectorCache, asked: list[str]
    ) -> None:
        self.ask(cache, "abc", "[[1,2],[3,4],[5,6]]")
        self.ask(cache, "cab", "[[5,6],[1,2],[3,4]]")
        assert len(asked) == 1

    def test_only_rows_that_differ_are_parsed_again(
        self, cache: VectorCache, asked: list[str]
    ) -> None:
        self.ask(cache, "abc", "[[1,2],[3,4],[5,6]]")
        self.ask(cache, "cab", "[[5,7],[1,2],[3,9]]")
        assert asked[1:] == ["[[5,7],[3,9]]"]

    def test_what_only_one_answer_has_is_parsed(self, cache: VectorCache, asked: list[str]) -> None:
        self.ask(cache, "ac", "[[1,2],[5,6]]")
        self.ask(cache, "abc", "[[1,2],[3,4],[5,6]]")
        assert asked[1:] == ["[[3,4]]"]
        self.ask(cache, "ab", "[[1,2],[3,4]]")
        self.ask(cache, "b", "[[3,4]]")
        assert len(asked) == 3

    def test_equal_texts_of_other_ids_are_told_apart(
        self, cache: VectorCache, asked: list[str]
    ) -> None:
        self.ask(cache, "ab", "[[1,2],[3,4]]")
        self.ask(cache, "ba", "[[1,2],[3,4]]")
        assert len(asked) == 2

    def test_long_texts_are_compared_to_their_end(self, asked: list[str]) -> None:
        cache = VectorCache(
            lambda data, start, end: np.array(orjson.loads(data[start:end])), max_bytes=10**7
        )
        long = ",".join(["1"] * 50_000)
        for end in ("2", "3"):
            self.ask(cache, "a", f"[[{long},{end}]]")

    def test_rows_of_another_length_are_parsed_by_themselves(
        self, cache: VectorCache, asked: list[str]
    ) -> None:
        self.ask(cache, "abc", "[[1,2],[3,4],[5,6]]")
        self.ask(cache, "abc", "[[1],[3],[5]]")
        assert len(asked) == 2

    def test_it_forgets_the_oldest_to_stay_within_its_bytes(
        self, cache: VectorCache, asked: list[str]
    ) -> None:
        names = "abcdefghijklmno"
        for name in (*names, *names[-10:]):  # 100 bytes each
            self.ask(cache, name, f"[[1.{ord(name):080}]]", wanted=name)
        assert len(asked) == len(names)

    def test_who_comes_while_it_is_parsed_waits_for_that(self) -> None:
        begun, may_end = threading.Event(), threading.Event()

        def parse(_data: bytes, _start: int, _end: int) -> Embeddings:
            assert not begun.is_set()
            begun.set()
            assert may_end.wait(5)
            return np.ones((1, 1), dtype=np.float32)

        def ask() -> Embeddings:
            return cache.parsed(["a"], Answer(data=b"[[1]]", start=0, end=5, ids=["a"]))

        cache = VectorCache(parse, max_bytes=1000)
        with ThreadPoolExecutor(2) as threads:
            one = threads.submit(ask)
            assert begun.wait(5)
            other = threads.submit(ask)
            assert not wait([one, other], timeout=0.1).done
            may_end.set()
            assert one.result() is other.result()

    def test_what_does_not_parse_is_of_no_use_to_another(self, cache: VectorCache) -> None:
        for _ in range(3):
            with pytest.raises(ValueError, match="unexpected"):
                self.ask(cache, "ab", "[[1],[2}]")
        self.ask(cache, "ab", "[[1],[2]]")


def test_two_batches_that_share_vectors_cannot_change_them() -> None:
    records = batch("a", "b")
    found = [answers.records(answer(records), records.ids) for _ in range(2)]
    with pytest.raises(ValueError, match="read-only"):
        found[0].embeddings[0] = 1
