"""What a store makes of a server that fails: the right type of error, and no secret in it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from email.utils import formatdate
from time import time
from typing import Any
from uuid import UUID

import pytest

from tasks.errors import (
    ChromaSyncError,
    CollectionNotFound,
    InvalidInput,
    Permanent,
    Retryable,
    StoreGarbled,
    StoreOverloaded,
    StoreRefused,
    StoreUnavailable,
)
from tasks.stores.address import parse_address
from tasks.stores.base import Collection, Store
from tasks.stores.open import open_store
from tests.contract.scripted import Answer, ScriptedServer, scripted_server
from tests.contract.test_store_contract import records
from tests.eventually import eventually

SECRET = "hunter2-very-secret"
COLLECTION = Collection(
    id=UUID(int=1), name="books", dimension=3, metadata=None, configuration={}, schema=None
)
DEFINITION = {"id": str(COLLECTION.id), "name": COLLECTION.name, "dimension": 3}
RECORD: dict[str, Any] = {
    "ids": ["a"],
    "embeddings": [[1, 2, 3]],
    "documents": None,
    "metadatas": [{}],
    "uris": [None],
}


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with scripted_server() as script:
        yield script


@pytest.fixture
def opened(script: ScriptedServer) -> Iterator[Store]:
    store = open_store(
        parse_address(f"{script.endpoint}?token_env=TOKEN"),
        environ={"TOKEN": SECRET},
        read_timeout=0.2,
    )
    yield store
    store.close()


def count(store: Store) -> int:
    return store.count(COLLECTION)


def fault(store: Store, kind: type[ChromaSyncError], call: Callable[[Store], Any] = count) -> str:
    """The message of the error, which is of exactly this type, one line, and names the store."""
    with pytest.raises(kind) as caught:
        call(store)
    message = str(caught.value)
    assert isinstance(caught.value, kind)
    assert message.startswith(f"{store.label}: ")
    assert "\n" not in message
    assert SECRET not in message
    assert len(message) < 600
    return message


def test_the_token_is_sent_as_the_address_says(script: ScriptedServer, opened: Store) -> None:
    script.say(Answer(body=1))
    count(opened)
    assert script.requests[-1][1]["authorization"] == f"Bearer {SECRET}"
    with_header = f"{script.endpoint}?token_env=T&token_header=X-Chroma-Token"
    other = open_store(parse_address(with_header), environ={"T": SECRET})
    count(other)
    other.close()
    assert script.requests[-1][1]["x-chroma-token"] == SECRET
    assert "authorization" not in script.requests[-1][1]


def test_a_path_before_the_api_is_kept_and_names_are_quoted(script: ScriptedServer) -> None:
    script.say(Answer(body=1))
    store = open_store(parse_address(f"{script.endpoint}/proxy?tenant=a/b"), environ={})
    count(store)
    assert script.requests[-1][0].startswith("/proxy/api/v2/tenants/a%2Fb/databases/default_d")
    fault(store, StoreGarbled, lambda store: store.collection("a/b?é"))
    assert script.requests[-1][0].endswith("/collections/a%2Fb%3F%C3%A9")
    store.close()


def test_nobody_listens() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else can take the port
        taken.bind(("127.0.0.1", 0))
        store = open_store(parse_address(f"http://127.0.0.1:{taken.getsockname()[1]}"), environ={})
        assert "Connection refused; is the server running?" in fault(store, StoreUnavailable)
        assert "check: cannot connect" in fault(store, StoreUnavailable, lambda s: s.check())
        store.close()


def test_a_host_that_has_no_address() -> None:
    store = open_store(parse_address("http://no-such-host.invalid"), environ={})
    assert "cannot be resolved" in fault(store, StoreUnavailable)
    store.close()


def test_no_answer_in_time(script: ScriptedServer, opened: Store) -> None:
    script.say(Answer(silent=True))
    assert "count 'books': no answer within 0.2 s" in fault(opened, StoreUnavailable)


@pytest.mark.parametrize("answer", [Answer(hang_up=True), Answer(body=[1, 2, 3, 4], cut=True)])
def test_a_connection_that_ends(script: ScriptedServer, opened: Store, answer: Answer) -> None:
    script.say(answer)
    assert "the connection broke" in fault(opened, StoreUnavailable)


def test_a_server_that_is_not_reached_over_tls(script: ScriptedServer) -> None:
    script.say(Answer(body=1))
    store = open_store(parse_address(f"https://127.0.0.1:{script.port}"), environ={})
    assert "is it https at all?" in fault(store, StoreRefused)
    store.close()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_overload(script: ScriptedServer, opened: Store, status: int) -> None:
    script.say(Answer(status=status, body={"error": "x", "message": "too\nbusy"}))
    assert f"count 'books': too busy (HTTP {status})" in fault(opened, StoreOverloaded)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("-3", 0, 0),
        ("86400", 120, 120),
        ("inf", 120, 120),
        ("nan", None, None),
        (+86400, 120, 120),
        (+100, 50, 101),
        (-100, 0, 0),
        ("soon", None, None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None, None),
        (None, None, None),
    ],
)
def test_the_server_says_when_to_come_again(
    script: ScriptedServer,
    opened: Store,
    value: str | int | None,
    low: float | None,
    high: float | None,
) -> None:
    if isinstance(value, int):  # a date, so many seconds from now
        value = formatdate(time() + value, usegmt=True)
    script.say(Answer(status=429, headers={"Retry-After": value} if value else {}))
    with pytest.raises(StoreOverloaded) as caught:
        count(opened)
    after = caught.value.retry_after
    if low is None or high is None:
        assert after is None
    else:
        assert after is not None
        assert low <= after <= high


@pytest.mark.parametrize("status", [401, 403])
def test_no_right(script: ScriptedServer, opened: Store, status: int) -> None:
    script.say(Answer(status=status, body={"error": "AuthError", "message": f"bad {SECRET}"}))
    message = fault(opened, StoreRefused)
    assert "bad ***" in message
    assert "?token_env=NAME" in message


def test_a_redirect_is_not_followed(script: ScriptedServer, opened: Store) -> None:
    script.say(Answer(status=308, headers={"Location": "https://elsewhere/"}))
    assert "give the address that it redirects to" in fault(opened, StoreRefused)
    assert len(script.requests) == 1


def test_a_long_refusal_is_cut_to_a_line(script: ScriptedServer, opened: Store) -> None:
    script.say(Answer(status=400, body={"message": "no\n" * 1000}))
    assert "no no no" in fault(opened, StoreRefused)


def test_a_page_of_html_is_no_answer(script: ScriptedServer, opened: Store) -> None:
    script.say(Answer(body=b"<html>\n<body>Welcome"))
    assert "the answer is no JSON" in fault(opened, StoreGarbled)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": None},
        {"ids": "a"},
        {"ids": [1]},
        {"ids": ["b"]},
        {"ids": ["a", "a"]},
        {"embeddings": None},
        {"embeddings": []},
        {"embeddings": [None]},
        {"embeddings": [[1], [2]]},
        {"embeddings": ["AAAA"]},
        {"documents": [1]},
        {"documents": []},
        {"metadatas": ["{}"]},
        {"uris": [None, None]},
    ],
)
def test_an_answer_with_a_wrong_column_is_garbled(
    script: ScriptedServer, opened: Store, change: dict[str, Any]
) -> None:
    script.say(Answer(body=RECORD))
    assert opened.read(COLLECTION, ["a"]).ids == ["a"]
    script.say(Answer(body=RECORD | change))
    fault(opened, StoreGarbled, lambda store: store.read(COLLECTION, ["a"]))


@pytest.mark.parametrize("body", [[], None, "x", {}, {"ids": 7}, {"ids": [None]}])
def test_an_answer_of_another_shape_is_garbled(
    script: ScriptedServer, opened: Store, body: Any
) -> None:
    script.say(Answer(body=body))
    calls: list[Callable[[Store], Any]] = [
        lambda store: store.read(COLLECTION, ["a"]),
        lambda store: list(store.ids(COLLECTION)),
        lambda store: store.collection("books"),
        lambda store: store.create(COLLECTION),
        lambda store: store.query(COLLECTION, records("a").embeddings, 1),
        lambda store: store.add(COLLECTION, records("a")),
    ]
    for call in calls:
        fault(opened, StoreGarbled, call)


WRITES: dict[str, Callable[[Store], Any]] = {
    "add": lambda store: store.add(COLLECTION, records("a")),
    "upsert": lambda store: store.upsert(COLLECTION, records("a")),
    "delete": lambda store: store.delete(COLLECTION, ["a"]),
    "modify": lambda store: store.modify(COLLECTION, metadata={}),
    "drop": lambda store: store.drop(COLLECTION),
}


@pytest.mark.parametrize("verb", WRITES)
@pytest.mark.parametrize("body", [[], "ok", 7, False, {"error": "x"}])
def test_a_write_that_is_not_acknowledged_is_garbled(
    script: ScriptedServer, opened: Store, verb: str, body: Any
) -> None:
    before = [Answer(body={"max_batch_size": 10})] if verb in ("add", "upsert") else []
    before += [Answer(body=DEFINITION)] if verb == "drop" else []
    script.say(*before, Answer(body=body))
    fault(opened, StoreGarbled, WRITES[verb])


@pytest.mark.parametrize("verb", ["add", "upsert", "delete"])
@pytest.mark.parametrize("body", [{}, {"deleted": 1}, True, None])  # of 1.5.9 and of 0.6.3
def test_a_write_that_is_acknowledged(
    script: ScriptedServer, opened: Store, verb: str, body: Any
) -> None:
    before = [Answer(body={"max_batch_size": 10})] if verb in ("add", "upsert") else []
    script.say(*before, Answer(body=body))
    assert not WRITES[verb](opened)


def test_a_number_that_json_cannot_hold_reads_as_nan(script: ScriptedServer, opened: Store) -> None:
    script.say(Answer(body=RECORD | {"embeddings": [[1, None, 3]], "metadatas": [{"k": None}]}))
    batch = opened.read(COLLECTION, ["a"])
    assert str(batch.embeddings.tolist()) == "[[1.0, nan, 3.0]]"
    assert batch.metadatas == [None]


def test_a_collection_that_is_gone(script: ScriptedServer, opened: Store) -> None:
    script.say(Answer(status=404, body={"error": "NotFoundError", "message": "gone"}))
    assert "gone" in fault(opened, CollectionNotFound)


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_before_version_1_says_otherwise_that_a_collection_is_gone(
    script: ScriptedServer, opened: Store, status: int
) -> None:
    another = DEFINITION | {"id": str(UUID(int=2))}
    refused = Answer(status=status, body={"error": "ValueError"})
    script.say(Answer(body={"max_batch_size": 10}), refused, Answer(body=another))
    message = fault(opened, CollectionNotFound, lambda store: store.add(COLLECTION, records("a")))
    assert "was deleted, another has its name now" in message
    if status == 400:
        script.say(Answer(body="0.6.3"), refused, Answer(body=another))
        fault(opened, CollectionNotFound, lambda store: store.read(COLLECTION, ["a"]))


def test_a_server_before_version_1_says_500_to_a_wrong_dimension(
    script: ScriptedServer, opened: Store
) -> None:
    stale = replace(COLLECTION, dimension=None)
    script.say(Answer(body={"max_batch_size": 10}), Answer(status=500), Answer(body=DEFINITION))
    refusals = opened.add(stale, records("a", "b", dimension=4))
    assert [refusal.id for refusal in refusals] == ["a", "b"]


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_name_that_is_not_there_whatever_the_server_calls_that(
    script: ScriptedServer, opened: Store, status: int
) -> None:
    script.say(Answer(status=status, body={"error": "ValueError"}), Answer(body=[]))
    message = fault(opened, CollectionNotFound, lambda store: store.collection("x"))
    assert "the database holds none" in message


@pytest.mark.parametrize("status", [404, 400, 500])
def test_a_collection_that_another_deletes_first_is_dropped(
    script: ScriptedServer, opened: Store, status: int
) -> None:
    gone = Answer(status=status, body={"error": "ValueError"})
    script.say(Answer(body=DEFINITION), gone, gone, Answer(body=[]))
    opened.drop(COLLECTION)
    assert script.requests[1][0].endswith("/collections/books")
    script.say(Answer(body=DEFINITION), Answer(status=503))
    fault(opened, StoreOverloaded, lambda store: store.drop(COLLECTION))


def test_a_change_that_fails_otherwise_than_by_its_name_may_be_repeated(
    script: ScriptedServer, opened: Store
) -> None:
    script.say(Answer(status=500), Answer(body=DEFINITION))
    fault(opened, StoreOverloaded, lambda store: store.modify(COLLECTION, name="books"))
    script.say(Answer(status=503))
    fault(opened, StoreOverloaded, lambda store: store.modify(COLLECTION, metadata={}))


def test_what_answers_is_no_chroma(script: ScriptedServer, opened: Store) -> None:
    for answer in (
        Answer(body=b"<html>"),
        Answer(body={"status": "ok"}),
        Answer(status=404, body=b"not found"),
        Answer(body=[]),
    ):
        script.say(answer)
        assert "no Chroma server" in fault(opened, InvalidInput, lambda store: store.check())


def test_a_database_that_another_makes_first_is_taken(
    script: ScriptedServer, opened: Store
) -> None:
    beat, missing = Answer(body={"nanosecond heartbeat": 1}), Answer(status=404)
    script.say(beat, Answer(body={}), missing, Answer(status=409), Answer(body={}))
    opened.check(create=True)
    script.say(beat, Answer(body={}), missing, Answer(status=409, body={"message": "no"}), missing)
    message = fault(opened, StoreRefused, lambda store: store.check(create=True))
    assert "make the database 'default_database': no" in message


def test_a_failing_check_may_be_repeated(script: ScriptedServer, opened: Store) -> None:
    script.say(Answer(status=503))
    fault(opened, StoreOverloaded, lambda store: store.check())
    assert issubclass(StoreOverloaded, Retryable)
    assert issubclass(InvalidInput, Permanent)


def test_the_limits_are_asked_for_once(script: ScriptedServer, opened: Store) -> None:
    script.say(
        Answer(status=500),
        Answer(body={"max_batch_size": 2}),
        Answer(status=201, body={}),
    )
    batch = records("a", "b", "c")
    fault(opened, StoreOverloaded, lambda store: store.add(COLLECTION, batch))
    opened.add(COLLECTION, batch)
    opened.add(COLLECTION, batch)
    paths = [path.rpartition("/")[2] for path, _ in script.requests]
    assert paths == ["pre-flight-checks"] * 2 + ["add"] * 4


def test_one_request_at_a_time_is_written(script: ScriptedServer, opened: Store) -> None:
    script.say(Answer(body={"max_batch_size": 1}), Answer(status=201, body={}))
    opened.add(COLLECTION, records("a"))
    batch = records(*(str(number) for number in range(20)))
    with ThreadPoolExecutor(4) as threads:
        for write in [threads.submit(opened.upsert, COLLECTION, batch) for _ in range(4)]:
            assert write.result() == []
    assert len(script.requests) == 2 + 80
    assert script.most_present == 1


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_is_written_at_a_time_than_is_allowed(script: ScriptedServer, most: int) -> None:
    script.say(
        Answer(body={"max_batch_size": 10}), Answer(status=201, body={}), Answer(silent=True)
    )
    address = parse_address(script.endpoint)
    with closing(open_store(address, environ={}, concurrent_writes=most)) as store:
        store.add(COLLECTION, records("a"))
        with ThreadPoolExecutor(8) as threads:
            writes = [threads.submit(store.upsert, COLLECTION, records("b")) for _ in range(8)]
            try:
                eventually(lambda: script.present == most, within=5)
            finally:
                script.over.set()
            assert all(isinstance(write.exception(), StoreUnavailable) for write in writes)
    assert len(script.requests) == 2 + 8
    assert script.most_present == most


@pytest.mark.parametrize("status", [400, 413, 422, 501])
def test_a_refusal_is_told_per_record_whatever_its_status(
    script: ScriptedServer, opened: Store, status: int
) -> None:
    script.say(
        Answer(body={"max_batch_size": 10, "supports_base64_encoding": True}),
        Answer(status=status, body={"message": f"no {SECRET}"}),  # both
        Answer(body=DEFINITION),  # it is still there
        Answer(status=status, body={"message": "no"}),  # a alone
        Answer(status=201, body={}),  # b alone
    )
    (refusal,) = opened.add(COLLECTION, records("a", "b"))
    assert (refusal.id, refusal.reason) == ("a", "no")


def test_an_overload_amid_a_search_for_refused_records_is_raised(
    script: ScriptedServer, opened: Store
) -> None:
    script.say(
        Answer(body={"max_batch_size": 10}),
        Answer(status=400, body={"message": "no"}),
        Answer(body=DEFINITION),
        Answer(status=429),
    )
    fault(opened, StoreOverloaded, lambda store: store.add(COLLECTION, records("a", "b")))
