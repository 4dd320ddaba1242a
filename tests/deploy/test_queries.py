"""Every query of the dashboards and rules, asked of a real Prometheus that scrapes a real run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from tests.chaos.processes import Process
from tests.deploy.conftest import DEPLOY
from tests.deploy.prometheus import HOST, PATIENCE, Scrape, needs_prometheus
from tests.deploy.prometheus import prometheus as prometheus
from tests.e2e.conftest import Program, fill, open_side
from tests.eventually import eventually
from tests.ports import free_port

# What is told by Prometheus itself, not by us.
OF_PROMETHEUS = {"up", "scrape_duration_seconds", "ALERTS"}
# What shows nothing on a run that goes well.
MAY_BE_EMPTY = {"Time left", "Errors, retries and rejects"}

pytestmark = needs_prometheus


def dashboards() -> list[dict[str, Any]]:
    paths = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
    return [json.loads(path.read_text()) for path in paths]


def panel_queries() -> dict[str, str]:
    """The queries of all panels, by dashboard, panel and letter, with their variables filled in."""
    return {
        f"{dashboard['title']} / {panel['title']} / {target['refId']}": _filled(target["expr"])
        for dashboard in dashboards()
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }


def other_queries() -> dict[str, str]:
    """Those of variables, annotations and alerts."""
    queries = {}
    for dashboard in dashboards():
        for one in dashboard["annotations"]["list"]:
            queries[f"{dashboard['title']} / {one['name']}"] = _filled(one["expr"])
        for one in dashboard["templating"]["list"]:
            if one["type"] == "query":
                values = re.fullmatch(r"label_values\((\w+), (\w+)\)", one["definition"])
                assert values is not None
                metric, label = values.groups()
                queries[f"{dashboard['title']} / {one['name']}"] = f"{metric}{{{label}!=''}}"
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]:
        queries |= {rule["alert"]: rule["expr"] for rule in group["rules"]}
    return queries


def _filled(expr: str) -> str:
    for name, value in {"$__rate_interval": "1m", "$pair": ".*"}.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, f"a variable that the test does not know: {expr}"
    return expr


def metrics_in(expr: str) -> set[str]:
    """The names of metrics in a query."""
    prefixes = ("chroma_sync_", "dramatiq_", "process_", "python_")
    words = set(re.findall(r"[a-zA-Z_]\w*", re.sub(r'"[^"]*"', "", expr)))
    return {word for word in words if word.startswith(prefixes) or word in OF_PROMETHEUS}


def labels_in(expr: str) -> set[str]:
    """The names of labels in a query: in selectors and in groupings."""
    groups = re.findall(r"\b(?:by|on|without|ignoring|group_left)\s*\(([^)]*)\)", expr)
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*[\"']", expr)
    return {*selected, *(name.strip() for group in groups for name in group.split(",") if name)}


def is_healthy(*, page: int, metrics: int) -> bool:
    """What the health check of the image says of a container with these ports."""
    environ = {"SYNC_WEB_PORT": str(page), "SYNC_METRICS_PORT": str(metrics)}
    script = str(DEPLOY / "healthcheck.py")
    return subprocess.run([sys.executable, script], env=environ).returncode == 0


Ask = Callable[[str], Any]


@pytest.fixture
def ask(database_url: str) -> Iterator[Ask]:
    """The first value that an SQL query gives."""
    with psycopg.connect(database_url, autocommit=True) as connection:

        def first(query: str) -> Any:
            cursor = connection.execute(query.encode())
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None

        yield first


@pytest.fixture
def start(program: Program, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts processes of ours, and others, which end with the test."""
    started: list[Process] = []

    def start(name: str, *command: str, **environ: str) -> Process:
        words = command or (sys.executable, "-m", "coordinator.cli", name.rstrip("12"))
        process = Process(words, environ=program.environ | environ, directory=tmp_path, name=name)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def test_every_query_has_an_answer(
    servers: tuple[str, str],
    start: Callable[..., Process],
    prometheus: Scrape,
    ask: Ask,
) -> None:
    source, target = (open_side(url, "queries") for url in servers)
    fill(source.client, "docs", 1000)
    pages = [free_port(), free_port()]
    environ = {
        "SYNC_SOURCE_URL": source.url,
        "SYNC_TARGET_URL": target.url,
        "SYNC_INTERVAL": "1",
        "SYNC_CHUNK_SIZE": "100",
        "ENABLE_SYNC_WORKER": "false",
    }
    for number, port in enumerate(pages, 1):
        start(f"coordinator{number}", **environ, SYNC_WEB_PORT=str(port))
    metrics = [free_port(), free_port()]
    workers = [
        start(f"worker{number}", SYNC_METRICS_PORT=str(port))
        for number, port in enumerate(metrics, 1)
    ]
    scraped = {
        "coordinator": [f"{HOST}:{port}" for port in pages],
        "worker": [f"{HOST}:{port}" for port in metrics],
    }
    server = prometheus(**scraped)
    everybody = {address: "up" for addresses in scraped.values() for address in addresses}
    eventually(lambda: server.targets() == everybody, within=PATIENCE)
    eventually(
        lambda: server.value("min(chroma_sync_pair_last_run_verified)") == 1, within=PATIENCE
    )

    known = server.metrics() | OF_PROMETHEUS
    labels = set(server.ask("labels")) | {"alertname", "alertstate"}
    for name, expr in (panel_queries() | other_queries()).items():
        assert metrics_in(expr) <= known, f"{name}: {metrics_in(expr) - known} is nowhere"
        assert labels_in(expr) <= labels, f"{name}: {labels_in(expr) - labels} is nowhere"
        server.query(expr)  # an error would be raised
    for name, expr in panel_queries().items():
        if name.split(" / ")[1] not in MAY_BE_EMPTY:
            eventually(lambda expr=expr: server.query(expr), within=PATIENCE)  # type: ignore[misc]

    # Both coordinators tell what the ledger says.
    completed = "max by (instance) (sum by (instance) (chroma_sync_chunks_completed_total))"
    eventually(
        lambda: (
            {float(one["value"][1]) for one in server.query(completed)}
            == {ask("SELECT count(*) FROM sync_tasks WHERE task_status = 'completed'")}
        ),
        within=PATIENCE,
    )

    # The check of the image finds either role healthy, and a container without a process not.
    nowhere = free_port()
    assert is_healthy(page=pages[0], metrics=nowhere)
    assert is_healthy(page=nowhere, metrics=metrics[0])
    assert not is_healthy(page=nowhere, metrics=nowhere)

    # The alert for a worker that died names it, and clears in its time.
    firing = 'ALERTS{alertname="ChromaSyncWorkerDied", alertstate="firing"}'
    assert not server.query(firing)
    workers[0].kill()
    dead = "SELECT worker_id FROM sync_workers WHERE worker_status = 'dead'"
    worker = eventually(lambda: ask(dead), within=PATIENCE)
    aged = "UPDATE sync_workers SET last_heartbeat = now() - interval '{}' WHERE worker_id = '{}'"
    ask(aged.format("1 minute", worker))
    (alert,) = eventually(lambda: server.query(firing), within=PATIENCE)
    assert alert["metric"]["worker"] == worker
    ask(aged.format("11 minutes", worker))
    eventually(lambda: not server.query(firing), within=PATIENCE)
