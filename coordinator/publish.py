"""Puts a whole collection in another's place by renames: readers never see half of one.

The new one is filled and verified under a name of its own. Then the old one is renamed out of the
way, the new one takes its name, and the old one is deleted. Every step is found done or not by the
collections' own ids, so that the whole may be begun again after a crash at any point.
"""

from __future__ import annotations

from uuid import UUID

from tasks.stores.base import Collection, Store

_KEPT = 44  # of the name: a server before 1.0 takes 63 characters


def staging_name(name: str, run_id: UUID) -> str:
    """What a collection is called until it is published by this run."""
    return f"{name[:_KEPT].rstrip('._-')}.sync-{run_id.hex[:8]}"


def publish(target: Store, staged: Collection, name: str, run_id: UUID) -> None:
    """Let `staged` be the collection of this name; the one that had it is deleted."""
    old_name = f"{name[:_KEPT].rstrip('._-')}.old-{run_id.hex[:8]}"
    there = {collection.name: collection for collection in target.collections()}
    current, old = there.get(name), there.get(old_name)
    if current is None or current.id != staged.id:
        if current is not None:
            old = target.modify(current, name=old_name)
        target.modify(staged, name=name)
    if old is not None:
        target.drop(old)


def discard(target: Store, staged: Collection, name: str, run_id: UUID) -> None:
    """Delete what was staged and will not be published."""
    for collection in target.collections():
        if collection.id == staged.id and collection.name == staging_name(name, run_id):
            target.drop(collection)
