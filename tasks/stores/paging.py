"""Listing all ids of a collection that changes meanwhile.

Chroma pages by offset, in the order in which records were inserted. A record that is deleted before
the page's position moves all later ones forward, and the next offset skips as many. So every page
is asked for with an overlap: it must begin with the last ids already given. If it does not, rows
have moved, and the page is asked for again from further and further back until it covers the ids
that were given last; what follows those is new.

Why that is right: rows keep their order, and a record that is deleted and inserted again moves to
the end. So the rows already given and not touched since are followed only by rows not given yet.
Memory holds one tail of given ids, not all of them: a record that was deleted and inserted again
behind the tail may be given twice. When nine tenths of the tail are gone there is too little to
recognise the place by, and the listing is given up (`Moved`), to be started again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_OVERLAP = 16  # more than one, so that a record inserted again does not pass for its old self
_MIN_TAIL = 1000
_MAX_TAIL = 50_000
_TRUSTED = 10  # a tenth of the tail must still be there, in one piece

_SEARCHES = 100

Fetch = Callable[[int, int], list[str]]  # (offset, limit) -> ids


class Moved(Exception):
    """So many ids were deleted between two pages that the place cannot be found again."""


def ids_in_pages(fetch: Fetch, *, page_size: int, min_tail: int = _MIN_TAIL) -> Iterator[list[str]]:
    """All ids, in non-empty pages of about `page_size`. Raises `Moved`, and what `fetch` raises."""
    tail_length = max(min(page_size, _MAX_TAIL), min_tail)
    tail: list[str] = []  # the last rows given, in the server's order
    position = 0  # how many rows stood before the next one when it was last looked
    searches = 0  # since the last new id
    while True:
        overlap = min(position, len(tail), _OVERLAP)
        page = fetch(position - overlap, overlap + page_size)
        if page[:overlap] == tail[len(tail) - overlap :]:
            new = page[overlap:]
            if not new:
                return
            tail += new
            position += len(new)
        else:
            searches += 1
            if searches > _SEARCHES:
                raise Moved
            page, new, position = _find_place(fetch, position, page_size, tail, tail_length)
            seen = set(page)
            tail = [id_ for id_ in tail if id_ not in seen] + page
        del tail[:-tail_length]
        if new:
            searches = 0
            yield new


def _find_place(
    fetch: Fetch, position: int, page_size: int, tail: list[str], tail_length: int
) -> tuple[list[str], list[str], int]:
    """The rows around the place, those of them not given yet, and how many rows stand before what
    comes next."""
    given = set(tail)
    if len(tail) < tail_length:  # it is everything that was ever given
        page = fetch(0, position + page_size)
        return page, [id_ for id_ in page if id_ not in given], len(page)
    back = 2 * tail_length
    while True:
        offset = max(0, position - back)
        page = fetch(offset, position - offset + page_size)
        first = next((row for row, id_ in enumerate(page) if id_ in given), len(page))
        after = first
        while after < len(page) and page[after] in given:
            after += 1
        # No page at all from the first row on: all are deleted, and nothing is left out.
        if after - first > len(tail) // _TRUSTED or (offset == 0 and not page):
            return page, [id_ for id_ in page[after:] if id_ not in given], offset + len(page)
        if offset == 0:
            raise Moved
        back *= 4
