"""Who may ask for what: the host, the origin and the token of each request, and the headers of each
answer.

- Who can reach the port only from this machine may look without a token. A web page that runs in a
  browser here must not: hence the list of host names (a foreign name that resolves to loopback is
  not on it), and no header that would let another origin read an answer.
- A change needs the token, a JSON body, and no foreign origin.
- Beyond loopback everything needs the token, but for whether we live and are ready, and the page
  itself, which holds nothing until it has a token to ask with.
"""

from __future__ import annotations

import hmac
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = ("/", "/healthz", "/readyz", "/favicon.ico")
OPEN_BELOW = "/static/"
SAFE_METHODS = ("GET", "HEAD")
MAX_BODY = 16 * 1024

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text can become markup, whatever a script does with it.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """Stands before the application."""

    def __init__(self, app: ASGIApp, *, token: str | None, is_loopback: bool) -> None:
        self._app = app
        self._token = token
        self._is_loopback = is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(scope, send))
            return
        await self._app(scope, receive, _with_headers(scope, send))

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        if self._is_loopback and _host_name(headers.get("host", "")) not in _LOCAL_NAMES:
            return _refuse(HTTPStatus.MISDIRECTED_REQUEST, "This server has another name.")
        has_token = self._has_token(headers)
        scope["may_see_all"] = has_token or self._is_loopback
        if method in SAFE_METHODS:
            is_open = path in OPEN_PATHS or path.startswith(OPEN_BELOW)
            if is_open or scope["may_see_all"]:
                return None
            return _unauthorized()
        if not _is_own_origin(headers):
            return _refuse(HTTPStatus.FORBIDDEN, "Another site must not change anything here.")
        if self._token is None:
            return _refuse(
                HTTPStatus.FORBIDDEN,
                "Nothing can be changed here until SYNC_API_TOKEN is set for the coordinator.",
            )
        if not has_token:
            return _unauthorized()
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refuse(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send JSON, with content-type application/json."
            )
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return _refuse(HTTPStatus.LENGTH_REQUIRED, "Send a content-length.")
        if int(length) > MAX_BODY:
            return _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too long.")
        return None

    def _has_token(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if self._token is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode(), self._token.encode())


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_own_origin(headers: Headers) -> bool:
    """A browser says where a request comes from; other programs need not."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _refuse(status: HTTPStatus, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status_code=status)


def _unauthorized() -> JSONResponse:
    return JSONResponse(
        {"error": "Give SYNC_API_TOKEN as a bearer token."},
        status_code=HTTPStatus.UNAUTHORIZED,
        headers={"www-authenticate": "Bearer"},
    )


def _with_headers(scope: Scope, send: Send) -> Send:
    kept = "no-cache" if scope["path"].startswith(OPEN_BELOW) else "no-store"

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in (_HEADERS | {"cache-control": kept}).items():
                headers[name] = value
        await send(message)

    return answer
