"""Listing ids while a collection changes: whatever stays is given once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.stores.paging import Moved, ids_in_pages


class Rows:
    """A collection's rows in the server's order; `between` runs before each page but the first."""

    def __init__(self, count: int, between: Callable[[Rows], None] = lambda _: None) -> None:
        self.ids = [f"r{number}" for number in range(count)]
        self.between = between
        self.requests: list[tuple[int, int]] = []

    def fetch(self, offset: int, limit: int) -> list[str]:
        if self.requests:
            self.between(self)
        self.requests.append((offset, limit))
        return self.ids[offset : offset + limit]

    def delete(self, first: int, last: int) -> None:
        del self.ids[first:last]

    def insert_again(self, *rows: int) -> None:
        """Deleted and inserted: to the end, as SQLite numbers rows."""
        moved = [self.ids[row] for row in rows]
        self.ids = [id_ for id_ in self.ids if id_ not in moved] + moved


def listed(rows: Rows, *, page_size: int = 10, min_tail: int = 40) -> list[str]:
    pages = ids_in_pages(rows.fetch, page_size=page_size, min_tail=min_tail)
    return [id_ for page in pages for id_ in page]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 100])
def test_an_unchanged_collection_is_listed_in_order(count: int) -> None:
    rows = Rows(count)
    assert listed(rows) == [f"r{number}" for number in range(count)]
    assert len(rows.requests) == -(-count // 10) + 1


def test_pages_overlap_by_a_little_only() -> None:
    rows = Rows(1000)
    listed(rows, page_size=100)
    assert sum(limit for _, limit in rows.requests) < 1000 + 11 * 120


def test_a_server_that_gives_less_than_asked_is_listed_whole() -> None:
    rows = Rows(100)

    def fetch(offset: int, limit: int) -> list[str]:
        return rows.ids[offset : offset + min(limit, 25)]

    pages = ids_in_pages(fetch, page_size=50)
    assert [id_ for page in pages for id_ in page] == rows.ids


def test_deletes_far_before_the_place_are_found() -> None:
    def delete_much_once(rows: Rows) -> None:
        if len(rows.requests) == 50:
            rows.delete(0, 450)

    assert listed(Rows(1000, delete_much_once)) == [f"r{number}" for number in range(1000)]


def test_a_tail_that_is_deleted_is_noticed() -> None:
    def delete_the_tail_once(rows: Rows) -> None:
        if len(rows.requests) == 20:
            rows.delete(100, 200)

    with pytest.raises(Moved):
        listed(Rows(1000, delete_the_tail_once))


def test_a_collection_that_is_emptied_ends_the_listing() -> None:
    rows = Rows(1000, lambda rows: rows.delete(0, 1000) if len(rows.requests) == 20 else None)
    assert len(listed(rows)) == 200


def test_a_last_row_that_is_inserted_again_hides_nothing() -> None:
    """Taken for its old self, it would make the listing skip everything before it."""

    def insert_the_last_again(rows: Rows) -> None:
        if len(rows.requests) == 5:
            rows.insert_again(49)

    rows = Rows(60, insert_the_last_again)
    assert set(listed(rows, min_tail=20)) == {f"r{number}" for number in range(60)}


@given(
    count=st.integers(0, 200),
    page_size=st.integers(1, 30),
    min_tail=st.sampled_from([1, 20, 1000]),
    data=st.data(),
)
def test_what_stays_is_given_once(
    count: int, page_size: int, min_tail: int, data: st.DataObject
) -> None:
    untouched = {f"r{number}" for number in range(count)}
    fresh = iter(range(10**6))

    def change(rows: Rows) -> None:
        if not data.draw(st.booleans()):
            return
        first = data.draw(st.integers(0, len(rows.ids)))
        last = data.draw(st.integers(first, min(len(rows.ids), first + 30)))
        untouched.difference_update(rows.ids[first:last])
        rows.delete(first, last)
        inserted = data.draw(st.integers(0, 3))
        rows.ids += [f"new{next(fresh)}" for _ in range(inserted)]

    try:
        times = Counter(listed(Rows(count, change), page_size=page_size, min_tail=min_tail))
    except Moved:
        # Only where the tail was short enough to be deleted whole.
        assume(min_tail >= 1000)
        raise
    assert all(times[id_] == 1 for id_ in untouched)
    assert all(number == 1 for number in times.values())


@given(count=st.integers(0, 60), page_size=st.integers(1, 20), data=st.data())
def test_what_stays_is_given_once_though_others_are_inserted_again(
    count: int, page_size: int, data: st.DataObject
) -> None:
    untouched = {f"r{number}" for number in range(count)}

    def change(rows: Rows) -> None:
        if not rows.ids or not data.draw(st.booleans()):
            return
        chosen = data.draw(st.lists(st.integers(0, len(rows.ids) - 1), unique=True, max_size=5))
        untouched.difference_update(rows.ids[row] for row in chosen)
        rows.insert_again(*chosen)

    times = Counter(listed(Rows(count, change), page_size=page_size, min_tail=1000))
    assert all(times[id_] == 1 for id_ in untouched)
    assert set(times) == {f"r{number}" for number in range(count)}
