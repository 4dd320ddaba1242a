"""Pairs on a schedule, as they are configured."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.pairs import Schedule, configured_pairs
from coordinator.service import Role, role_of
from tasks.errors import InvalidInput
from tasks.settings import load_settings

BEGUN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def test_a_schedule_says_what_comes_next() -> None:
    assert Schedule(every=90).next_after(BEGUN) == datetime(2026, 3, 4, 5, 7, 37, tzinfo=UTC)
    hourly = Schedule(every=None, cron="0 * * * *")
    assert hourly.next_after(BEGUN) == datetime(2026, 3, 4, 6, tzinfo=UTC)
    assert (str(Schedule(every=90)), str(hourly)) == ("every 90 s", "0 * * * *")


def test_one_pair_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="SYNC_SOURCE_URL"):
        configured_pairs(load_settings())
    monkeypatch.setenv("SYNC_SOURCE_URL", "http://a:8000")
    monkeypatch.setenv("SYNC_TARGET_URL", "http://b:8000")
    monkeypatch.setenv("SYNC_CRON", "*/5 * * * *")
    (pair,) = configured_pairs(load_settings())
    assert (pair.name, pair.source, str(pair.schedule)) == (
        "default",
        "http://a:8000",
        "*/5 * * * *",
    )
    monkeypatch.setenv("SYNC_CRON", "every day")
    with pytest.raises(InvalidInput, match="SYNC_CRON"):
        configured_pairs(load_settings())
    monkeypatch.setenv("SYNC_CRON", "")
    monkeypatch.setenv("SYNC_TARGET_URL", "http://a:8000/")
    with pytest.raises(InvalidInput, match="same store"):
        configured_pairs(load_settings())


def test_any_number_comes_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "pairs.toml"
    monkeypatch.setenv("SYNC_PAIRS", str(file))
    monkeypatch.setenv("SYNC_INTERVAL", "77")
    file.write_text(
        """
        [[pair]]
        name = "docs"
        source = "http://a:8000"
        target = "http://b:8000"
        cron = "0 3 * * *"
        mode = "copy"
        include = ["docs-*"]
        chunk_size = "auto"

        [[pair]]
        name = "all"
        source = "http://a:8000"
        target = "http://c:8000"
        max_delete = "10%"
        map = { old = "new" }
        """
    )
    docs, everything = configured_pairs(load_settings())
    assert (str(docs.schedule), docs.options.one_way) == ("0 3 * * *", True)
    assert (docs.options.chunk_size, docs.options.selection.include) == (None, ["docs-*"])
    assert (str(everything.schedule), everything.options.one_way) == ("every 77 s", False)
    assert everything.options.max_delete.text == "10%"
    assert everything.options.selection.renames == {"old": "new"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[pair]", "no TOML"),
        ("", "pair: "),
        ("[[pair]]\nname='a'\nsource='http://a:1'", "target"),
        ("[[pair]]\nname='a'\nsource='http://a:1'\ntarget='http://b:1'\ncolour='red'", "colour"),
        ("[[pair]]\nname='a'\nsource='http://a:1'\ntarget='http://a:1'", "same store"),
        ("[[pair]]\nname='a'\nsource='http://a:1'\ntarget='http://b:1'\ncron='x'", "cron"),
        ("[[pair]]\nname='a'\nsource='http://a:1'\ntarget='http://b:1'\ncron='* * * * *'\nevery=1",
         "not both"),
        ("[[pair]]\nname='a'\nsource='http://a:1'\ntarget='http://b:1'\nmax_delete='x'",
         "max-delete"),
        ("[[pair]]\nname='a'\nsource='http://a:1'\ntarget='http://b:1'\n" * 2, "twice"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_is_told(
    text: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.toml"
    file.write_text(text)
    monkeypatch.setenv("SYNC_PAIRS", str(file))
    with pytest.raises(InvalidInput, match=says) as caught:
        configured_pairs(load_settings())
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(InvalidInput, match="No such file"):
        configured_pairs(load_settings())


@pytest.mark.parametrize(
    ("environ", "role"),
    [
        ({}, Role(coordinates=True, works=True)),
        ({"SYNC_DISTRIBUTED": "true"}, Role(coordinates=False, works=True)),
        (
            {"SYNC_DISTRIBUTED": "true", "SYNC_COORDINATOR": "true"},
            Role(coordinates=True, works=True),
        ),
        (
            {
                "SYNC_DISTRIBUTED": "true",
                "SYNC_COORDINATOR": "true",
                "ENABLE_SYNC_WORKER": "false",
            },
            Role(coordinates=True, works=False),
        ),
        (
            {"SYNC_DISTRIBUTED": "false", "SYNC_COORDINATOR": "true"},
            Role(coordinates=True, works=True),
        ),
    ],
)
def test_the_environment_gives_the_role(
    environ: dict[str, str], role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert role_of(load_settings()) == role
