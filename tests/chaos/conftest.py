"""Real servers and processes to break, and the table of how long recovery took."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.chaos.chroma_process import ChromaProcess
from tests.chaos.faulty_proxy import FaultyProxy, faulty_proxy
from tests.chaos.postgres_process import PostgresProcess, postgres_process
from tests.chaos.recovery import Recovery, table
from tests.chaos.scene import COLLECTION, Filled, MakeScene, Scene
from tests.e2e.conftest import Side, everything, fill, open_side

SEED = 20240229
LARGE, SMALL = 12_000, 1_000
DIMENSION = 128

LINES = pytest.StashKey[list[Recovery]]()

Add = Callable[[Recovery], None]
Tell = Callable[..., None]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    lines = config.stash.get(LINES, [])
    if not lines:
        return
    terminalreporter.section("recovery")
    for line in table(lines):
        terminalreporter.write_line(line)
    build = config.rootpath / "build"
    build.mkdir(exist_ok=True)
    for form, name in (("long", "chaos.json"), ("short", "chaos-short.json")):
        document = [line.document() for line in lines if line.form == form]
        if document:
            (build / name).write_text(json.dumps(document, indent=2) + "\n")


@pytest.fixture
def form(request: pytest.FixtureRequest) -> str:
    return "long" if request.node.get_closest_marker("chaos") else "short"


@pytest.fixture
def add(request: pytest.FixtureRequest) -> Add:
    """Adds a line to the table."""
    return request.config.stash[LINES].append


@pytest.fixture
def tell(add: Add, form: str) -> Tell:
    """Adds the line of a scene that ended well to the table."""

    def tell(scene: Scene, scenario: str, **notes: object) -> None:
        add(scene.recovery(scenario, form, **notes))

    return tell


# Stores -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def chroma_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="session")
def source_server(chroma_directory: Path) -> Iterator[ChromaProcess]:
    server = ChromaProcess(chroma_directory, "source")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def target_server(chroma_directory: Path) -> Iterator[ChromaProcess]:
    server = ChromaProcess(chroma_directory, "target")
    server.start()
    yield server
    server.kill()


def _filled(server: ChromaProcess, name: str, count: int) -> Filled:
    side = open_side(server.url, name)
    fill(side.client, COLLECTION, count, dimension=DIMENSION)
    return Filled(side=side, records=everything(side.client, COLLECTION))


@pytest.fixture(scope="session")
def large(source_server: ChromaProcess) -> Filled:
    return _filled(source_server, "large", LARGE)


@pytest.fixture(scope="session")
def small(source_server: ChromaProcess) -> Filled:
    return _filled(source_server, "small", SMALL)


@pytest.fixture
def filled(form: str, request: pytest.FixtureRequest) -> Filled:
    """The source of a scenario: the large one for a long form."""
    found = request.getfixturevalue("large" if form == "long" else "small")
    assert isinstance(found, Filled)
    return found


@pytest.fixture
def target(source_server: ChromaProcess, target_server: ChromaProcess) -> Side:
    """A fresh database on the target's server. Both servers run, whatever came before."""
    source_server.start()
    target_server.start()
    return open_side(target_server.url, f"db_{uuid4().hex[:8]}")


@pytest.fixture
def target_proxy(target_server: ChromaProcess) -> Iterator[FaultyProxy]:
    """A proxy in front of the target, for a scene to be put behind."""
    with faulty_proxy(target_server.url) as proxy:
        yield proxy


@pytest.fixture
def source_proxy(source_server: ChromaProcess) -> Iterator[FaultyProxy]:
    with faulty_proxy(source_server.url) as proxy:
        yield proxy


# Postgres ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def own_postgres() -> Iterator[PostgresProcess]:
    """A server apart from that of the other tests, to be restarted and killed."""
    with postgres_process() as server:
        yield server


@pytest.fixture
def own_database_url(own_postgres: PostgresProcess) -> str:
    if not own_postgres.is_running:
        own_postgres.start()
    return own_postgres.new_database()


# The scene --------------------------------------------------------------------------------------


@pytest.fixture
def make_scene(filled: Filled, target: Side, tmp_path: Path, form: str) -> Iterator[MakeScene]:
    """Sets a scene on a database. Long forms have the default settings, as users do."""
    made: list[Scene] = []

    def make(database_url: str, **settings: str) -> Scene:
        quick = {"SYNC_LEASE_SECONDS": "1.5", "SYNC_RETRY_BACKOFF": "1"} if form == "short" else {}
        chunk_size = {"SYNC_CHUNK_SIZE": "100" if form == "long" else "20"}
        scene = Scene(
            source=filled,
            target=target,
            database_url=database_url,
            directory=tmp_path,
            seed=SEED,
            settings=chunk_size | quick | settings,
        )
        made.append(scene)
        return scene

    yield make
    for scene in made:
        scene.close()


@pytest.fixture
def own_scene(make_scene: MakeScene, own_database_url: str) -> Scene:
    """A scene on a Postgres that may be broken."""
    return make_scene(own_database_url)


@pytest.fixture
def scene(make_scene: MakeScene, database_url: str) -> Scene:
    """A scene on the Postgres that all tests share."""
    return make_scene(database_url)
