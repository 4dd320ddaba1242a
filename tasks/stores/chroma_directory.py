"""A Chroma data directory, served by a Chroma server of our own while it is open.

Not read in place: its files are Chroma's own affair, differ from version to version, and hold only
a part of what a collection is (recent records are still in its log).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tasks.errors import InvalidInput
from tasks.stores.address import Address
from tasks.stores.chroma_http import ChromaHttpStore
from tasks.stores.directory_lock import DATABASE_FILE, LOCK_FILE
from tasks.stores.server import ChromaServer
from tasks.stores.transport import CONNECT_TIMEOUT, READ_TIMEOUT


class ChromaDirectoryStore(ChromaHttpStore):
    """The `Store` of a directory: its label is the directory, its `endpoint` where it is served."""

    def __init__(
        self,
        address: Address,
        server: ChromaServer,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
    ) -> None:
        """`server` runs already; `close` stops it."""
        super().__init__(
            replace(address, kind="http", location=server.endpoint),
            headers={},
            label=str(address),
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )
        self._server = server

    def close(self) -> None:
        super().close()
        self._server.stop()


def open_directory(
    address: Address,
    *,
    create: bool,
    connect_timeout: float = CONNECT_TIMEOUT,
    read_timeout: float = READ_TIMEOUT,
) -> ChromaDirectoryStore:
    """Serve the directory, which may be made if `create`, until the store is closed.

    Raises what `check_directory` and `ChromaServer.start` raise.
    """
    directory = Path(address.location)
    check_directory(directory, create=create)
    if create:
        directory.mkdir(exist_ok=True)
    server = ChromaServer(directory).start()
    return ChromaDirectoryStore(
        address, server, connect_timeout=connect_timeout, read_timeout=read_timeout
    )


def check_directory(directory: Path, *, create: bool) -> None:
    """Whether it is a Chroma directory, or with `create` may become one.

    Raises `InvalidInput` with what is wrong. With `create`, an empty directory will do, and so will
    a missing one whose parent is there. Nothing is changed.
    """
    try:
        if (directory / DATABASE_FILE).is_file():
            return
        if directory.is_dir():
            empty = {entry.name for entry in directory.iterdir()} <= {LOCK_FILE}
            if create and empty:
                return
            what = "is empty" if empty else "holds other files"
            raise InvalidInput(
                f"{directory} is no Chroma directory: it {what} and has no {DATABASE_FILE}"
            )
        if directory.exists():
            raise InvalidInput(f"{directory} is a file; give the directory that Chroma keeps")
        if not create:
            raise InvalidInput(
                f"{directory} does not exist; give a Chroma directory, or http://..."
            )
        if not directory.parent.is_dir():
            raise InvalidInput(f"{directory} cannot be made: {directory.parent} does not exist")
    except OSError as error:
        raise InvalidInput(f"{directory} cannot be looked into: {error.strerror}") from error
