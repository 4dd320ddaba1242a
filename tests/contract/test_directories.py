"""Directories: which are taken, who may serve them, and that no server is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, urlencode
from urllib.request import urlopen

import psutil
import pytest

from tasks.errors import InvalidInput, StoreRefused, StoreUnavailable
from tasks.stores import server as server_module
from tasks.stores.address import parse_address
from tasks.stores.base import Collection, Store
from tasks.stores.chroma_directory import check_directory
from tasks.stores.directory_lock import DATABASE_FILE, LOCK_FILE, DirectoryLock
from tasks.stores.open import open_store
from tasks.stores.server import ChromaServer
from tests.contract.conftest import connected
from tests.contract.scripted import Answer, scripted_server


def test_a_directory_of_chroma_is_taken(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).touch()
    check_directory(tmp_path, create=False)
    check_directory(tmp_path, create=True)


def test_a_target_may_be_made(tmp_path: Path) -> None:
    check_directory(tmp_path, create=True)
    check_directory(tmp_path / "new", create=True)
    (tmp_path / LOCK_FILE).touch()
    check_directory(tmp_path, create=True)
    assert not (tmp_path / "new").exists()


def test_what_is_no_directory_of_chroma_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, create, says in (
        (tmp_path, False, "holds other files"),
        (tmp_path, True, "holds other files"),
        (file, False, "is a file"),
        (file, True, "is a file"),
        (file / "below", True, "cannot be"),
        (tmp_path / "missing", False, "does not exist"),
        (tmp_path / "missing" / "new", True, "missing does not exist"),
    ):
        with pytest.raises(InvalidInput, match=says):
            check_directory(path, create=create)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="is empty"):
        check_directory(tmp_path / "empty", create=False)


def test_one_lock_for_a_directory(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    with pytest.raises(InvalidInput, match=rf"in use by .*\(pid {os.getpid()}\)"):
        DirectoryLock(tmp_path)
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []
    DirectoryLock(tmp_path).release()


def test_a_lock_file_that_was_left_behind_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("1")
    DirectoryLock(tmp_path).release()


def test_a_directory_that_another_process_serves_is_refused(tmp_path: Path) -> None:
    database = tmp_path / DATABASE_FILE
    database.touch()
    code = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InvalidInput, match=rf"pid {other.pid}\).*http address"):
            DirectoryLock(tmp_path)
        other.communicate()
    DirectoryLock(tmp_path).release()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a collection of one record, written by Chroma itself and closed."""
    path = tmp_path_factory.mktemp("written")
    # By a process of its own: after `close`, a client may have the database open for a while.
    code = (
        "import sys, chromadb\n"
        "from chromadb.config import Settings\n"
        "client = chromadb.PersistentClient(sys.argv[1], Settings(anonymized_telemetry=False))\n"
        "kept = client.create_collection('kept', embedding_function=None)\n"
        "kept.add(ids=['a'], embeddings=[[1, 2]])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    return path


def test_a_directory_is_served_while_its_store_is_open(written: Path) -> None:
    store = open_store(parse_address(str(written)), environ={})
    assert store.label == str(written)
    kept = store.collection("kept")
    assert store.read(kept, ["a"]).embeddings.tolist() == [[1.0, 2.0]]

    # Other processes of the same run go to its endpoint, over http.
    other = open_store(parse_address(store.endpoint), environ={})
    assert other.count(kept) == 1
    with pytest.raises(InvalidInput, match="in use"):
        open_store(parse_address(str(written)), environ={})
    store.close()
    with pytest.raises(StoreUnavailable):
        other.count(kept)
    other.close()
    store.close()
    assert not (written / LOCK_FILE).exists()


def test_a_server_dies_with_the_process_that_started_it(written: Path) -> None:
    code = (
        "import sys; from tasks.stores.server import ChromaServer\n"
        "server = ChromaServer(sys.argv[1]).start(); print(server.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(written)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    try:
        child.wait(timeout=20)
    finally:
        if child.is_running():
            child.kill()


CHROMA_IN_BRIEF = """#!{python} -IS
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
try:
    server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler)
except OSError:
    sys.exit("the address is not available")
server.serve_forever()
"""


def test_a_taken_port_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not the real program, which takes seconds to find out that it cannot have the port.
    program = tmp_path / "chroma"
    program.write_text(CHROMA_IN_BRIEF.format(python=sys.executable))
    program.chmod(0o700)
    monkeypatch.setattr(server_module, "_executable", lambda: str(program))
    with scripted_server() as taken:
        taken.say(Answer(body={}))  # as another Chroma server would, and must not pass for ours
        free = server_module._free_port()
        ports = iter([taken.port, free])
        monkeypatch.setattr(server_module, "_free_port", lambda: next(ports))
        with ChromaServer(tmp_path) as server:
            assert server.endpoint == f"http://127.0.0.1:{free}"
            pid = server.pid
        assert pid is not None
        assert not psutil.pid_exists(pid)


def test_a_directory_that_chroma_cannot_serve_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / DATABASE_FILE).write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreRefused, match="file is not a database") as caught:
        ChromaServer(tmp_path).start()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_server_that_does_not_answer_in_time_is_stopped(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(StoreUnavailable, match="within 0 s"):
        ChromaServer(tmp_path, start_seconds=0).start()
    assert {child.pid for child in psutil.Process().children()} <= before
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_tenant_or_database_that_is_not_there(http_store: Store) -> None:
    for query, says in (("tenant=nope", "no tenant 'nope'"), ("database=no/pe", "no database")):
        store = open_store(parse_address(f"{http_store.endpoint}?{query}"), environ={})
        with pytest.raises(InvalidInput, match=f"{says}.*--create-database"):
            store.check()
        store.close()


def test_a_tenant_and_a_database_are_made_on_demand(store: Store) -> None:
    for tenant, database in (("new tenant é", "first"), ("new tenant é", "second")):
        query = urlencode({"tenant": tenant, "database": database})
        made = open_store(parse_address(f"{store.endpoint}?{query}"), environ={})
        with pytest.raises(InvalidInput):
            made.check()
        made.check(create=True)
        made.check(create=True)
        made.check()
        kept = made.create(Collection.new("kept", configuration={}))
        assert made.collections() == [kept]
        made.close()
        path = f"/api/v2/tenants/{quote(tenant, safe='')}/databases/{database}"
        with urlopen(f"{store.endpoint}{path}") as answer:
            found = json.load(answer)
        assert (found["tenant"], found["name"]) == (tenant, database)
    assert "kept" not in {found.name for found in store.collections()}


def test_a_database_name_that_the_server_refuses(store: Store) -> None:
    refused = open_store(parse_address(f"{store.endpoint}?database=d"), environ={})
    with pytest.raises(StoreRefused, match=r"make the database 'd': .*3"):
        refused.check(create=True)
    refused.close()


def test_databases_are_kept_apart(http_store: Store) -> None:
    with connected(http_store.endpoint) as client:
        client._admin_client.create_database("other")  # type: ignore[attr-defined]
        client.create_collection("in-the-default", embedding_function=None)
    store = open_store(parse_address(f"{http_store.endpoint}?database=other"), environ={})
    store.check()
    made = store.create(http_store.collection("in-the-default"))
    assert [found.id for found in store.collections()] == [made.id]
    assert made.id not in {found.id for found in http_store.collections()}
    store.close()
