"""How long it took until the work went on after a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """One strike of a fault: when it was over (a kill is over at once), and the tasks it hit."""

    over: float  # seconds since the epoch
    held: Sequence[int] = ()


@dataclass(slots=True, kw_only=True)
class Recovery:
    """One line of the table: a scenario that ended well."""

    scenario: str
    form: str  # short or long
    run_seconds: float
    blows: int
    # The longest after any blow, in seconds: to the first result of anybody, and to the last result
    # of those tasks that the blow had hit.
    first_result: float | None = None
    hit_tasks: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        notes = ", ".join(f"{name} {value}" for name, value in self.notes.items())
        return (
            self.scenario,
            self.form,
            f"{self.run_seconds:.1f}",
            str(self.blows),
            _seconds(self.first_result),
            _seconds(self.hit_tasks),
            notes,
        )


HEADINGS = ("scenario", "form", "run s", "blows", "first result s", "hit tasks s", "notes")


def longest_waits(
    blows: Sequence[Blow], recorded_at: Mapping[int, float]
) -> tuple[float | None, float | None]:
    """The longest wait for the first result after a blow, and for the last of what it had hit.

    `recorded_at` gives the time of each task's result. A task that was hit again counts from the
    last time.
    """
    first: list[float] = []
    last: list[float] = []
    for number, blow in enumerate(blows):
        later = [at - blow.over for at in recorded_at.values() if at > blow.over]
        if later:
            first.append(min(later))
        again = {task for other in blows[number + 1 :] for task in other.held}
        hit = [
            recorded_at[task] - blow.over for task in {*blow.held} - again if task in recorded_at
        ]
        if hit:
            last.append(max(hit))
    return max(first, default=None), max(last, default=None)


def table(lines: Sequence[Recovery]) -> list[str]:
    """The lines under their headings, in columns."""
    rows = [HEADINGS, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return [
        "  ".join(
            cell.ljust(width) if column in (0, 1, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
