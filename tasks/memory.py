"""A limit on a worker's memory: above it, no new chunk is taken."""

from __future__ import annotations

import ctypes
import gc
import sys
import time

import psutil
import structlog

_LOOK_SECONDS = 1.0

logger = structlog.get_logger(__name__)


class MemoryLimit:
    """Says whether this process has room for another chunk. Safe to use from several threads."""

    def __init__(self, megabytes: float | None) -> None:
        self._limit = None if megabytes is None else megabytes * 2**20
        self._process = psutil.Process()
        self._looked = -_LOOK_SECONDS
        self._has_room = True

    def has_room(self) -> bool:
        """Whether the memory in use (resident) is below the limit, as of a second ago."""
        if self._limit is None:
            return True
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._look(self._limit)
        return self._has_room

    def _look(self, limit: float) -> None:
        had_room, self._has_room = self._has_room, self._process.memory_info().rss < limit
        if self._has_room:
            return
        if had_room:
            logger.warning(
                "memory is above the limit; no new chunk until it falls",
                limit_mb=round(limit / 2**20),
            )
        # What was freed stays with the allocator unless it is asked for.
        gc.collect()
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
            if trim is not None:
                trim(0)
        self._has_room = self._process.memory_info().rss < limit
