"""What platforms read: each by its own linter or schema, where one can be installed, and by what
must agree between the files."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from tasks.settings import Settings
from tests.deploy.conftest import DEPLOY, ROOT

KUBERNETES = DEPLOY / "kubernetes"
SYSTEMD = DEPLOY / "systemd"
SETTINGS = {name.upper() for name in Settings.model_fields}


def tool(name: str) -> str:
    """Of this environment, or of the machine; the test is skipped where it is not there."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}")
    return found


def check(*command: str | Path) -> str:
    """The output of a program that must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def containers(path: Path) -> list[dict[str, Any]]:
    return [
        container
        for document in documents(path)
        if document["kind"] == "Deployment"
        for container in document["spec"]["template"]["spec"]["containers"]
    ]


def is_setting(name: str) -> bool:
    return name in SETTINGS


# The image ---------------------------------------------------------------------------------------


def test_the_dockerfile_is_clean() -> None:
    check(tool("hadolint"), DEPLOY / "Dockerfile")


def test_the_image_gets_all_that_it_copies_and_no_more() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", (DEPLOY / "Dockerfile").read_text(), re.M)
        for source in shlex.split(line)[:-1]
    }
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignore if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied)


def test_the_image_is_not_run_as_root_and_watches_its_health() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER [1-9]\d*$", last, re.M)
    assert re.search(r"^HEALTHCHECK ", last, re.M)


# Compose -----------------------------------------------------------------------------------------


def test_compose_keeps_to_its_schema() -> None:
    compose = DEPLOY / "compose.yaml"
    check(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", compose)


def test_compose_names_only_what_is_there() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            origin = volume.split(":")[0]
            if origin.startswith("."):
                assert (DEPLOY / origin).exists(), f"{name}: {origin}"
            else:
                assert origin in compose["volumes"], f"{name}: {origin}"
        if service.get("image") == "chroma-sync":
            assert all(map(is_setting, service["environment"])), name
    # What Prometheus looks up by name are services, on the ports that they listen on.
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    looked_up = {
        (config["names"][0], config["port"])
        for job in scraped["scrape_configs"]
        for config in job["dns_sd_configs"]
    }
    assert looked_up == {("coordinator", 8080), ("worker", 9464)}
    assert {name for name, _ in looked_up} <= set(compose["services"])


# Render ------------------------------------------------------------------------------------------


def test_render_has_a_coordinator_and_workers() -> None:
    blueprint = yaml.safe_load((DEPLOY / "render.yaml").read_text())
    groups = {group["name"]: group["envVars"] for group in blueprint["envVarGroups"]}
    databases = {database["name"] for database in blueprint["databases"]}
    assert [service["type"] for service in blueprint["services"]] == ["web", "worker"]
    for service in blueprint["services"]:
        assert service["numInstances"] > 1
        assert (ROOT / service["dockerfilePath"]).is_file()
        given = list(service["envVars"])
        for one in service["envVars"]:
            given += groups[one["fromGroup"]] if "fromGroup" in one else []
            if "fromDatabase" in one:
                assert one["fromDatabase"]["name"] in databases
        names = {one["key"] for one in given if "key" in one}
        assert all(map(is_setting, names))
        assert {"DATABASE_URL", "SYNC_DISTRIBUTED", "SYNC_API_TOKEN"} <= names


# systemd -----------------------------------------------------------------------------------------


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, with a program in them that is there."""
    program = check(tool("which"), "true").strip()
    copies = []
    for unit in SYSTEMD.iterdir():
        text = unit.read_text().replace("/opt/chroma-sync/bin/chroma-sync", program)
        copies.append(tmp_path / unit.name.replace("@.", "@1."))
        copies[-1].write_text(text)
    return copies


def test_systemd_takes_the_units(units: list[Path]) -> None:
    analyze = tool("systemd-analyze")
    for unit in units:
        assert check(analyze, "verify", "--man=no", unit) == ""


def test_the_units_are_confined(units: list[Path]) -> None:
    analyze = tool("systemd-analyze")
    for unit in units:
        # Exposure from 0 to 10, times ten; half of it is what systemd calls OK.
        check(analyze, "security", "--offline=true", "--threshold=30", unit)


# Kubernetes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coordinator", "worker", "secret.example"])
def test_kubernetes_takes_the_manifests(name: str) -> None:
    validate = tool("kubernetes-validate")
    checked = check(validate, "--strict", KUBERNETES / f"{name}.yaml")
    assert "WARN" not in checked


def test_kustomize_takes_them_together() -> None:
    made = list(yaml.safe_load_all(check(tool("kubectl"), "kustomize", KUBERNETES)))
    kinds = sorted(one["kind"] for one in made)
    assert kinds == ["Deployment"] * 2 + ["PodDisruptionBudget", "ScaledObject", "Service"]


def test_kubernetes_manifests_fit_together() -> None:
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    assert all((KUBERNETES / name).is_file() for name in kustomization["resources"])
    (secret,) = documents(KUBERNETES / "secret.example.yaml")
    assert all(map(is_setting, secret["stringData"]))
    for role in ("coordinator", "worker"):
        (container,) = containers(KUBERNETES / f"{role}.yaml")
        assert container["args"] == [role]
        assert container["image"] == kustomization["images"][0]["name"]
        assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
        assert all(is_setting(one["name"]) for one in container["env"])


def test_the_autoscaler_asks_what_postgres_can_answer(database_url: str) -> None:
    (scaled,) = documents(KUBERNETES / "autoscaler.yaml")
    worker = next(iter(documents(KUBERNETES / "worker.yaml")))
    assert scaled["spec"]["scaleTargetRef"]["name"] == worker["metadata"]["name"]
    (trigger,) = scaled["spec"]["triggers"]
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO dramatiq.queue (message_id, queue_name, state, due_at) VALUES"
            " (gen_random_uuid(), 'sync', 'queued', now()),"
            " (gen_random_uuid(), 'sync-verify', 'consumed', now()),"
            " (gen_random_uuid(), 'sync', 'queued', now() + interval '1 hour'),"
            " (gen_random_uuid(), 'sync', 'done', now())"
        )
        row = connection.execute(trigger["metadata"]["query"].encode()).fetchone()
    assert row == (2,)


# Grafana -----------------------------------------------------------------------------------------


def test_grafana_finds_the_dashboards_and_prometheus() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = documents(provisioning / "datasources" / "prometheus.yml")[0]["datasources"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    host = re.fullmatch(r"http://(\w+):9090", source["url"])
    assert host is not None
    assert host[1] in compose["services"]
    (provider,) = documents(provisioning / "dashboards" / "chroma-sync.yml")[0]["providers"]
    mounted = {one.split(":")[1] for one in compose["services"]["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounted


@pytest.mark.parametrize("name", ["overview", "internals"])
def test_each_panel_says_what_it_shows_and_in_what_unit(name: str) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / f"{name}.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
