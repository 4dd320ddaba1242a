"""What a Chroma server answers, turned into our own types. Pure, as seen from outside.

Everything here raises `KeyError`, `TypeError` or `ValueError` on an answer that is not what the API
promises; the store turns those into `StoreGarbled`.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import repeat
from threading import Lock
from typing import Any
from uuid import UUID

import numpy as np
import orjson

from tasks.records import Embeddings, Metadata, RecordBatch
from tasks.stores.base import Collection

_CACHE_BYTES = 40 * 1024 * 1024  # two threads' chunks of 1000 records, 1536 dimensions
_PIECE_BYTES = 64 * 1024  # more does not fit the processor's cache, nor the small allocations

_Key = tuple[object, ...]

NO_EMBEDDINGS: Embeddings = np.empty((0, 0), dtype=np.float32)


def collection(answer: Any) -> Collection:
    """The definition of one collection."""
    return Collection(
        id=UUID(answer["id"]),
        name=_typed(answer["name"], str),
        dimension=_typed(answer.get("dimension"), int, type(None)),
        metadata=_typed(answer.get("metadata"), dict, type(None)) or None,
        configuration=_typed(answer.get("configuration_json"), dict, type(None)) or {},
        schema=_typed(answer.get("schema"), dict, type(None)) or None,
    )


def ids(answer: Any) -> list[str]:
    """The ids of a `get`, in the server's order."""
    return _ids(answer["ids"])


def neighbours(answer: Any, count: int) -> list[list[str]]:
    """The ids of a `query` with `count` vectors."""
    rows = answer["ids"]
    if len(rows) != count:
        raise ValueError(f"{len(rows)} lists of ids for {count} vectors")
    return [_ids(row) for row in rows]


def records(data: bytes, wanted: Sequence[str]) -> RecordBatch:
    """The records of a `get` with everything, put in the order of `wanted`.

    The server answers in the order of its rows. Ids of `wanted` that are not in the answer are
    left out, and one that is named twice is given once.
    """
    answer, embeddings = _parsed(data, wanted)
    given = ids(answer)
    size = len(given)
    if len(embeddings) != size:
        raise ValueError(f"{len(embeddings)} embeddings for {size} ids")
    documents = _column(answer.get("documents"), size, str)
    uris = _column(answer.get("uris"), size, str)
    metadatas = [
        # A record without metadata reads back as null or as {}. A value of null is what is left of
        # a float that JSON cannot write, and cannot be told from no value.
        metadata if metadata and None not in metadata.values() else _without_null(metadata)
        for metadata in _column(answer.get("metadatas"), size, dict)
    ]
    batch = RecordBatch(
        ids=given, embeddings=embeddings, documents=documents, metadatas=metadatas, uris=uris
    )
    if given == wanted:
        return batch
    row_of = {id_: row for row, id_ in enumerate(given)}
    if len(row_of) != size:
        raise ValueError("an id is answered twice")
    order = [row for id_ in wanted if (row := row_of.pop(id_, None)) is not None]
    if row_of:
        raise ValueError(f"{len(row_of)} records that were not asked for")
    return batch.take(order)


def joined(parts: Sequence[RecordBatch]) -> RecordBatch:
    """All the records of these batches, in order."""
    if len(parts) == 1:
        return parts[0]
    filled = [part.embeddings for part in parts if len(part)]
    return RecordBatch(
        ids=[id_ for part in parts for id_ in part.ids],
        embeddings=np.concatenate(filled) if filled else NO_EMBEDDINGS,
        documents=[document for part in parts for document in part.documents],
        metadatas=[metadata for part in parts for metadata in part.metadatas],
        uris=[uri for part in parts for uri in part.uris],
    )


def _ids(values: Any) -> list[str]:
    if not isinstance(values, list) or not set(map(type, values)) <= {str}:
        raise TypeError("ids are no list of strings")
    return values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """An answer, the ids in it, where the text of its vectors is, and what that was parsed into."""

    data: bytes  # as a whole: a copy of the part would cost more than it saves
    start: int
    end: int
    ids: list[str]
    vectors: Future[Embeddings] = field(default_factory=Future)

    def says_the_same_as(self, other: Answer) -> bool:
        """Whether the texts of the vectors are the same."""
        length = self.end - self.start
        return length == other.end - other.start and all(
            # In pieces, so that the copies stay small.
            self.data[self.start + offset : self.start + stop]
            == other.data[other.start + offset : other.start + stop]
            for offset in range(0, length, _PIECE_BYTES)
            for stop in (min(length, offset + _PIECE_BYTES),)
        )

    def rows(self) -> list[bytes]:
        """The text of each vector."""
        return self.data[self.start + 2 : self.end - 2].split(b"],[")


class VectorCache:
    """What the vectors of the last answers were parsed into.

    Both stores of a pair are asked for the same ids, and mostly answer the very same vectors, if
    not in the same order; to compare a text takes a tenth of the time of parsing it. An entry is
    given out once: a third store is not expected to say it again.
    """

    def __init__(self, parse: Callable[[bytes, int, int], Embeddings], *, max_bytes: int) -> None:
        self._parse = parse
        self._left = max_bytes
        self._entries: OrderedDict[_Key, Answer] = OrderedDict()
        self._lock = Lock()

    def parsed(self, wanted: Sequence[str], answer: Answer) -> Embeddings:
        """The vectors of an answer to a request for these ids; not to be changed."""
        key = len(wanted), *wanted[:1], *wanted[-1:]
        with self._lock:
            other = self._take(key)
        vectors = self._like(other, answer) if other is not None else None
        if vectors is not None:
            vectors.flags.writeable = False
            return vectors
        self._keep(key, answer)
        try:
            vectors = self._parse(answer.data, answer.start, answer.end)
            vectors.flags.writeable = False
            answer.vectors.set_result(vectors)
        except Exception as error:
            answer.vectors.set_exception(error)
            raise
        return vectors

    def _keep(self, key: _Key, answer: Answer) -> None:
        with self._lock:
            self._take(key)
            self._entries[key] = answer
            self._left -= len(answer.data)
            while self._left < 0:
                self._take(next(iter(self._entries)))

    def _take(self, key: _Key) -> Answer | None:
        answer = self._entries.pop(key, None)
        if answer is not None:
            self._left += len(answer.data)
        return answer

    def _like(self, other: Answer, answer: Answer) -> Embeddings | None:
        """An answer's vectors, as those of the other one where their texts are the same."""
        if answer.ids == other.ids and answer.says_the_same_as(other):
            return other.vectors.result()  # another thread may still be at it
        rows, others = answer.rows(), other.rows()
        if len(rows) != len(answer.ids) or len(others) != len(other.ids):
            return None
        row_of = {id_: row for row, id_ in enumerate(other.ids)}
        same, at, unlike = [], [], []
        for row, id_ in enumerate(answer.ids):
            place = row_of.get(id_)
            if place is not None and rows[row] == others[place]:
                same.append(row)
                at.append(place)
            else:
                unlike.append(row)
        if not same:
            return None
        try:
            known = other.vectors.result()
        except Exception:
            return None
        vectors = np.empty((len(rows), known.shape[1]), dtype=np.float32)
        vectors[same] = known[at]
        if unlike:
            text = b"[[%b]]" % b"],[".join([rows[row] for row in unlike])
            vectors[unlike] = self._parse(text, 0, len(text))
        return vectors


def _fast_parser() -> Any:
    try:
        from simdjson import Parser
    except ImportError:  # no wheel for this Python; orjson takes twice as long
        return None
    return Parser


_PARSER = _fast_parser()


def _parsed(data: bytes, wanted: Sequence[str]) -> tuple[dict[str, Any], Embeddings]:
    # No string can hold these marks, since it would have its quotes escaped. Should they ever be
    # somewhere else than around the vectors, then what is between them does not parse.
    start, end = data.find(b'"embeddings":[['), data.rfind(b']],"documents":')
    if 0 < start < end:
        start, end = start + len('"embeddings":'), end + len("]]")
        with suppress(TypeError, ValueError, RuntimeError):  # a number that is null, or garbage
            rest = orjson.loads(b"".join((data[:start], b"null", data[end:])))
            answer = Answer(data=data, start=start, end=end, ids=ids(rest))
            return rest, _CACHE.parsed(wanted, answer)
    try:
        answer = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        beginning = data[:80].decode(errors="replace")
        raise ValueError(f"it is no JSON ({error}); it begins with {beginning!r}") from None
    return answer, _embeddings(answer["embeddings"])


def _parsed_vectors(data: bytes, start: int, end: int) -> Embeddings:
    """The vectors of the JSON list of lists of numbers there; an error for anything else."""
    if _PARSER is None:
        return _embeddings(orjson.loads(data[start:end]))
    # In pieces that the processor's cache holds, each some whole rows.
    parser = _PARSER()
    pieces = []
    start, end = start + 1, end - 1
    while start < end:
        cut = data.find(b"],[", start + _PIECE_BYTES, end)
        stop = end if cut < 0 else cut + 1
        rows = parser.parse(b"[%b]" % data[start:stop])
        (dimension,) = set(map(len, rows))
        numbers = np.frombuffer(rows.as_buffer(of_type="d"), dtype=np.float64)
        del rows  # a parser cannot be used again while something of its document is alive
        with np.errstate(over="ignore"):
            pieces.append(numbers.astype(np.float32).reshape(-1, dimension))
        start = stop + 1
    return np.concatenate(pieces)


_CACHE = VectorCache(_parsed_vectors, max_bytes=_CACHE_BYTES)


def _embeddings(rows: Any) -> Embeddings:
    if not isinstance(rows, list):
        raise TypeError("embeddings are no list")
    if not rows:
        return NO_EMBEDDINGS
    try:
        # Packing row by row takes less than half the time of np.array on lists of lists.
        pack = struct.Struct(f"{len(rows[0])}f").pack
        packed = b"".join([pack(*row) for row in rows])
        return np.frombuffer(packed, dtype=np.float32).reshape(len(rows), -1)
    except (struct.error, OverflowError, TypeError):
        # A number that JSON cannot write is null in the answer and NaN here; no row may be null.
        with np.errstate(over="ignore"):
            array = np.array(rows, dtype=np.float32)
    if array.ndim != 2:
        raise ValueError("a record has no embedding")
    return array


def _column(values: Any, size: int, kind: type) -> list[Any]:
    if values is None:
        return list(repeat(None, size))
    if not isinstance(values, list) or len(values) != size:
        raise ValueError(f"a column does not match {size} ids")
    if not set(map(type, values)) <= {kind, type(None)}:
        raise TypeError(f"a column holds something else than {kind.__name__}")
    return values


def _without_null(metadata: Metadata | None) -> Metadata | None:
    return {key: value for key, value in (metadata or {}).items() if value is not None} or None


def _typed(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"{value!r:.80} where {kinds[0].__name__} is expected")
    return value
