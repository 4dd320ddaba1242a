"""Two Chroma servers, for what is deployed to sync."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.stores.server import ChromaServer
from tests.e2e.conftest import Program

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URLs of a source and a target."""
    root = tmp_path_factory.mktemp("chroma")
    for side in ("source", "target"):
        (root / side).mkdir()
    with ChromaServer(root / "source") as source, ChromaServer(root / "target") as target:
        yield source.endpoint, target.endpoint


@pytest.fixture
def program(tmp_path: Path, database_url: str) -> Program:
    return Program(tmp_path, database_url)
