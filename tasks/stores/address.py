"""The address of a store: what the user writes, what is shown, and where a token comes from.

An address is a URL, `http://host[:port][/path]` or `https://...`, or the path of a Chroma data
directory (also as `file:///path`). A query may follow either: `?tenant=..&database=..`, and on a
URL `&token_env=NAME`, which names an environment variable that holds the token, and
`&token_header=x-chroma-token`, which sends it bare in that header instead of as
`Authorization: Bearer`. Without a port, http means 8000 (Chroma's own default) and https 443.

The token is never part of an address, so an address may be shown, logged and stored.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from tasks.errors import InvalidInput

DEFAULT_TENANT = "default_tenant"
DEFAULT_DATABASE = "default_database"
DEFAULT_TOKEN_HEADER = "authorization"
DEFAULT_PORTS = {"http": 8000, "https": 443}

_KEYS = ("tenant", "database", "token_env", "token_header")
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*:\d+(/.*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One tenant and database of a Chroma server or directory. `str()` parses back to the same."""

    kind: Literal["http", "directory"]
    location: str  # scheme://host:port[/path] without a trailing slash, or an absolute path
    tenant: str = DEFAULT_TENANT
    database: str = DEFAULT_DATABASE
    token_env: str | None = None  # the NAME of a variable, not its value
    token_header: str = DEFAULT_TOKEN_HEADER  # lower case

    def __str__(self) -> str:
        location = self.location
        if self.kind == "directory" and "?" in location:
            location = "file://" + quote(location)
        query = {
            "tenant": self.tenant if self.tenant != DEFAULT_TENANT else None,
            "database": self.database if self.database != DEFAULT_DATABASE else None,
            "token_env": self.token_env,
            "token_header": (
                self.token_header if self.token_header != DEFAULT_TOKEN_HEADER else None
            ),
        }
        given = {key: value for key, value in query.items() if value is not None}
        return f"{location}?{urlencode(given)}" if given else location

    def same_store(self, other: Address) -> bool:
        """Whether both lead to the same records: names of this machine, case and links aside.

        Another tenant or database of one server is another store. A directory and the URL of a
        server that happens to serve it cannot be told to be the same.
        """
        if (self.kind, self.tenant, self.database) != (other.kind, other.tenant, other.database):
            return False
        if self.kind == "directory":
            return _same_directory(self.location, other.location)
        return _endpoint(self.location) == _endpoint(other.location)

    def headers(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The request headers that carry the token; none if the address names no variable.

        Raises `InvalidInput` if the variable is not set, empty, or holds no valid header value.
        """
        if self.token_env is None:
            return {}
        token = environ.get(self.token_env, "").strip()
        if not token:
            raise InvalidInput(
                f"{self}: the environment variable {self.token_env} is not set: set it to the token"
            )
        if not token.isascii() or not token.isprintable():
            raise InvalidInput(
                f"{self}: the environment variable {self.token_env} holds characters that no "
                "HTTP header may carry"
            )
        if self.token_header == DEFAULT_TOKEN_HEADER:
            return {self.token_header: f"Bearer {token}"}
        return {self.token_header: token}


def parse_address(text: str) -> Address:
    """The address that `text` means. Raises `InvalidInput` with one line that says what to write.

    No message repeats a password or a query value: what is wrong there may be a secret.
    """
    text = text.strip()
    if not text:
        raise InvalidInput("the address is empty: give http://host:port or a directory")
    if _CONTROL.search(text):
        raise InvalidInput("the address holds a line break or another control character")
    location, _, query = text.partition("?")
    scheme, separator, _ = location.partition("://")
    if not separator:
        if _HOST_AND_PORT.fullmatch(location):
            raise InvalidInput(
                f"{location} names no scheme: write http://{location} for a server, or "
                f"./{location} for a directory"
            )
        return _with_query(_directory(location), query)
    match scheme.lower():
        case "file":
            return _with_query(_directory(_file_path(location)), query)
        case "http" | "https":
            return _with_query(_server(location), query)
    # What comes before an unknown scheme's :// is shown, what comes after may hold a password.
    raise InvalidInput(
        f"{scheme}:// is no address of a store: give http://host:port, https://host or a directory"
    )


def _server(location: str) -> Address:
    authority = location.partition("://")[2].partition("/")[0]
    if "@" in authority:
        raise InvalidInput(
            "an address must not hold a user or password: put the token in an environment "
            "variable and name that with ?token_env=NAME"
        )
    try:
        parts = urlsplit(location)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidInput(
            f"{location}: the host or port cannot be read: write http://host:8000 with a port "
            "from 1 to 65535"
        ) from None
    if not host:
        raise InvalidInput(f"{location} names no host: write {parts.scheme}://host:port")
    if not _HOST.fullmatch(host):
        raise InvalidInput(f"{location}: {host!r} is no host name")
    if parts.fragment:
        raise InvalidInput(f"{location}: an address has no # part")
    if port == 0:
        raise InvalidInput(f"{location}: port 0 cannot be connected to")
    port = port or DEFAULT_PORTS[parts.scheme]
    host = f"[{host}]" if ":" in host else host
    return Address(kind="http", location=f"{parts.scheme}://{host}:{port}{parts.path}".rstrip("/"))


def _file_path(location: str) -> str:
    host, slash, path = location.partition("://")[2].partition("/")
    if host not in ("", "localhost") or not slash:
        raise InvalidInput(
            f"{location}: a file address has three slashes and an absolute path: file:///data/chroma"
        )
    return unquote("/" + path)


def _directory(path: str) -> Address:
    if not path:
        raise InvalidInput("the address names no directory before its '?'")
    # Absolute, because other processes of the same run start elsewhere.
    return Address(kind="directory", location=os.path.abspath(Path(path).expanduser()))


def _with_query(address: Address, query: str) -> Address:
    values: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _KEYS:
            raise InvalidInput(
                f"{address}: unknown option {key!r} in the address: known are {', '.join(_KEYS)}"
                + (" (a token goes into the variable that token_env names)" * ("token" in key))
            )
        if key in values:
            raise InvalidInput(f"{address}: the option {key} is given twice")
        if not value.strip():
            raise InvalidInput(f"{address}: the option {key} has no value")
        values[key] = value
    if not values:
        return address
    token_env, token_header = values.get("token_env"), values.get("token_header")
    if address.kind == "directory" and (token_env or token_header):
        raise InvalidInput(f"{address}: a directory takes no token")
    if token_env is not None and not _VARIABLE.fullmatch(token_env):
        raise InvalidInput(
            f"{address}: token_env must be the name of an environment variable, not the token"
        )
    if token_header is not None and token_env is None:
        raise InvalidInput(f"{address}: token_header needs a token_env beside it")
    if token_header is not None and not _HEADER.fullmatch(token_header):
        raise InvalidInput(f"{address}: token_header is no name of an HTTP header")
    return replace(
        address,
        tenant=values.get("tenant", DEFAULT_TENANT),
        database=values.get("database", DEFAULT_DATABASE),
        token_env=token_env,
        token_header=(token_header or DEFAULT_TOKEN_HEADER).lower(),
    )


def _endpoint(location: str) -> tuple[str, int | None, str]:
    # The scheme is left out: one port answers one of them, whichever the user wrote.
    parts = urlsplit(location)
    host = (parts.hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        host = "loopback"
    else:
        try:
            number = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            # 0.0.0.0 is what a server listens on; as a destination it is this machine.
            here = number.is_loopback or number.is_unspecified
            host = "loopback" if here else number.compressed
    return host, parts.port, parts.path


def _same_directory(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is still to be made
        return os.path.realpath(one) == os.path.realpath(other)
