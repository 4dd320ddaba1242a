"""The README and the program say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from coordinator.cli import app
from tasks.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_command_is_in_the_readme_and_no_other() -> None:
    documented = set(re.findall(r"^\| `chroma-sync (\w+)", README, re.MULTILINE))
    assert documented == set(COMMANDS)


def test_every_option_is_in_the_readme_with_its_commands() -> None:
    rows = re.findall(r"^\| `(--[\w-]+)[^`]*` \| ([\w, ]+) \|", README, re.MULTILINE)
    documented = {(option, command) for option, of in rows for command in of.split(", ")}
    offered = {
        (option, name)
        for name, command in COMMANDS.items()
        for parameter in command.params
        if not getattr(parameter, "hidden", False)
        for option in parameter.opts
        if option.startswith("--") and option != "--help"
    }
    assert documented == offered


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_in_the_readme_as_it_is(name: str) -> None:
    field = Settings.model_fields[name]
    row = re.search(rf"^\| `{name.upper()}` \| ([^|]+) \| ([^|]+) \|", README, re.MULTILINE)
    assert row is not None
    assert row[2] == field.description
    if field.default is not None and name != "sync_data_dir":
        assert row[1] == str(field.default).lower()


def test_no_setting_is_in_the_readme_that_is_not_there() -> None:
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    assert documented == {name.upper() for name in Settings.model_fields}
