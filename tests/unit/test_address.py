"""Addresses: what is taken, what is refused and in which words, and that no secret comes back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import InvalidInput
from tasks.stores.address import Address, parse_address

SECRET = "hunter2-very-secret"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("http://host", "http://host:8000"),
        ("https://host", "https://host:443"),
        ("http://host:80/", "http://host:80"),
        ("HTTP://Host.Example:9000", "http://host.example:9000"),
        ("https://host/chroma/", "https://host:443/chroma"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("  http://host \n", "http://host:8000"),
        ("http://h?tenant=default_tenant&database=default_database", "http://h:8000"),
        ("http://h?database=b&tenant=a", "http://h:8000?tenant=a&database=b"),
        ("http://h?tenant=a%26b%3Dc", "http://h:8000?tenant=a%26b%3Dc"),
        ("http://h?token_env=T&token_header=Authorization", "http://h:8000?token_env=T"),
        (
            "http://h?token_env=T&token_header=X-Chroma-Token",
            "http://h:8000?token_env=T&token_header=x-chroma-token",
        ),
        ("/data/chroma", "/data/chroma"),
        ("/data/../chroma/", "/chroma"),
        ("file:///data/a%20b", "/data/a b"),
        ("/data/chroma?database=b", "/data/chroma?database=b"),
        ("file:///data/what%3F?tenant=t", "file:///data/what%3F?tenant=t"),
    ],
)
def test_an_address_has_one_normal_form(text: str, normal: str) -> None:
    assert str(parse_address(text)) == normal


def test_a_relative_directory_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(parse_address("chroma")) == str(tmp_path / "chroma")
    assert parse_address("./host:8000").kind == "directory"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("ftp://host", "ftp:// is no address"),
        ("chroma://x", "give http://host:port"),
        ("http://", "names no host"),
        ("http://:8000", "names no host"),
        ("http://host:0", "port 0"),
        ("http://host:99999", "port"),
        ("http://host:eight", "port"),
        ("http://[::1", "cannot be read"),
        ("http://ho st", "no host name"),
        ("http://host#x", "no # part"),
        ("http://host?tenent=a", "unknown option 'tenent'"),
        ("http://host?tenant=", "has no value"),
        ("http://host?tenant=a&tenant=b", "given twice"),
        ("http://host?token_header=x", "needs a token_env"),
        ("http://host?token_env=A&token_header=a b", "no name of an HTTP header"),
        ("localhost:8000", "write http://localhost:8000"),
        ("file://host/data", "three slashes"),
        ("?tenant=a", "no directory"),
        ("/data?token_env=A", "a directory takes no token"),
        ("http://host\nx", "line break"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_address(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{SECRET}@host",
        f"http://{SECRET}@host:99999",
        f"http://u:{SECRET}@[broken",
        f"http://host?token={SECRET}",
        f"http://host?token_env={SECRET}",
        f"http://host?token_env={SECRET}&tenant=x",
        f"postgres://u:{SECRET}@host/db",
        f"http://host?password={SECRET}",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_address(text)
    assert SECRET not in str(caught.value)


def test_a_password_is_told_where_to_go() -> None:
    with pytest.raises(InvalidInput, match=r"environment variable .*\?token_env=NAME"):
        parse_address("http://user:pass@host")


def test_the_token_comes_from_the_environment_and_is_never_shown() -> None:
    environ = {"TOKEN": f" {SECRET}\n"}
    bearer = parse_address("https://h?token_env=TOKEN")
    assert bearer.headers(environ) == {"authorization": f"Bearer {SECRET}"}
    bare = parse_address("https://h?token_env=TOKEN&token_header=x-chroma-token")
    assert bare.headers(environ) == {"x-chroma-token": SECRET}
    assert SECRET not in str(bare) + repr(bare)
    assert parse_address("https://h").headers(environ) == {}


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_token_names_its_variable(value: str | None) -> None:
    environ = {} if value is None else {"TOKEN": value}
    with pytest.raises(InvalidInput, match="TOKEN is not set"):
        parse_address("http://h?token_env=TOKEN").headers(environ)


@pytest.mark.parametrize("value", [f"{SECRET}\r\nX: y", f"{SECRET}é"])
def test_a_token_that_no_header_can_carry_is_refused_unseen(value: str) -> None:
    with pytest.raises(InvalidInput, match="TOKEN holds") as caught:
        parse_address("http://h?token_env=TOKEN").headers({"TOKEN": value})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://localhost", "http://127.0.0.1:8000", True),
        ("http://localhost:8000", "http://[::1]:8000/", True),
        ("http://127.0.0.2:8000", "http://0.0.0.0:8000", True),
        ("http://HOST:1", "http://host.:1", True),
        ("https://host", "https://host:443/", True),
        ("http://[2001:db8::1]:1", "http://[2001:DB8:0::1]:1", True),
        ("http://host:443", "https://host:443", True),
        ("http://host", "https://host", False),
        ("http://host:8000", "http://host:8001", False),
        ("http://host:8000/a", "http://host:8000/b", False),
        ("http://host?tenant=a", "http://host", False),
        ("http://host?database=a", "http://host?database=b", False),
        ("http://host?token_env=A", "http://host", True),
        ("http://10.0.0.1", "http://10.0.0.2", False),
        ("/a", "http://localhost", False),
        ("/a/b", "/a/c/../b/", True),
        ("/a?database=x", "/a", False),
    ],
)
def test_same_store(one: str, other: str, same: bool) -> None:
    left, right = parse_address(one), parse_address(other)
    assert left.same_store(right) is same
    assert right.same_store(left) is same


def test_a_link_to_a_directory_is_the_same_store(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    link, data = parse_address(str(tmp_path / "link")), parse_address(str(tmp_path / "data"))
    assert link.same_store(data)
    # Also when it is still to be made, below a link.
    assert parse_address(f"{link}/new").same_store(parse_address(f"{data}/new"))


NAMES = st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip()))


@given(
    host=st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{1,5})?", fullmatch=True),
    port=st.integers(1, 65535),
    scheme=st.sampled_from(["http", "https"]),
    tenant=NAMES,
    database=NAMES,
    token=st.none() | st.from_regex(r"[A-Z_][A-Z0-9_]{0,9}", fullmatch=True),
)
def test_urls_round_trip(
    host: str, port: int, scheme: str, tenant: str, database: str, token: str | None
) -> None:
    address = Address(
        kind="http",
        location=f"{scheme}://{host}:{port}",
        tenant=tenant,
        database=database,
        token_env=token,
    )
    assert parse_address(str(address)) == address


@given(
    path=st.text(
        st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="/"), max_size=20
    )
)
def test_directories_round_trip(path: str) -> None:
    address = Address(kind="directory", location=os.path.abspath(f"/data/x{path}x"))
    assert parse_address(str(address)) == address
