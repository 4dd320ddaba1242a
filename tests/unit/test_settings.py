"""Settings: a wrong one is named, and its value is not repeated."""

from __future__ import annotations

import pytest

from tasks.errors import InvalidInput
from tasks.settings import load_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SYNC_CHUNK_SIZE", "0"),
        ("SYNC_CHUNK_SIZE", "many"),
        ("SYNC_LEASE_SECONDS", "0.1"),
        ("SYNC_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=f"^{name}: ") as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_an_empty_setting_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    assert load_settings().database_url is None


def test_the_database_url_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hush@h/d")
    assert "hush" not in repr(load_settings())
