"""The vectors of records: as float32 numbers, and as the text that servers answer. Pure.

Mostly nobody needs the numbers. What two stores answer in the same words is the same, and a digest
can be taken of the words; so a text is kept as it came, and parsed when its numbers are asked for.
That spares nearly all of the time that comparing two stores takes on our side.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

Embeddings = npt.NDArray[np.float32]

_PIECE_BYTES = 64 * 1024  # more does not fit the processor's cache, nor the small allocations


class Vectors:
    """Some vectors of one dimension, in order. Not to be changed.

    A vector's text is what JSON has between the brackets. It is the *shortest* if each number has
    as few digits as tell it from all other float32, in the form that Chroma since 1.0 gives it
    (0.1, -2.0, 1e-7, 1e+16); then each vector has one text.
    """

    def __init__(
        self,
        array: Embeddings | None,
        texts: list[bytes] | None,
        *,
        shortest: bool,
        parsing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Use `of` or `written`."""
        self._array = array
        self._texts = texts
        self._shortest = shortest
        self._parsing = parsing

    @classmethod
    def of(cls, array: Embeddings) -> Vectors:
        """These numbers, of shape (count, dimension); (0, 0) for none."""
        return cls(array, None, shortest=False)

    @classmethod
    def written(
        cls,
        texts: list[bytes],
        *,
        shortest: bool,
        parsing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Vectors:
        """What these texts say. Whether that is numbers is only seen when they are parsed, which
        is done within `parsing`: it may turn `TypeError` and `ValueError` into something else."""
        return cls(None, texts, shortest=shortest, parsing=parsing)

    @classmethod
    def joined(cls, parts: Sequence[Vectors]) -> Vectors:
        """All of these, in order."""
        filled = [part for part in parts if len(part)]
        if len(filled) == 1:
            return filled[0]
        if not filled:
            return cls.of(NO_EMBEDDINGS)
        if any(part._texts is None for part in filled):
            return cls.of(np.concatenate([part.array for part in filled]))
        return cls(
            None,
            [text for part in filled for text in part._texts or ()],
            shortest=all(part._shortest for part in filled),
            parsing=filled[0]._parsing,
        )

    def __len__(self) -> int:
        return len(self.array if self._texts is None else self._texts)

    @property
    def dimension(self) -> int:
        """How many numbers each has; 0 if there are none. Of a text, by its first vector."""
        if self._texts:
            return self._texts[0].count(b",") + 1
        return int(self.array.shape[1])

    @property
    def array(self) -> Embeddings:
        """The numbers, of shape (count, dimension)."""
        if self._array is None:
            assert self._texts is not None
            with self._parsing():
                self._array = _parsed(self._texts)
        return self._array

    def take(self, rows: Sequence[int]) -> Vectors:
        """Those at these positions, in this order."""
        if len(rows) == len(self) and list(rows) == list(range(len(self))):
            return self  # so that what is parsed of either is parsed for both
        return Vectors(
            None if self._array is None else self._array[list(rows)],
            None if self._texts is None else [self._texts[row] for row in rows],
            shortest=self._shortest,
            parsing=self._parsing,
        )

    def unlike(self, others: Vectors) -> list[int]:
        """The rows that are not in the same words; all, where one of the two has no words."""
        ours, theirs = self._texts, others._texts
        if ours is None or theirs is None:
            return list(range(len(self)))
        if ours == theirs:
            return []
        return [
            row for row, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other
        ]

    def shortest_texts(self) -> list[bytes]:
        """The one text of each vector."""
        if not len(self):
            return []
        if self._texts is not None and self._shortest:
            return self._texts
        array = np.ascontiguousarray(self.array)
        written = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
        return texts_between(written, len("[["), len(written) - len("]]"))


def texts_between(data: bytes, start: int, end: int) -> list[bytes]:
    """The texts of the vectors in a JSON list, from behind its first two brackets to before its
    last two; none if there is something else between them."""
    # To look for one character takes a tenth of the time that `split`, or two characters, take.
    texts = []
    while (close := data.find(b"]", start, end)) >= 0:
        if not data.startswith(b"],[", close):
            return []
        texts.append(data[start:close])
        start = close + len("],[")
    return [*texts, data[start:end]]


NO_EMBEDDINGS: Embeddings = np.empty((0, 0), dtype=np.float32)


def array_of(rows: Any) -> Embeddings:
    """A list of lists of numbers, with null for what JSON cannot write, as float32.

    Raises `TypeError` or `ValueError` for anything else.
    """
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
        if {type(number) for row in rows for number in row} - {int, float, type(None)}:
            raise TypeError("an embedding holds something else than numbers") from None
        with np.errstate(over="ignore"):
            array = np.array(rows, dtype=np.float32)
    if array.ndim != 2:
        raise ValueError("a record has no embedding")
    return array


def _fast_parser() -> Any:
    try:
        from simdjson import Parser
    except ImportError:  # no wheel for this Python; orjson takes twice as long
        return None
    return Parser


_PARSER = _fast_parser()


def _parsed(texts: Sequence[bytes]) -> Embeddings:
    if not texts:
        return NO_EMBEDDINGS
    try:
        if _PARSER is not None:
            return _parsed_fast(texts)
    except (TypeError, ValueError, RuntimeError):  # a number that is null, or garbage
        pass
    array = array_of(orjson.loads(_as_list(texts)))
    if len(array) != len(texts):
        raise ValueError(f"{len(array)} vectors in {len(texts)} texts")
    return array


def _parsed_fast(texts: Sequence[bytes]) -> Embeddings:
    parser = _PARSER()
    step = max(1, _PIECE_BYTES // (len(texts[0]) + 1))
    pieces = []
    for start in range(0, len(texts), step):
        part = texts[start : start + step]
        data = _as_list(part)
        if data.count(b"[") > len(part) + 1:
            raise ValueError("a vector holds another list")
        rows = parser.parse(data)
        (dimension,) = set(map(len, rows))
        numbers = np.frombuffer(rows.as_buffer(of_type="d"), dtype=np.float64)
        del rows  # a parser cannot be used again while something of its document is alive
        with np.errstate(over="ignore"):
            pieces.append(numbers.astype(np.float32).reshape(len(part), dimension))
    return np.concatenate(pieces)


def _as_list(texts: Sequence[bytes]) -> bytes:
    return b"[[%b]]" % b"],[".join(texts)
