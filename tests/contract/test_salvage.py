"""What is read of a server that fails on some records, and when that is not the records' fault.

A real server behind a proxy that answers for it when certain ids are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from socketserver import StreamRequestHandler

import pytest

from tasks.errors import StoreGarbled, StoreOverloaded, StoreUnavailable
from tasks.stores.address import parse_address
from tasks.stores.base import Collection, Store
from tasks.stores.open import open_store
from tasks.stores.salvage import MOST_SUSPECTS, read_what_can_be_read
from tasks.stores.transport import ServerFailed
from tests.chaos.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.contract.test_store_contract import expected, numbered

FAILED = Fault(status=500, body=b'{"error": "InternalError", "message": "no vector"}')


@dataclass
class Poison:
    """What is answered to a `get` that asks for one of these ids, so many times."""

    ids: set[str] = field(default_factory=set)
    fault: Fault = FAILED
    times: int = 1_000_000
    gets: int = 0  # how many came

    def judge(self, method: str, path: str, body: bytes) -> Fault:
        if not path.endswith("/get"):
            return Fault()
        self.gets += 1
        if self.times and self.ids & set(json.loads(body).get("ids", [])):
            self.times -= 1
            return self.fault
        return Fault()


@pytest.fixture
def proxy(http_store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    # Headers and body are written apart; each answer would wait 40 ms for an acknowledgement.
    monkeypatch.setattr(StreamRequestHandler, "disable_nagle_algorithm", True)
    with faulty_proxy(http_store.endpoint) as proxy:
        yield proxy


@pytest.fixture
def poison(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Poison:
    poison = Poison()
    monkeypatch.setattr(proxy, "judge", poison.judge)
    return poison


@pytest.fixture
def poisoned(proxy: FaultyProxy, poison: Poison) -> Iterator[Store]:
    store = open_store(parse_address(proxy.url), environ={})
    yield store
    store.close()


@pytest.fixture
def fill(http_store: Store, new_name: str) -> Callable[[int], Collection]:
    def create(count: int) -> Collection:
        made = http_store.create(Collection.new(new_name, configuration={}))
        http_store.add(made, numbered(count))
        return http_store.collection(new_name)

    return create


def test_a_healthy_server_is_read_in_one_request(
    poisoned: Store, poison: Poison, fill: Callable[[int], Collection]
) -> None:
    batch, refusals = read_what_can_be_read(poisoned, fill(50), numbered(60).ids)
    assert (batch.ids, refusals, poison.gets) == (numbered(50).ids, [], 1)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (FAILED, "no vector (HTTP 500)"),
        (Fault(status=502), "HTTP 502"),
        (Fault(status=400, body=b'{"message": "odd"}'), "odd (HTTP 400)"),
        (Fault(status=200, body=b'{"ids": ["r'), "no JSON"),
        (Fault(status=200, body=b'{"ids": ["r0"], "embeddings": [null]}'), "not what the API"),
    ],
)
def test_records_that_a_server_fails_on_are_named_and_the_others_read(
    poisoned: Store,
    poison: Poison,
    fill: Callable[[int], Collection],
    fault: Fault,
    says: str,
) -> None:
    collection, whole = fill(1000), numbered(1000)
    poison.ids, poison.fault = {"r0", "r500", "r501", "r999"}, fault
    wanted = [*whole.ids, "never there"]
    batch, refusals = read_what_can_be_read(poisoned, collection, wanted)
    assert [refusal.id for refusal in refusals] == ["r0", "r500", "r501", "r999"]
    assert all(says in refusal.reason for refusal in refusals)
    rest = whole.take([row for row, id_ in enumerate(whole.ids) if id_ not in poison.ids])
    assert expected(batch) == expected(rest)
    assert batch.ids == rest.ids
    assert poison.gets < 150


def test_a_record_that_can_be_read_after_all_takes_its_place(
    poisoned: Store, poison: Poison, fill: Callable[[int], Collection]
) -> None:
    collection, whole = fill(20), numbered(20)
    poison.ids, poison.times = {"r3"}, 3  # the page, a part of it, and the record alone
    batch, refusals = read_what_can_be_read(poisoned, collection, whole.ids)
    assert (expected(batch), batch.ids, refusals) == (expected(whole), whole.ids, [])
    assert poison.times == 0


def test_what_can_be_read_elsewhere_proves_that_it_is_the_records(
    poisoned: Store, poison: Poison, fill: Callable[[int], Collection]
) -> None:
    collection = fill(50)
    poison.ids = {"r0", "r1"}
    batch, refusals = read_what_can_be_read(poisoned, collection, ["r0", "r1"])
    assert (len(batch), [refusal.id for refusal in refusals]) == (0, ["r0", "r1"])


def test_a_server_that_fails_on_everything_is_no_matter_of_records(
    poisoned: Store, poison: Poison, fill: Callable[[int], Collection]
) -> None:
    collection, ids = fill(3000), numbered(3000).ids
    poison.ids = set(ids)
    for asked in (ids, ["r0"]):
        poison.gets = 0
        with pytest.raises(ServerFailed, match="no vector"):
            read_what_can_be_read(poisoned, collection, asked)
        assert poison.gets < 300
    poison.fault = Fault(status=200, body=b"<html>")
    with pytest.raises(StoreGarbled):
        read_what_can_be_read(poisoned, collection, ids)


def test_a_server_that_fails_from_some_moment_on_is_no_matter_of_records(
    poisoned: Store,
    proxy: FaultyProxy,
    poison: Poison,
    fill: Callable[[int], Collection],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collection, ids = fill(100), numbered(100).ids
    poison.ids = {"r5"}

    def judge(method: str, path: str, body: bytes) -> Fault:
        if poison.gets >= 10:  # what was read before could be read
            poison.ids = set(ids)
        return poison.judge(method, path, body)

    monkeypatch.setattr(proxy, "judge", judge)
    with pytest.raises(ServerFailed):
        read_what_can_be_read(poisoned, collection, ids)


def test_a_server_that_is_away_or_busy_is_told_as_such(
    poisoned: Store,
    proxy: FaultyProxy,
    poison: Poison,
    fill: Callable[[int], Collection],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collection, ids = fill(10), numbered(10).ids
    poison.ids, poison.fault = {"r5"}, Fault(status=429)
    with pytest.raises(StoreOverloaded) as caught:
        read_what_can_be_read(poisoned, collection, ids)
    assert not isinstance(caught.value, ServerFailed)
    assert poison.gets == 1
    poison.fault = Fault(hang_up=True)
    with pytest.raises(StoreUnavailable):
        read_what_can_be_read(poisoned, collection, ids)
    asked: list[str] = []

    def judge(method: str, path: str, body: bytes) -> Fault:
        asked.append(path)
        return FAILED

    monkeypatch.setattr(proxy, "judge", judge)
    with pytest.raises(ServerFailed):
        read_what_can_be_read(poisoned, collection, ids)
    assert [path.rpartition("/")[2] for path in asked] == ["get", "heartbeat"]


def test_the_search_ends_and_says_what_it_did_not_try(
    poisoned: Store, poison: Poison, fill: Callable[[int], Collection]
) -> None:
    collection, whole = fill(1000), numbered(1000)
    poison.ids = set(whole.ids[::2])
    batch, refusals = read_what_can_be_read(poisoned, collection, whole.ids)
    assert poison.gets < 1000
    tried = [refusal for refusal in refusals if "no vector" in refusal.reason]
    assert len(tried) == MOST_SUSPECTS
    assert {refusal.id for refusal in tried} <= poison.ids
    left = [refusal for refusal in refusals if refusal not in tried]
    assert all(refusal.reason.startswith("not tried") for refusal in left)
    named = {refusal.id for refusal in refusals}
    assert batch.ids == [id_ for id_ in whole.ids if id_ not in named]
    assert len(batch) > 50
