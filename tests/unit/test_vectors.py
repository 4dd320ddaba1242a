"""Texts become the numbers that a plain parser makes of them, to the bit; and numbers, texts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import vectors
from tasks.vectors import Embeddings, Vectors, array_of

FAST = vectors._PARSER is not None
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
            patch.setattr(vectors, "_PARSER", None)
        yield request.param


def written(*texts: str, shortest: bool = True) -> Vectors:
    return Vectors.written([text.encode() for text in texts], shortest=shortest)


def of(*rows: list[float]) -> Vectors:
    return Vectors.of(np.array(rows, dtype=np.float32))


@given(data=st.data(), size=st.integers(1, 5), dimension=st.integers(1, 5))
def test_numbers_become_the_float32_next_to_their_float64(
    data: st.DataObject, size: int, dimension: int
) -> None:
    row = st.lists(NUMBERS, min_size=dimension, max_size=dimension)
    texts = data.draw(st.lists(row, min_size=size, max_size=size))
    with np.errstate(over="ignore"):
        expected = np.array([[float(text) for text in row] for row in texts]).astype(np.float32)
    found = written(*map(",".join, texts), shortest=False)
    # An integer has no sign of zero.
    signed = np.array([[text != "-0" for text in row] for row in texts])
    assert found.array.dtype == np.float32
    assert np.where(signed, found.array, abs(found.array)).tobytes() == (
        np.where(signed, expected, abs(expected)).tobytes()
    )
    assert (len(found), found.dimension) == expected.shape


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_every_float32_comes_back_bit_by_bit(bits: list[int]) -> None:
    numbers = np.array(bits, dtype=np.uint32).view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    for text in (
        ",".join(map(str, numbers)),  # the fewest digits
        json.dumps(numbers.tolist())[1:-1],  # all that a float64 has
    ):
        if len(numbers):
            assert written(text).array.tobytes() == numbers.tobytes()


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_numbers_have_one_shortest_text(bits: list[int]) -> None:
    numbers = np.array([bits], dtype=np.uint32).view(np.float32)
    numbers[~np.isfinite(numbers)] = 0
    (text,) = Vectors.of(numbers).shortest_texts()
    assert written(text.decode()).array.tobytes() == numbers.tobytes()
    assert written(text.decode()).shortest_texts() == [text]
    long = json.dumps(numbers[0].tolist())[1:-1]
    assert written(long, shortest=False).shortest_texts() == [text]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.1, "0.1"), (-2.0, "-2.0"), (-0.0, "-0.0"), (1e-7, "1e-7"), (1e16, "1e+16"), (2**24, None)],
)
def test_the_shortest_text_is_as_servers_write_it(number: float, text: str | None) -> None:
    assert of([number, 1]).shortest_texts() == [f"{text or '16777216.0'},1.0".encode()]


def test_of_several_vectors_each_has_its_text() -> None:
    vectors = of([1, 2], [3, 4], [5, 6])
    assert vectors.shortest_texts() == [b"1.0,2.0", b"3.0,4.0", b"5.0,6.0"]
    assert vectors.take([2, 0]).shortest_texts() == [b"5.0,6.0", b"1.0,2.0"]


@pytest.mark.parametrize(
    "none", [Vectors.of(vectors.NO_EMBEDDINGS), written(), of([1, 2]).take([])]
)
def test_no_vectors(none: Vectors) -> None:
    assert len(none) == len(none.array) == 0
    assert none.shortest_texts() == []
    assert none.take([]).unlike(none) == []
    joined = Vectors.joined([none, of([1, 2]), none])
    assert joined.array.tolist() == [[1, 2]]


@given(
    rows=st.lists(st.sampled_from(["1,2", "1.0,2", "3,4"]), max_size=5),
    others=st.lists(st.sampled_from(["1,2", "1.0,2", "3,4"]), min_size=5, max_size=5),
)
def test_words_are_compared_row_by_row(rows: list[str], others: list[str]) -> None:
    others = others[: len(rows)]
    unlike = written(*rows).unlike(written(*others))
    assert unlike == [row for row, text in enumerate(rows) if text != others[row]]


def test_without_words_everything_is_to_be_compared() -> None:
    assert written("1,2", "3,4").unlike(of([1, 2], [3, 4])) == [0, 1]
    assert of([1, 2], [3, 4]).unlike(written("1,2", "3,4")) == [0, 1]


def test_only_what_is_asked_for_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def note(texts: list[bytes]) -> Embeddings:
        parsed.extend(texts)
        return np.ones((len(texts), 2), dtype=np.float32)

    monkeypatch.setattr(vectors, "_parsed", note)
    one = written("1,2", "3,4", "5,6")
    other = Vectors.joined([written("1,2"), written("3,5", "5,6")])
    assert one.unlike(other) == [1]
    assert one.shortest_texts()[0] == other.shortest_texts()[0]
    assert (len(one), one.dimension) == (3, 2)
    assert parsed == []
    part = other.take([1])
    assert part.array is part.array
    assert parsed == [b"3,5"]


def test_what_is_parsed_need_not_be_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one = written("1,2", "3,4")
    assert one.array.tolist() == [[1, 2], [3, 4]]
    monkeypatch.setattr(vectors, "_parsed", None)
    assert one.take([1]).array.tolist() == [[3, 4]]


def test_all_of_them_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = written("1,2", "3,4", shortest=False)
    assert one.take([0, 1]).array.tolist() == [[1, 2], [3, 4]]
    monkeypatch.setattr(vectors, "_parsed", None)
    assert one.shortest_texts() == [b"1.0,2.0", b"3.0,4.0"]


@pytest.mark.parametrize("dimension", [1, 7, 3000, 30_000])
def test_many_vectors_are_parsed_in_pieces(
    parser: str, dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parser == "simdjson":
        monkeypatch.setattr(vectors, "array_of", None)  # what is slow
    size = 4 * vectors._PIECE_BYTES // (10 * dimension) + 3
    rng = np.random.default_rng(dimension)
    numbers = rng.standard_normal((size, dimension)).astype(np.float32)
    texts = [json.dumps(row)[1:-1].replace(" ", "") for row in numbers.tolist()]
    assert written(*texts).array.tobytes() == numbers.tobytes()
    for row in (0, size // 2, size - 1):
        odd = list(texts)
        odd[row] += ",1.5"
        with pytest.raises((TypeError, ValueError)):
            _ = written(*odd).array


@pytest.mark.parametrize(
    "text", ["", "x", '"1"', "1,,2", "1,", "1],[2", "[1]", "1]", "{}", "1e999"]
)
def test_what_is_no_vector_is_not_taken_for_one(text: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        _ = written("1", text).array


def test_null_is_not_a_number() -> None:
    assert str(written("1,null,3").array.tolist()) == "[[1.0, nan, 3.0]]"
    assert of([1, np.nan]).shortest_texts() == [b"1.0,null"]


@pytest.mark.parametrize("rows", [None, 7, "x", {}, [None], [[1], None], [["x"]], [[1], [2, 3]]])
def test_what_is_no_list_of_vectors_is_refused(rows: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        array_of(rows)
