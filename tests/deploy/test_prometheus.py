"""The scrape configuration and the alert rules, by Prometheus's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import DEPLOY

FILES = DEPLOY / "prometheus"
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="there is no promtool (Debian: apt-get install prometheus)",
)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FILES / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def run_promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=FILES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_the_configuration_is_valid() -> None:
    run_promtool("check", "config", "--syntax-only", "prometheus.yml")


@promtool
def test_the_rules_are_valid() -> None:
    run_promtool("check", "rules", "alerts.yml")


@promtool
def test_the_alerts_fire_when_they_should() -> None:
    run_promtool("test", "rules", "alerts_test.yml")


def test_each_alert_is_shown_to_fire_and_not_to_fire() -> None:
    shown: dict[str, set[bool]] = {}
    for group in yaml.safe_load((FILES / "alerts_test.yml").read_text())["tests"]:
        for check in group["alert_rule_test"]:
            shown.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    assert shown == {rule["alert"]: {True, False} for rule in rules()}


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    headings = re.findall(r"^#+ (.+)$", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, rule
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "deploy/README.md"
        assert anchor in anchors, f"{rule['alert']}: no heading for #{anchor}"
