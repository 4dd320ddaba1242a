"""From an address to a store that is ready to be used."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.stores.address import Address
from tasks.stores.base import Store
from tasks.stores.chroma_directory import open_directory
from tasks.stores.chroma_http import ChromaHttpStore
from tasks.stores.transport import CONNECT_TIMEOUT, READ_TIMEOUT


def open_store(
    address: Address,
    *,
    environ: Mapping[str, str],
    create: bool = False,
    connect_timeout: float = CONNECT_TIMEOUT,
    read_timeout: float = READ_TIMEOUT,
    concurrent_writes: int = 1,
) -> Store:
    """The store at this address. Close it when done: a directory is served until then.

    `environ` is where the address's token is looked up. `create` allows a directory that is not
    there yet or is empty, as a target may be. `concurrent_writes` is how many writes are sent at a
    time to a server; a directory gets one. No server is contacted yet: `check` does that.
    Raises `InvalidInput` for a missing token or a directory that cannot be used.
    """
    if address.kind == "directory":
        return open_directory(
            address,
            create=create,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )
    return ChromaHttpStore(
        address,
        headers=address.headers(environ),
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        concurrent_writes=concurrent_writes,
    )
