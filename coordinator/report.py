"""The report of a run: one document for programs, and the same for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator.index_check import IndexCheck
from coordinator.verify import Apart, LedgerProof
from tasks.chunk import DIFFERS, EXTRA, GONE, MISSING, UNREADABLE, Finding
from tasks.ledger import Progress

SHOWN_FINDINGS = 20
KEPT_FINDINGS = 1000

MEANINGS = {
    MISSING: "missing on the target",
    EXTRA: "only on the target",
    DIFFERS: "differs",
    UNREADABLE: "could not be read",
    GONE: "gone from both sides meanwhile",
}
_TO_DO = {
    MISSING: "would be added",
    EXTRA: "would be deleted",
    DIFFERS: "would be updated",
    UNREADABLE: "could not be read",
    GONE: "gone from both sides meanwhile",
}
_WRITTEN = ("added", "updated", "deleted")
_ALARMING = ("missing", "extra", "differing", "unreadable", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionReport:
    """One collection: the records on either side, what was written, and what was found at the end.

    Of a verification `added`, `updated` and `deleted` are None. Digests (32 hexadecimal digits,
    `tasks.digest`) are None where no one look covered all records.
    """

    name: str
    target_name: str
    source_count: int
    target_count: int
    added: int | None = None
    updated: int | None = None
    deleted: int | None = None
    unchanged: int
    missing: int
    extra: int
    differing: int
    unreadable: int
    failed: int
    source_digest: str | None = None
    target_digest: str | None = None

    def document(self) -> dict[str, Any]:
        """Without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a sync or a verification did and found.

    `findings` is cut at KEPT_FINDINGS; the counts are whole.
    """

    run_id: UUID
    kind: str  # "sync", "copy", "repair", "verify" or "dry run"
    status: str
    verified: bool
    seconds: float
    collections: Sequence[CollectionReport]
    progress: Progress
    ledger: LedgerProof
    passes: int = 0  # of a sync
    whole: bool = True  # all records of the collections were looked at
    apart: Apart = field(default_factory=Apart)
    # Not verified, but all that was not alike at the end had changed on the source just before.
    caught_up: bool = False
    indexes: Sequence[IndexCheck] = ()
    findings: Sequence[tuple[str, Finding]] = ()
    failures: Sequence[dict[str, Any]] = ()
    notes: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        """The JSON document; fields that do not apply to a verification are left out."""
        passes = {
            "passes": self.passes,
            "changed_meanwhile": self.apart.changed,
            "lost": self.apart.lost,
            "caught_up": self.caught_up,
        }
        return {
            "run_id": str(self.run_id),
            "kind": self.kind,
            "status": self.status,
            "verified": self.verified,
            "seconds": round(self.seconds, 3),
            "collections": [one.document() for one in self.collections],
            "chunks": {
                "planned": self.progress.planned,
                "completed": self.progress.completed,
                "failed": self.progress.failed,
            },
            "duplicates": self.ledger.duplicates,
            "gaps": self.ledger.gaps,
            **(passes if self.passes else {}),
            "indexes": [
                {
                    "collection": one.name,
                    "sampled": one.sampled,
                    "source_recall": round(one.source_recall, 4),
                    "target_recall": round(one.target_recall, 4),
                    "worse": one.is_worse,
                }
                for one in self.indexes
            ],
            "findings": [
                {"collection": name, "sign": sign, "id": id_, "parts": list(parts)}
                for name, (sign, id_, parts) in self.findings
            ],
            "failures": list(self.failures),
            "notes": list(self.notes),
        }

    def print(self, console: Console) -> None:
        """Show it to a person."""
        console.print(self._table())
        meanings = _TO_DO if self.is_dry else MEANINGS
        for name, (sign, id_, parts) in self.findings[:SHOWN_FINDINGS]:
            detail = f" ({', '.join(parts)})" if parts else ""
            console.print(
                f"{sign} {name}: {id_!r} {meanings[sign]}{detail}", markup=False, highlight=False
            )
        total = sum(
            one.missing + one.extra + one.differing + one.unreadable for one in self.collections
        )
        if total > SHOWN_FINDINGS:
            console.print(
                f"... and {total - SHOWN_FINDINGS:,} more; --json lists the first "
                f"{KEPT_FINDINGS:,}, `verify --combined FILE` all."
            )
        for failure in self.failures[:SHOWN_FINDINGS]:
            console.print(
                f"! {failure['collection']}: chunk {failure['start']:,} to {failure['end']:,} "
                f"failed: {failure['error']}",
                style="red",
                markup=False,
            )
            if failure["refused"]:
                ids = ", ".join(repr(one["id"]) for one in failure["refused"][:SHOWN_FINDINGS])
                more = len(failure["refused"]) - SHOWN_FINDINGS
                console.print(
                    f"  these: {ids}{f' and {more} more' if more > 0 else ''}", markup=False
                )
        for check in self.indexes:
            if check.is_worse:
                console.print(
                    f"! {check.name}: the target's index finds {check.target_found} of "
                    f"{check.sampled} sampled records, the source's {check.source_found}",
                    style="red",
                    markup=False,
                )
        for note in self.notes:
            console.print(note, style="yellow", markup=False)
        console.print(self.verdict())

    @property
    def is_dry(self) -> bool:
        """It says what a sync would do; there is nothing to prove."""
        return self.kind == "dry run"

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("collection")
        columns = {"source": "source_count", "target": "target_count"}
        if self.is_dry:
            columns |= {"to add": "missing", "to update": "differing", "to delete": "extra"}
            columns |= {"unchanged": "unchanged"}
        else:
            if any(one.added is not None for one in self.collections):
                columns |= {name: name for name in _WRITTEN}
            columns |= {name: name for name in ("unchanged", "missing", "extra", "differing")}
        if any(one.unreadable for one in self.collections):
            columns["unreadable"] = "unreadable"
        columns["failed"] = "failed"
        for column in columns:
            table.add_column(column, justify="right")
        for one in self.collections:
            cells = []
            for attribute in columns.values():
                value = getattr(one, attribute)
                alarming = attribute in _ALARMING and value and not self.is_dry
                cells.append(f"[red]{value:,}[/]" if alarming else f"{value:,}")
            arrow = f" -> {one.target_name}" if one.target_name != one.name else ""
            table.add_row(escape(one.name + arrow), *cells)
        return table

    def verdict(self) -> str:
        """One line, with colours as rich's markup."""
        chunks = (
            f"{self.progress.completed:,} of {self.progress.planned:,} chunks, "
            f"{self.ledger.gaps} gaps, {self.ledger.duplicates} duplicates"
        )
        details = f"({chunks}; {self.seconds:.1f} s; run {self.run_id})"
        if self.is_dry:
            return f"[cyan]dry run[/]: nothing was written {details}"
        if self.verified:
            alike = "source and target are alike"
            if not self.whole:
                alike = "what was looked at is alike"
            elif self.kind == "copy":
                alike = "all that the source has is on the target"
            return f"[green]verified[/]: {alike} {details}"
        if self.failures:
            hint = f"`chroma-sync retry {self.run_id}` tries failed chunks again"
            return f"[red]failed[/]: {hint} {details}"
        if self.caught_up:
            alike = "all is alike but what changed on the source during the last pass"
            return f"[yellow]caught up[/]: {alike} {details}"
        if not self.findings:
            return f"[red]not verified[/]: an index finds less; `sync --atomic` builds it {details}"
        hint = f"`chroma-sync repair {self.run_id}` syncs just that"
        return f"[red]not verified[/]: source and target differ; {hint} {details}"
