"""Reads what the ledger says of a run that is over into its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from coordinator.index_check import IndexCheck
from coordinator.pipeline import Look, Proven
from coordinator.plan import Planned
from coordinator.report import KEPT_FINDINGS, CollectionReport, Report
from coordinator.verify import (
    CollectionResults,
    collection_digests,
    collection_results,
    findings,
    prove_ledger,
    synced_digests,
)
from tasks.database import Database
from tasks.ledger import Ledger


def conclude_sync(
    database: Database,
    run_id: UUID,
    proven: Proven,
    *,
    kind: str,
    planned: Sequence[Planned],
    listed: Sequence[Planned],
    indexes: Sequence[IndexCheck],
    seconds: float,
) -> Report:
    """The report of a sync: `planned` before it, `listed` by its last verification."""
    last = proven.verifications[-1]
    runs = [*proven.syncs, *proven.verifications]
    first = _by_name(collection_results(database, [run_id]))
    written = _by_name(collection_results(database, proven.syncs))
    found = _by_name(collection_results(database, [last]))
    now = {one.pair.source.name: one for one in listed}
    whole = proven.look is not Look.WRITTEN
    digests = _digests_of(database, run_id, proven) if kind != "repair" else None
    ledger = prove_ledger(database, *runs)
    failures = [failure for run in runs for failure in Ledger(database).failures(run)]
    sound = ledger.holds and not failures and not any(check.is_worse for check in indexes)
    verified = sound and all(one.is_alike for one in found.values())
    caught_up = (
        sound
        and proven.has_caught_up
        and not any(one.unreadable or one.failed for one in found.values())
    )
    return Report(
        run_id=run_id,
        kind=kind,
        status="completed" if verified or caught_up else "failed",
        verified=verified,
        seconds=seconds,
        collections=[
            CollectionReport(
                name=name,
                target_name=one.pair.target_name,
                source_count=now[name].source_count,
                # Where nothing was listed again, what it must be now.
                target_count=now[name].target_count
                if whole
                else one.target_count + written[name].added - written[name].deleted,
                added=written[name].added,
                updated=written[name].updated,
                deleted=written[name].deleted,
                unchanged=first[name].unchanged,
                missing=found[name].missing,
                extra=found[name].extra,
                differing=found[name].differing,
                unreadable=found[name].unreadable,
                failed=written[name].failed + found[name].failed,
                source_digest=digests[name][0] if digests else None,
                target_digest=digests[name][1] if digests else None,
            )
            for one in planned
            for name in (one.pair.source.name,)
        ],
        progress=Ledger(database).progress(run_id),
        ledger=ledger,
        passes=len(proven.syncs),
        whole=whole,
        apart=proven.apart,
        caught_up=caught_up,
        indexes=indexes,
        findings=findings(database, last, limit=KEPT_FINDINGS),
        failures=failures,
        notes=[*_losses(planned), *_told_apart(proven, verified=verified), *proven.notes],
    )


def conclude_verification(
    database: Database,
    run_id: UUID,
    *,
    planned: Sequence[Planned],
    indexes: Sequence[IndexCheck] = (),
    notes: Sequence[str] = (),
    seconds: float,
    kind: str = "verify",
) -> Report:
    """The report of a verification that somebody asked for, or of a dry run."""
    found = _by_name(collection_results(database, [run_id]))
    digests = collection_digests(database, run_id)
    ledger = prove_ledger(database, run_id)
    failures = Ledger(database).failures(run_id)
    return Report(
        run_id=run_id,
        kind=kind,
        status="failed" if failures else "completed",
        verified=ledger.holds
        and not failures
        and all(one.is_alike for one in found.values())
        and not any(check.is_worse for check in indexes),
        seconds=seconds,
        collections=[
            CollectionReport(
                name=name,
                target_name=one.pair.target_name,
                source_count=one.source_count,
                target_count=one.target_count,
                unchanged=found[name].unchanged,
                missing=found[name].missing,
                extra=found[name].extra,
                differing=found[name].differing,
                unreadable=found[name].unreadable,
                failed=found[name].failed,
                source_digest=None if failures else digests[name][0],
                target_digest=None if failures else digests[name][1],
            )
            for one in planned
            for name in (one.pair.source.name,)
        ],
        progress=Ledger(database).progress(run_id),
        ledger=ledger,
        indexes=indexes,
        findings=findings(database, run_id, limit=KEPT_FINDINGS),
        failures=failures,
        notes=notes,
    )


def _by_name(results: Sequence[CollectionResults]) -> dict[str, CollectionResults]:
    return {one.name: one for one in results}


def _digests_of(
    database: Database, run_id: UUID, proven: Proven
) -> Mapping[str, tuple[str, str]] | None:
    if len(proven.verifications) > 1:
        return None  # what several passes have looked at overlaps, and so would their digests
    if proven.look is Look.ALL:
        return collection_digests(database, proven.verifications[-1])
    return synced_digests(database, run_id, proven.verifications[-1])


def _losses(planned: Sequence[Planned]) -> list[str]:
    return [f"{one.pair.source.name}: {loss}" for one in planned for loss in one.losses]


def _told_apart(proven: Proven, *, verified: bool) -> list[str]:
    notes = []
    mended = "synced again" if verified else "not all synced again"
    if proven.apart.changed:
        notes.append(
            f"{proven.apart.changed:,} records changed on the source meanwhile; they were {mended} "
            f"({len(proven.syncs)} passes)."
        )
    if proven.apart.lost:
        notes.append(
            f"{proven.apart.lost:,} records were not on the target as they had been left there; "
            f"they were {mended}. Does something else write to the target?"
        )
    return notes
