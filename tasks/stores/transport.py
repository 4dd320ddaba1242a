"""Requests to a Chroma server: timeouts, and one error type for each thing that can go wrong.

Nothing is retried here. Every request of ours may be repeated without harm, so the caller, who
knows how long a fault may last, does that.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from tasks.errors import (
    StoreGarbled,
    StoreOverloaded,
    StoreRefused,
    StoreUnavailable,
)

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 60.0
POOL_SIZE = 32  # connections that are kept; more threads than that wait for one another
REASON_LENGTH = 300
MAX_RETRY_AFTER = 120.0  # a server that asks for a day must not park a chunk for a day

# Chroma answers 501 when a record holds what this kind of server cannot store (sparse vectors).
_CONTENT_STATUSES = frozenset({400, 413, 422, 501})


class ContentRefused(StoreRefused):
    """The server refuses what the request holds; the same request with less may be taken."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ServerFailed(StoreOverloaded):
    """The server answered 5xx: because of what was asked for, or whatever is asked for."""


class NotFound(StoreRefused):
    """The server knows no such thing, or no such path."""


class Transport:
    """A pool of connections to one server. Safe to use from several threads."""

    def __init__(
        self,
        base_url: str,
        *,
        label: str,
        headers: Mapping[str, str],
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
    ) -> None:
        self._label = label
        self._prefix = urlsplit(base_url).path
        self._secrets = [value.removeprefix("Bearer ") for value in headers.values()]
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._pool = urllib3.connection_from_url(
            base_url,
            maxsize=POOL_SIZE,
            block=True,
            retries=False,
            timeout=urllib3.Timeout(connect=connect_timeout, read=read_timeout),
            headers={
                "content-type": "application/json",
                "accept": "application/json",
                "user-agent": "chroma-sync",
                **headers,
            },
        )

    def close(self) -> None:
        self._pool.close()

    def get(self, path: str, *, operation: str) -> Any:
        """The JSON that a GET of this path answers with."""
        return self._json("GET", path, operation, None)

    def post(self, path: str, body: bytes, *, operation: str) -> Any:
        """The JSON that a POST of this JSON answers with."""
        return self._json("POST", path, operation, body)

    def post_for_bytes(self, path: str, body: bytes, *, operation: str) -> bytes:
        """What a POST of this JSON answers with, as it came."""
        return self._bytes("POST", path, operation, body)

    def put(self, path: str, body: bytes, *, operation: str) -> Any:
        """The JSON that a PUT of this JSON answers with."""
        return self._json("PUT", path, operation, body)

    def delete(self, path: str, *, operation: str) -> Any:
        """The JSON that a DELETE of this path answers with."""
        return self._json("DELETE", path, operation, None)

    def message(self, operation: str, what: str) -> str:
        """A message for an error: the store, what was tried, what happened, in one line."""
        return f"{self._label}: {operation}: {self._line(what)}"

    def _json(self, method: str, path: str, operation: str, body: bytes | None) -> Any:
        data = self._bytes(method, path, operation, body)
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            start = data[:80].decode(errors="replace")
            raise StoreGarbled(
                self.message(
                    operation, f"the answer is no JSON ({error}); it begins with {start!r}"
                )
            ) from None

    def _bytes(self, method: str, path: str, operation: str, body: bytes | None) -> bytes:
        try:
            answer = self._pool.request(method, self._prefix + path, body=body)
        except HTTPError as error:
            raise self._broken(error, operation) from error
        if answer.status < 300:
            return answer.data
        raise self._refusal(answer, operation)

    def _broken(self, error: HTTPError, operation: str) -> Exception:
        # NameResolutionError is a NewConnectionError, which is a ConnectTimeoutError: this order.
        match error:
            case SSLError():
                return StoreRefused(
                    self.message(operation, f"no secure connection: {error} (is it https at all?)")
                )
            case NameResolutionError():
                return StoreUnavailable(self.message(operation, "the host name cannot be resolved"))
            case NewConnectionError():
                return StoreUnavailable(
                    self.message(
                        operation, f"cannot connect: {_cause(error)}; is the server running?"
                    )
                )
            case ConnectTimeoutError():
                return StoreUnavailable(
                    self.message(operation, f"no connection within {self._connect_timeout:g} s")
                )
            case ReadTimeoutError():
                return StoreUnavailable(
                    self.message(operation, f"no answer within {self._read_timeout:g} s")
                )
            case DecodeError():
                return StoreGarbled(self.message(operation, "the answer cannot be decompressed"))
        return StoreUnavailable(self.message(operation, f"the connection broke: {_cause(error)}"))

    def _refusal(self, answer: urllib3.BaseHTTPResponse, operation: str) -> Exception:
        status = answer.status
        reason = self._line(_server_message(answer.data)) or (answer.reason or "no reason given")
        message = self.message(operation, f"{reason} (HTTP {status})")
        if status in (401, 403):
            return StoreRefused(
                f"{message}; name the variable that holds the token with ?token_env=NAME"
            )
        if status == 404:
            return NotFound(message)
        if status in _CONTENT_STATUSES:
            return ContentRefused(message, reason=reason)
        if status in (408, 425):
            return StoreUnavailable(message)
        if status == 429 or status >= 500:
            kind = StoreOverloaded if status == 429 else ServerFailed
            return kind(message, retry_after=_retry_after(answer.headers.get("retry-after")))
        if status < 400:
            return StoreRefused(f"{message}; give the address that it redirects to")
        return StoreRefused(message)

    def _line(self, text: str) -> str:
        for secret in self._secrets:  # a server may repeat what it was sent
            text = text.replace(secret, "***")
        text = " ".join(text.split())
        return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 3] + "..."


def _cause(error: HTTPError) -> str:
    # urllib3 puts its own object's repr in front of what the system said.
    return str(error).rpartition(": ")[2] or type(error).__name__


def _server_message(data: bytes) -> str:
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError:
        return data[: 4 * REASON_LENGTH].decode(errors="replace")
    if isinstance(parsed, dict):
        for key in ("message", "error", "detail"):
            if parsed.get(key):
                return str(parsed[key])
    return str(parsed)


def _retry_after(value: str | None) -> float | None:
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), MAX_RETRY_AFTER)
