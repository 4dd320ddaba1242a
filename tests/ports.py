"""Ports for servers that the tests start."""

from __future__ import annotations

import contextlib
import random
import socket

_random = random.SystemRandom()  # other tests on this machine must not draw the same


def free_port(*, beside: tuple[int, ...] = ()) -> int:
    """A port that nobody listens on; nor on those so far `beside` it.

    Below those that the system gives to connections, so that none of these comes in between.
    """
    while True:
        port = _random.randrange(15_000, 32_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for offset in (0, *beside):
                stack.enter_context(socket.create_server(("127.0.0.1", port + offset)))
            return port
