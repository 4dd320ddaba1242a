"""A real Prometheus, with our rules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from tests.chaos.processes import Process
from tests.deploy.conftest import DEPLOY
from tests.eventually import eventually
from tests.ports import free_port

HOST = "127.0.0.1"
PATIENCE = 120.0  # seconds
PROGRAM = shutil.which("prometheus")

needs_prometheus = pytest.mark.skipif(
    PROGRAM is None,
    reason="there is no prometheus (Debian: apt-get install prometheus)",
)


class Prometheus:
    """The HTTP API of a server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, **arguments: str) -> Any:
        with urlopen(f"{self._url}/api/v1/{path}?{urlencode(arguments)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        result = self.ask("query", query=expr)["result"]
        assert isinstance(result, list)
        return result

    def value(self, expr: str) -> float | None:
        """Of a query that gives one sample; None if it gives none."""
        samples = self.query(expr)
        return float(samples[0]["value"][1]) if samples else None

    def is_ready(self) -> bool:
        try:
            with urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except (URLError, ConnectionError):
            return False

    def targets(self) -> dict[str, str]:
        """The health of what it scrapes, by address."""
        active = self.ask("targets", state="active")["activeTargets"]
        return {one["labels"]["instance"]: one["health"] for one in active}

    def metrics(self) -> set[str]:
        """The names of all that it was told of, also of what has no sample yet."""
        names = set(self.ask("label/__name__/values"))
        for name, (family, *_) in self.ask("metadata").items():
            names |= {name, f"{name}_total"}
            if family["type"] == "histogram":
                names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
        return names


Scrape = Callable[..., Prometheus]


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Scrape]:
    """Starts a server with our rules, that looks every second at the addresses given by job."""
    started: list[Process] = []

    def prometheus(**jobs: list[str]) -> Prometheus:
        rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
        (tmp_path / "alerts.yml").write_text(rules)
        scrapes = [
            {"job_name": f"chroma-sync-{job}", "static_configs": [{"targets": addresses}]}
            for job, addresses in jobs.items()
        ]
        configuration = {
            "global": {
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "evaluation_interval": "1s",
            },
            "rule_files": ["alerts.yml"],
            "scrape_configs": scrapes,
        }
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        address = f"{HOST}:{free_port()}"
        process = Process(
            [
                str(PROGRAM),
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address={address}",
            ],
            environ={},
            directory=tmp_path,
            name="prometheus",
        )
        started.append(process)
        server = Prometheus(f"http://{address}")

        def is_ready() -> bool:
            assert process.is_running, process.log_end()
            return server.is_ready()

        eventually(is_ready, within=PATIENCE)
        return server

    yield prometheus
    for process in started:
        process.kill()
