"""The report of a run: one document for programs, and the same for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator.verify import CollectionCounts, LedgerProof
from tasks.chunk import Finding
from tasks.ledger import Progress

SHOWN_FINDINGS = 20
KEPT_FINDINGS = 1000

MEANINGS = {"-": "missing on the target", "+": "only on the target", "*": "differs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a sync or a verification did and found.

    Of a sync, `done` has what was written and `proof` what was found afterwards; of a verification,
    `done` is None. `findings` is cut at KEPT_FINDINGS; the counts are whole.
    """

    run_id: UUID
    status: str
    verified: bool
    seconds: float
    done: Sequence[CollectionCounts] | None
    proof: Sequence[CollectionCounts]
    progress: Progress
    ledger: LedgerProof
    findings: Sequence[tuple[str, Finding]] = ()
    failures: Sequence[dict[str, Any]] = ()
    notes: Sequence[str] = field(default=())

    def document(self) -> dict[str, Any]:
        """The JSON document; fields that do not apply to a verification are left out."""
        return {
            "run_id": str(self.run_id),
            "status": self.status,
            "verified": self.verified,
            "seconds": round(self.seconds, 3),
            "collections": self._collections(),
            "chunks": {
                "planned": self.progress.planned,
                "completed": self.progress.completed,
                "failed": self.progress.failed,
            },
            "duplicates": self.ledger.duplicates,
            "gaps": self.ledger.gaps,
            "findings": [
                {"collection": name, "sign": sign, "id": id_, "parts": list(parts)}
                for name, (sign, id_, parts) in self.findings
            ],
            "failures": list(self.failures),
            "notes": list(self.notes),
        }

    def _collections(self) -> list[dict[str, Any]]:
        proofs = {proof.name: proof for proof in self.proof}
        rows = []
        for counts in self.done if self.done is not None else self.proof:
            row = asdict(counts)
            proof = proofs.get(counts.name)
            if self.done is None:
                for written in ("added", "updated", "deleted"):
                    del row[written]
            elif proof is not None:
                for found in ("source_count", "target_count", "missing", "extra", "differing"):
                    row[found] = getattr(proof, found)
                row["failed"] = counts.failed + proof.failed
            rows.append(row)
        return rows

    def print(self, console: Console) -> None:
        """Show it to a person."""
        console.print(self._table())
        for name, (sign, id_, parts) in self.findings[:SHOWN_FINDINGS]:
            detail = f" ({', '.join(parts)})" if parts else ""
            console.print(
                f"{sign} {name}: {id_!r} {MEANINGS[sign]}{detail}", markup=False, highlight=False
            )
        total = sum(one.missing + one.extra + one.differing for one in self.proof)
        if total > SHOWN_FINDINGS:
            console.print(f"... and {total - SHOWN_FINDINGS:,} more; --json lists the first 1,000.")
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
                    f"  refused: {ids}{f' and {more} more' if more > 0 else ''}", markup=False
                )
        for note in self.notes:
            console.print(note, style="yellow", markup=False)
        console.print(self._verdict())

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("collection")
        columns = ["source", "target"]
        if self.done is not None:
            columns += ["added", "updated", "deleted"]
        columns += ["unchanged", "missing", "extra", "differing", "failed"]
        for column in columns:
            table.add_column(column, justify="right")
        for row in self._collections():
            cells = []
            for column in columns:
                value = row[f"{column}_count" if column in ("source", "target") else column]
                alarming = column in ("missing", "extra", "differing", "failed") and value
                cells.append(f"[red]{value:,}[/]" if alarming else f"{value:,}")
            table.add_row(escape(row["name"]), *cells)
        return table

    def _verdict(self) -> str:
        chunks = (
            f"{self.progress.completed:,} of {self.progress.planned:,} chunks, "
            f"{self.ledger.gaps} gaps, {self.ledger.duplicates} duplicates"
        )
        took = f"{self.seconds:.1f} s"
        run = f"run {self.run_id}"
        if self.verified:
            return f"[green]verified[/]: source and target are alike ({chunks}; {took}; {run})"
        if self.failures:
            hint = f"`chroma-sync retry {self.run_id}` tries failed chunks again"
            return f"[red]failed[/]: {hint} ({chunks}; {took}; {run})"
        return f"[red]not verified[/]: source and target differ ({chunks}; {took}; {run})"
