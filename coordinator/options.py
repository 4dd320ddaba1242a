"""What the user asked for, and which collections that means. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Self

from tasks.errors import InvalidInput
from tasks.stores.base import Collection

MAX_PASSES = 5
INDEX_SAMPLE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which of the source's collections, and what they are called on the target.

    A collection is taken if it is named, or matches a pattern of `include` (everything does if
    neither is given), and matches none of `exclude`. Patterns are those of a shell: `*`, `?`, `[]`.
    """

    names: Sequence[str] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    renames: Mapping[str, str] = field(default_factory=dict)  # source name -> target name

    def takes(self, name: str) -> bool:
        """Whether the collection of this name is taken."""
        wanted = name in self.names or any(fnmatchcase(name, one) for one in self.include)
        everything = not self.names and not self.include
        return (wanted or everything) and not any(fnmatchcase(name, one) for one in self.exclude)

    def target_name(self, name: str) -> str:
        """What the collection is called on the target."""
        return self.renames.get(name, name)

    def choose(self, collections: Iterable[Collection]) -> list[Collection]:
        """Those that are taken.

        Raises `InvalidInput` if two would have one name on the target, or a rename is of none.
        """
        chosen = [collection for collection in collections if self.takes(collection.name)]
        names = [collection.name for collection in chosen]
        for old in self.renames:
            if old not in names:
                raise InvalidInput(f"--map {old}=...: {old!r} is not among the collections taken.")
        sources: dict[str, str] = {}
        for name in names:
            other = sources.setdefault(self.target_name(name), name)
            if other != name:
                raise InvalidInput(
                    f"Both {other!r} and {name!r} would be {self.target_name(name)!r} on the "
                    "target; give one of them another name with --map."
                )
        return chosen

    def document(self) -> dict[str, Any]:
        """As JSON, the same for every order in which it was given."""
        return {
            "collections": sorted(set(self.names)),
            "include": sorted(set(self.include)),
            "exclude": sorted(set(self.exclude)),
            "map": dict(sorted(self.renames.items())),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        return cls(
            names=document.get("collections", ()),
            include=document.get("include", ()),
            exclude=document.get("exclude", ()),
            renames=document.get("map", {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionLimit:
    """How many records of a collection a run may delete: so many, or a share of the target's."""

    text: str = "50%"

    def __post_init__(self) -> None:
        self._share_or_count()

    def of(self, target_count: int) -> int:
        """The most records that may go from a collection of this size."""
        share, count = self._share_or_count()
        return count if share is None else math.floor(target_count * share)

    def _share_or_count(self) -> tuple[float | None, int]:
        if self.text.isdecimal():
            return None, int(self.text)
        share = _share(self.text)
        if share is None:
            raise InvalidInput(
                f"--max-delete {self.text}: give a number of records, or a share such as 20%."
            )
        return share, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for. `workers` None: in this process; 0: elsewhere; N: N processes."""

    selection: Selection = field(default_factory=Selection)
    chunk_size: int | None = None  # None: chosen for each collection
    workers: int | None = None
    one_way: bool = False  # what only the target has is let be
    max_delete: DeletionLimit = field(default_factory=DeletionLimit)
    max_passes: int = MAX_PASSES
    atomic: bool = False
    create_database: bool = False
    sample: float = 1.0  # the share of the records that a verification reads
    index_sample: int = INDEX_SAMPLE  # records of each collection that are queried; 0: none

    def of_run(self) -> dict[str, Any]:
        """What makes an unfinished run the same as the one that is asked for now."""
        return self.selection.document() | {
            "chunk_size": self.chunk_size,
            "one_way": self.one_way,
            "atomic": self.atomic,
        }


def parse_renames(pairs: Iterable[str]) -> dict[str, str]:
    """`OLD=NEW`, again and again. Raises `InvalidInput`."""
    renames: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise InvalidInput(f"--map {pair}: give it as OLD=NEW.")
        if renames.setdefault(old, new) != new:
            raise InvalidInput(f"--map {pair}: {old!r} was given another name already.")
    return renames


def parse_share(text: str) -> float:
    """`5%` as 0.05. Raises `InvalidInput` for what is not above 0% and at most 100%."""
    share = _share(text)
    if not share:
        raise InvalidInput(f"--sample {text}: give a share such as 5%.")
    return share


def _share(text: str) -> float | None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    share = float(match[1]) / 100 if match else None
    return share if share is not None and share <= 1 else None
