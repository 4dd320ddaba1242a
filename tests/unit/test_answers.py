"""What becomes of answers, of whole ones and of broken ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.records import Metadata, RecordBatch
from tasks.stores import answers
from tests.unit.record_batches import METADATAS, TEXT, batch, record_batches


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


@pytest.mark.parametrize("text", ["[[1,2], [3,4]]", "[[1,2] ,[3,4]]", "[[1,2],\t[3,4]]"])
def test_spaces_between_vectors_change_nothing(text: str) -> None:
    assert answers.records(embeddings_of(text, 2), ["id0", "id1"]).embeddings.tolist() == [
        [1, 2],
        [3, 4],
    ]


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
        _ = answers.records(embeddings_of(text, 2), ["id0", "id1"]).embeddings


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"7", b'"x"', b"{}", b"<html>", b'{"ids":['])
def test_what_is_no_answer_is_garbled(data: bytes) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        answers.records(data, ["a"])


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


def test_the_vectors_are_found_in_what_servers_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "array_of", None)  # what is slow
    assert len(answers.records(answer(batch("a", "b")), ["a", "b"])) == 2


def test_parts_are_joined_in_order() -> None:
    parts = [batch("a", embeddings=[[1, 2]]), batch(), batch("b", "c", embeddings=[[3, 4], [5, 6]])]
    read = [answers.records(answer(part), part.ids) for part in parts]
    for some in (parts, read, [parts[0], *read[1:]]):
        found = answers.joined(some)
        assert found.ids == ["a", "b", "c"]
        assert found.embeddings.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert answers.joined([]).embeddings.shape == (0, 0)


@pytest.mark.parametrize("text", ["[[1],[2e]]", "[[1],[null]]"])
def test_a_text_that_is_no_number_shows_when_it_is_parsed(text: str) -> None:
    class Garbled(Exception):
        pass

    @contextmanager
    def parsing() -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise Garbled from error

    found = answers.records(embeddings_of(text, 2), ["id1", "id0"], parsing=parsing)
    assert found.take([1]).embeddings.tolist() == [[1]]
    if "null" in text:
        assert str(found.embeddings.tolist()) == "[[nan], [1.0]]"
    else:
        with pytest.raises(Garbled):
            _ = found.embeddings
