"""What the user asks for: which collections, how many deletions, which share."""

from __future__ import annotations

import pytest

from coordinator.chunk_size import LARGEST, SMALLEST, chunk_size
from coordinator.options import DeletionLimit, Options, Selection, parse_renames, parse_share
from tasks.errors import InvalidInput
from tasks.stores.base import Collection


def collections(*names: str) -> list[Collection]:
    return [Collection.new(name, configuration={}) for name in names]


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        (Selection(), ["docs-a", "docs-b", "notes"]),
        (Selection(names=["notes"]), ["notes"]),
        (Selection(include=["docs-*"]), ["docs-a", "docs-b"]),
        (Selection(names=["notes"], include=["*-b"]), ["docs-b", "notes"]),
        (Selection(exclude=["docs-?"]), ["notes"]),
        (Selection(names=["docs-a"], exclude=["docs-*"]), []),
        (Selection(include=["DOCS-*"]), []),
    ],
)
def test_collections_are_taken_by_name_and_pattern(selection: Selection, taken: list[str]) -> None:
    chosen = selection.choose(collections("docs-a", "docs-b", "notes"))
    assert [collection.name for collection in chosen] == taken


def test_two_cannot_have_one_name() -> None:
    swapped = Selection(renames={"a": "b", "b": "a"})
    assert [swapped.target_name(one.name) for one in swapped.choose(collections("a", "b"))] == [
        "b",
        "a",
    ]
    with pytest.raises(InvalidInput, match="Both 'a' and 'b' would be 'b'"):
        Selection(renames={"a": "b"}).choose(collections("a", "b"))
    with pytest.raises(InvalidInput, match="'c' is not among"):
        Selection(renames={"c": "b"}).choose(collections("a", "b"))


def test_a_selection_survives_its_document() -> None:
    selection = Selection(names=["b", "a"], include=["x*"], exclude=["y"], renames={"a": "z"})
    again = Selection.from_document(selection.document())
    assert again.document() == selection.document()
    other = Selection(names=["a", "b"], include=["x*"], exclude=["y"], renames={"a": "z"})
    assert Options(selection=other).of_run() == Options(selection=selection).of_run()


@pytest.mark.parametrize(
    ("text", "allowed"), [("0", 0), ("7", 7), ("50%", 100), ("0.5%", 1), ("100%", 201), ("0%", 0)]
)
def test_a_limit_is_a_number_or_a_share(text: str, allowed: int) -> None:
    assert DeletionLimit(text=text).of(201) == allowed


@pytest.mark.parametrize("text", ["", "-1", "101%", "half", "5 %", "%", "1.5"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(InvalidInput, match="--max-delete"):
        DeletionLimit(text=text)


def test_shares_and_renames_are_read() -> None:
    assert parse_share("0.5%") == 0.005
    assert parse_share("100%") == 1
    assert parse_renames(["a=b", "c=d=e", "a=b"]) == {"a": "b", "c": "d=e"}
    for wrong in ("0%", "5", "200%"):
        with pytest.raises(InvalidInput, match="--sample"):
            parse_share(wrong)
    for pairs in (["a"], ["=b"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(InvalidInput, match="--map"):
            parse_renames(pairs)


def test_a_chunk_is_bounded_by_bytes_time_and_count() -> None:
    usual = chunk_size(5_000, count=1_000_000)
    assert SMALLEST < usual < LARGEST
    assert chunk_size(50_000, count=1_000_000) < usual  # large records: fewer
    assert chunk_size(5_000, count=1_000_000, records_per_second=200) < usual  # a slow server
    assert chunk_size(5_000, count=6_000) < usual  # a small collection is shared out
    assert chunk_size(1, count=10**9) == LARGEST
    assert chunk_size(10**9, count=10**9) == SMALLEST
