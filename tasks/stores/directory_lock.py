"""One server for a Chroma directory: two that write to it at once would spoil its index."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from tasks.errors import InvalidInput

DATABASE_FILE = "chroma.sqlite3"
LOCK_FILE = ".chroma-sync.lock"


class DirectoryLock:
    """The right of this process to serve a directory, until `release` or the process's end.

    The lock is the kernel's (flock), so nothing is left locked by a crash. The file only says who.
    """

    def __init__(self, directory: Path) -> None:
        """Raises `InvalidInput` if the directory is served already, or cannot be written to."""
        self._path = directory / LOCK_FILE
        self._file = self._take(directory)
        try:
            for process in using(directory):
                raise InvalidInput(
                    f"{directory}: another process ({process.name()}, pid {process.pid}) has its "
                    f"{DATABASE_FILE} open: stop it, or give that server's http address instead"
                )
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        if self._file < 0:
            return
        # Removed while it is held: who waits for it finds another file at the path, or none.
        with suppress(OSError):
            self._path.unlink()
        os.close(self._file)
        self._file = -1

    def _take(self, directory: Path) -> int:
        while True:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise InvalidInput(
                    f"{directory}: Chroma must be able to write there: {error.strerror}"
                ) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_at_path(file):
                    os.ftruncate(file, 0)
                    os.write(file, str(os.getpid()).encode())
                    return file
            except BlockingIOError:
                pid = os.read(file, 20).decode(errors="replace") or "?"
                os.close(file)
                raise InvalidInput(
                    f"{directory}: it is in use by another chroma-sync process (pid {pid})"
                ) from None
            except BaseException:
                os.close(file)
                raise
            os.close(file)  # the owner removed it between open and flock: try the new file

    def _is_at_path(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False


def using(directory: Path) -> Iterator[psutil.Process]:
    """The processes that have the directory's database open, as far as we may see them."""
    database = os.path.realpath(directory / DATABASE_FILE)
    if not os.path.exists(database):
        return
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # gone meanwhile, or another user's
            if any(file.path == database for file in process.open_files()):
                yield process
