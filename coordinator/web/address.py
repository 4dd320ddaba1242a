"""Where to listen: what the settings say, whether that is this machine only, and the socket."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from tasks.errors import InvalidInput
from tasks.settings import Settings

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 8080
NEXT_PORTS = 20  # that are tried where another process may have taken the one


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    host: str
    port: int
    is_fixed: bool  # nobody would look for it on another port

    @property
    def is_loopback(self) -> bool:
        """Only this machine can connect."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def web_address(settings: Settings) -> Listen | None:
    """Where a coordinator serves its page; None: nowhere. Raises `InvalidInput`."""
    port = settings.sync_web_port if settings.sync_web_port is not None else settings.port
    if port == 0:
        return None
    by_platform = settings.sync_web_port is None and settings.port is not None
    return _with_token(
        Listen(
            host=settings.sync_web_host or ("0.0.0.0" if by_platform else LOOPBACK),
            port=port or DEFAULT_PORT,
            is_fixed=port is not None,
        ),
        settings,
    )


def metrics_address(settings: Settings) -> Listen | None:
    """Where a worker serves its metrics; None: nowhere. Raises `InvalidInput`."""
    if not settings.sync_metrics_port:
        return None
    return _with_token(
        Listen(
            host=settings.sync_web_host or LOOPBACK,
            port=settings.sync_metrics_port,
            is_fixed=False,
        ),
        settings,
    )


def _with_token(listen: Listen, settings: Settings) -> Listen:
    if not listen.is_loopback and settings.sync_api_token is None:
        raise InvalidInput(
            f"SYNC_API_TOKEN is not set, and {listen.host} can be reached from other machines: set "
            "a token of 16 characters or more, or SYNC_WEB_HOST=127.0.0.1."
        )
    return listen


def bind(listen: Listen) -> socket.socket:
    """A socket there, or on one of the next ports. Raises `InvalidInput`."""
    last = listen.port if listen.is_fixed else min(listen.port + NEXT_PORTS, 65535)
    for port in range(listen.port, last + 1):
        try:
            return _bind(listen.host, port)
        except OSError as error:
            reason = error.strerror or str(error)
    ports = f"port {listen.port}" if listen.is_fixed else f"ports {listen.port} to {last}"
    raise InvalidInput(
        f"Nothing can be served on {listen.host}, {ports}: {reason}; set SYNC_WEB_HOST and "
        "SYNC_WEB_PORT (of a worker: SYNC_METRICS_PORT) to others."
    )


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening
