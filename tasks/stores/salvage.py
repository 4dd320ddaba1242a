"""Reading what can be read where a server fails on some of the records.

A server answers a whole page with an error because of one record in it: a vector that its index has
lost, a row that it cannot decode. The page is cut in parts until single records fail, and those are
named. What fails alone may still be an outage, so nobody is accused who has not failed twice, and
not unless a record that could be read before can be read afterwards.

Among 1000 records, one that cannot be read costs about 30 requests, and `MOST_SUSPECTS` of them
at most 900; then the rest is left untried and said to be so.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.errors import StoreGarbled
from tasks.records import RecordBatch
from tasks.stores import answers
from tasks.stores.base import Collection, RecordRefusal, Store
from tasks.stores.transport import ContentRefused, ServerFailed

MOST_SUSPECTS = 100
_PARTS = 8
_CONTROL_IDS = 1000  # among so many of the collection's first ids a control is looked for
_MAY_BE_A_RECORD = (ServerFailed, StoreGarbled, ContentRefused)


def read_what_can_be_read(
    store: Store, collection: Collection, ids: Sequence[str]
) -> tuple[RecordBatch, list[RecordRefusal]]:
    """As `Store.read`, but records that the server fails on are named, and the others are read.

    Raises what `Store.read` raises if the store cannot be reached, or if it fails on everything
    that is tried: then it is the server, not the records.
    """
    try:
        return _read(store, collection, ids), []
    except _MAY_BE_A_RECORD:
        store.check()
    found, suspects, untried = _search(store, collection, ids)
    refusals = []
    for suspect in suspects:
        try:
            found.append(_read(store, collection, [suspect]))
        except _MAY_BE_A_RECORD as error:
            refusals.append(RecordRefusal(id=suspect, reason=f"cannot be read: {error}"))
    store.read(collection, [_control(store, collection, found, ids)])
    skipped = f"not tried, after {MOST_SUSPECTS} others of its chunk that could not be read"
    refusals += [RecordRefusal(id=id_, reason=skipped) for id_ in untried]
    place = {id_: row for row, id_ in enumerate(ids)}
    refusals.sort(key=lambda refusal: place[refusal.id])
    batch = answers.joined(found)
    order = sorted(range(len(batch)), key=lambda row: place[batch.ids[row]])
    return batch.take(order), refusals


def _read(store: Store, collection: Collection, ids: Sequence[str]) -> RecordBatch:
    batch = store.read(collection, ids)
    _ = batch.embeddings  # a text that is no vector shows only now
    return batch


def _search(
    store: Store, collection: Collection, ids: Sequence[str]
) -> tuple[list[RecordBatch], list[str], list[str]]:
    """What was read, the ids that could not be, and those that were given up untried."""
    found: list[RecordBatch] = []
    suspects: list[str] = []
    to_read = _parts(ids)
    while to_read and len(suspects) < MOST_SUSPECTS:
        part = to_read.pop()
        try:
            found.append(_read(store, collection, part))
        except _MAY_BE_A_RECORD:
            if len(part) == 1:
                suspects += part
            else:
                to_read += _parts(part)
    return found, suspects, [id_ for part in to_read for id_ in part]


def _parts(ids: Sequence[str]) -> list[Sequence[str]]:
    size = -(-len(ids) // _PARTS)
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _control(
    store: Store, collection: Collection, found: Sequence[RecordBatch], ids: Sequence[str]
) -> str:
    """A record that could be read, or at least one that nothing speaks against, if there is any."""
    for batch in found:
        if len(batch):
            return batch.ids[0]
    others = set(next(store.ids(collection, page_size=_CONTROL_IDS), [])) - set(ids)
    return min(others, default=ids[0])
