"""A look at something, shared by all who want to know."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from tasks.errors import DatabaseUnavailable

T = TypeVar("T")
MOST = 0.1  # of the time may be spent looking


class Shared(Generic[T]):
    """Looks at most once at a time, however many ask, and lets nobody wait for long.

    `fresh`: for so many seconds what was seen is good enough. If a look takes long, what it saw is
    good for longer, so that a page which is watched costs no more the more there is to see.
    """

    def __init__(self, look: Callable[[], T], *, patience: float, fresh: float = 0.0) -> None:
        self._look = look
        self._patience = patience
        self._fresh = fresh
        self._lock = threading.Lock()
        self._under_way: Future[T] | None = None
        self._seen: Future[T] | None = None
        self._seen_until = 0.0

    def get(self) -> T:
        """What is seen, or raised. Raises `DatabaseUnavailable` if it takes too long."""
        with self._lock:
            if self._seen is not None and time.monotonic() < self._seen_until:
                return self._seen.result()
            if self._under_way is None:
                self._under_way = Future()
                threading.Thread(
                    target=self._run, args=[self._under_way], name="look", daemon=True
                ).start()
            awaited = self._under_way
        try:
            return awaited.result(self._patience)
        except TimeoutError:
            if awaited.done():
                raise  # by the look itself
            raise DatabaseUnavailable(
                f"No answer within {self._patience:g} s: Postgres is away, or busy."
            ) from None

    def _run(self, future: Future[T]) -> None:
        began = time.monotonic()
        try:
            result = self._look()
        except BaseException as error:
            self._end(future, 0.0)
            future.set_exception(error)
        else:
            took = time.monotonic() - began
            self._end(future, max(self._fresh, took / MOST) if self._fresh else 0.0)
            future.set_result(result)

    def _end(self, future: Future[T], good_for: float) -> None:
        with self._lock:
            self._under_way = None
            self._seen, self._seen_until = future, time.monotonic() + good_for
