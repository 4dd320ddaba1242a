"""Open stores, one for each address, shared by the threads of a process."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tasks.stores.base import Store


class StoreCache:
    """Opens a store when it is first asked for, and keeps it open until `close`."""

    def __init__(self, open_store: Callable[[str], Store]) -> None:
        self._open_store = open_store
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()

    def get(self, address: str) -> Store:
        with self._lock:
            store = self._stores.get(address)
            if store is None:
                store = self._stores[address] = self._open_store(address)
            return store

    def close(self) -> None:
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()
