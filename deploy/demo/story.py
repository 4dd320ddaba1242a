"""What a person sees of the demo: numbered steps, each with what came of it and its time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.status import Status
from rich.table import Table
from rich.text import Text

WIDTH = 100
PIPE_WIDTH = 160  # lines of other programs are not to be broken there


class Step:
    """A step under way: collects what it has to tell, and shows how it goes on."""

    def __init__(self, status: Status, title: str) -> None:
        self._status = status
        self._title = title
        self.details: list[RenderableType] = []

    def tell(self, *details: RenderableType) -> None:
        """Lines or tables below the title, once the step is over. A string is markup."""
        self.details.extend(details)

    def now(self, text: str) -> None:
        """What goes on at this moment; seen on a terminal only."""
        self._status.update(f"{self._title} [dim]{text}[/]")


class Story:
    """Tells steps one after the other."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps = 0
        self._began = time.monotonic()
        if not console.is_terminal:
            console.width = PIPE_WIDTH

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """A step of that title; one that fails is shown with what it had to tell by then."""
        self._steps += 1
        began = time.monotonic()
        status = self._console.status(title)
        step = Step(status, title)
        mark, style = "✗", "red"
        try:
            with status if self._console.is_terminal else contextlib.nullcontext():
                yield step
            mark, style = "✓", "green"
        finally:
            line = Table.grid(padding=(0, 1), pad_edge=False)
            line.add_column(width=2, justify="right", style="dim")
            line.add_column(width=min(self._console.width, WIDTH) - 16)
            line.add_column(width=8, justify="right", style="dim")
            took = f"{time.monotonic() - began:.1f} s"
            line.add_row(str(self._steps), f"[bold]{title}[/] [{style}]{mark}[/]", took)
            self._console.print(line)
            for detail in step.details:
                self._console.print(Padding(detail, (0, 0, 0, 3), expand=False))

    def end(self, text: str) -> None:
        """The last line, with the time that all steps took."""
        self._console.print()
        self._console.print(f"{text} [dim]({time.monotonic() - self._began:.1f} s)[/]")


def from_program(output: str) -> Text:
    """What another program printed."""
    text = Text("\n".join(line.rstrip() for line in output.rstrip().splitlines()))
    text.highlight_words(["verified"], "green")
    return text
