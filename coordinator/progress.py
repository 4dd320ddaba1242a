"""What a person sees while a run goes on: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_INTERVAL = 10.0  # seconds between two lines where there is no terminal


class ProgressDisplay:
    """Shows phases of a run, each with records done of records in all."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._phase = ""
        self._began = self._last_line = time.monotonic()
        self._first = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """One line, above the bar."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False)

    def phase(self, name: str, *, done: int = 0, total: int | None = None) -> None:
        """Begin a phase; `done` records were done before it (a run that is resumed)."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=total, completed=done, rate="")
        self._phase = name
        self._first = done
        self._began = self._last_line = time.monotonic()

    def update(self, done: int, total: int | None = None) -> None:
        """So many records are done."""
        assert self._task is not None, "a phase comes first"
        now = time.monotonic()
        rate = f"{(done - self._first) / max(now - self._began, 0.001):,.0f}/s"
        self._bar.update(self._task, completed=done, total=total, rate=rate)
        if now - self._last_line >= LINE_INTERVAL and not self._console.is_terminal:
            self._last_line = now
            of = f" of {total:,}" if total is not None else ""
            self.say(f"{self._phase}: {done:,}{of} records, {rate}")
