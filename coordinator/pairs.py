"""Pairs of source and target that are kept alike on a schedule: one from the environment, or any
number from a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coordinator.options import DeletionLimit, Options, Selection
from tasks.errors import InvalidInput
from tasks.settings import Settings, parse_chunk_size
from tasks.stores.address import parse_address

DEFAULT_NAME = "default"


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a pair is synced: every so many seconds, or by a cron expression (in UTC)."""

    every: float | None
    cron: str | None = None

    def next_after(self, begun: datetime) -> datetime:
        """When the next run is due, if the last one was begun then."""
        if self.cron is not None:
            return next(CronSim(self.cron, begun))
        assert self.every is not None
        return begun + timedelta(seconds=self.every)

    def __str__(self) -> str:
        return self.cron if self.cron is not None else f"every {self.every:g} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledPair:
    name: str
    source: str
    target: str
    schedule: Schedule
    options: Options


class _PairTable(BaseModel):
    """One `[[pair]]` of the file."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.-]+$")]
    source: str
    target: str
    every: Annotated[float | None, Field(gt=0)] = None
    cron: str | None = None
    mode: Literal["sync", "copy"] = "sync"
    collections: list[str] = []
    include: list[str] = []
    exclude: list[str] = []
    map: dict[str, str] = {}
    max_delete: str = "50%"
    max_passes: Annotated[int, Field(gt=0)] = 5
    chunk_size: int | str | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    pair: Annotated[list[_PairTable], Field(min_length=1)]


def configured_pairs(settings: Settings) -> list[ScheduledPair]:
    """The pairs of `SYNC_PAIRS`, or the one of `SYNC_SOURCE_URL` and `SYNC_TARGET_URL`.

    Raises `InvalidInput` if there is none, or one that cannot be.
    """
    if settings.sync_pairs is not None:
        if settings.sync_source_url or settings.sync_target_url:
            raise InvalidInput(
                "SYNC_PAIRS and SYNC_SOURCE_URL or SYNC_TARGET_URL are both set; leave one out."
            )
        return _from_file(settings, settings.sync_pairs)
    if not (settings.sync_source_url and settings.sync_target_url):
        raise InvalidInput(
            "Set SYNC_SOURCE_URL and SYNC_TARGET_URL to the two stores' addresses, "
            "or SYNC_PAIRS to a file of pairs."
        )
    pair = ScheduledPair(
        name=DEFAULT_NAME,
        source=settings.sync_source_url,
        target=settings.sync_target_url,
        schedule=_schedule(settings, None, settings.sync_cron, where="SYNC_CRON"),
        options=Options(chunk_size=settings.sync_chunk_size),
    )
    return _checked([pair], where="The environment")


def _from_file(settings: Settings, path: Path) -> list[ScheduledPair]:
    try:
        tables = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).pair
    except OSError as error:
        raise InvalidInput(f"SYNC_PAIRS: {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is no TOML: {error}.") from error
    except ValidationError as error:
        raise InvalidInput(f"{path}: {_first(error)}.") from None
    return _checked([_pair(settings, path, table) for table in tables], where=str(path))


def _pair(settings: Settings, path: Path, table: _PairTable) -> ScheduledPair:
    where = f"{path}: pair {table.name!r}"
    size = settings.sync_chunk_size
    if table.chunk_size is not None:
        size = parse_chunk_size(str(table.chunk_size), f"{where}: chunk_size")
    return ScheduledPair(
        name=table.name,
        source=table.source,
        target=table.target,
        schedule=_schedule(settings, table.every, table.cron, where=where),
        options=Options(
            selection=Selection(
                names=table.collections,
                include=table.include,
                exclude=table.exclude,
                renames=table.map,
            ),
            chunk_size=size,
            one_way=table.mode == "copy",
            max_delete=DeletionLimit(text=table.max_delete),
            max_passes=table.max_passes,
        ),
    )


def _schedule(settings: Settings, every: float | None, cron: str | None, *, where: str) -> Schedule:
    if cron is None:
        return Schedule(every=every or settings.sync_interval)
    if every is not None:
        raise InvalidInput(f"{where}: give `every` or `cron`, not both.")
    try:
        CronSim(cron, datetime(2026, 1, 1))
    except CronSimError as error:
        raise InvalidInput(f"{where}: {cron!r} is no cron expression: {error}.") from error
    return Schedule(every=None, cron=cron)


def _checked(pairs: list[ScheduledPair], *, where: str) -> list[ScheduledPair]:
    names: set[str] = set()
    stores: set[tuple[str, str]] = set()
    for pair in pairs:
        source, target = parse_address(pair.source), parse_address(pair.target)
        if source.same_store(target):
            raise InvalidInput(f"{where}: source and target are the same store, {source}.")
        if pair.name in names or (str(source), str(target)) in stores:
            raise InvalidInput(f"{where}: pair {pair.name!r} is there twice.")
        names.add(pair.name)
        stores.add((str(source), str(target)))
    return pairs


def _first(error: ValidationError) -> str:
    first: dict[str, Any] = dict(error.errors()[0])
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}"
