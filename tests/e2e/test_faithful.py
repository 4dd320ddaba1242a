"""What a copy keeps, what it may delete, and what a report says of it. Checked with chromadb."""

from __future__ import annotations

import json
import threading
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from tests.chaos.faulty_proxy import Fault, Request, faulty_proxy
from tests.e2e.conftest import Ask, Program, Side, embedding_of, everything, fill
from tests.eventually import eventually

Sides = tuple[Side, Side]


def vectors(*rows: list[float]) -> Any:
    return [np.asarray(row, dtype=np.float32) for row in rows]


def counts(report: dict[str, Any], name: str = "docs") -> dict[str, Any]:
    (row,) = [row for row in report["collections"] if row["name"] == name]
    assert isinstance(row, dict)
    return row


def names(side: Side) -> list[str]:
    return sorted(collection.name for collection in side.client.list_collections())


# What may be deleted -----------------------------------------------------------------------------


def test_a_copy_deletes_nothing(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    assert program("sync", source.url, target.url).code == 0
    source.client.get_collection("docs", embedding_function=None).delete(ids=["id-1", "id-2"])
    source.client.get_collection("docs", embedding_function=None).add(
        ids=["new"], embeddings=vectors([1.0] * 16)
    )
    copied = program("copy", source.url, target.url, "--json")
    assert copied.code == 0, copied.err
    report = copied.document
    assert (report["kind"], report["verified"]) == ("copy", True)
    row = counts(report)
    assert (row["added"], row["deleted"], row["extra"]) == (1, 0, 0)
    there = everything(target.client, "docs")
    assert {"id-1", "id-2", "new"} <= there.keys()
    assert program("verify", source.url, target.url).code == 1
    assert program("verify", source.url, target.url, "--one-way").code == 0


def test_no_more_is_deleted_than_was_allowed(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    assert program("sync", source.url, target.url).code == 0
    rows = [f"id-{row}" for row in range(200)]
    source.client.get_collection("docs", embedding_function=None).delete(ids=rows)
    refused = program("sync", source.url, target.url)
    assert refused.code == 2
    assert "200 of the target's 300 records" in refused.error_line
    assert target.client.get_collection("docs", embedding_function=None).count() == 300
    dry = program("sync", source.url, target.url, "--dry-run")
    assert dry.code == 0
    assert "It would be refused" in dry.out
    for limit in ("199", "66%"):
        assert program("sync", source.url, target.url, "--max-delete", limit).code == 2
    done = program("sync", source.url, target.url, "--max-delete", "200", "--json")
    assert (done.code, counts(done.document)["deleted"]) == (0, 200)
    assert everything(source.client, "docs") == everything(target.client, "docs")


def test_what_goes_from_the_source_during_a_run_counts_too(
    program: Program, sides: Sides, ask: Ask
) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    assert program("sync", source.url, target.url).code == 0
    command = ("sync", source.url, target.url, "--workers", "0", "--json")
    with program.start(*command) as waiting:
        eventually(lambda: ask("SELECT 1 FROM sync_tasks WHERE task_status = 'pending'"))
        emptied = source.client.get_collection("docs", embedding_function=None)
        emptied.delete(ids=[f"id-{row}" for row in range(200)])
        worker = program.start("worker")
        out, err = waiting.communicate(timeout=60)
        worker.terminate()
        worker.communicate(timeout=10)
    assert waiting.returncode == 1, err
    report = json.loads(out)
    assert counts(report)["extra"] == 200
    assert any("--max-delete" in note for note in report["notes"])
    assert (report["caught_up"], report["status"]) == (False, "failed")
    assert target.client.get_collection("docs", embedding_function=None).count() == 300


def test_a_dry_run_says_what_a_sync_does_next(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    fill(source.client, "other", 20)
    dry = program("sync", source.url, target.url, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert names(target) == []
    assert dry.document["notes"] == [
        "docs: the collection would be made.",
        "other: the collection would be made.",
    ]
    assert program("sync", source.url, target.url).code == 0
    changed = target.client.get_collection("docs", embedding_function=None)
    changed.delete(ids=["id-1"])
    changed.add(ids=["x", "y"], embeddings=vectors([1.0] * 16, [2.0] * 16))
    same = embedding_of(target.client, "docs", "id-2")
    changed.update(ids=["id-2"], documents=["changed"], embeddings=same)
    before = everything(target.client, "docs")
    dry = program("sync", source.url, target.url, "--dry-run")
    assert dry.code == 0
    assert "'id-2' would be updated (document)" in dry.out
    assert "'x' would be deleted" in dry.out
    assert everything(target.client, "docs") == before
    found = counts(program("sync", source.url, target.url, "--dry-run", "--json").document)
    done = counts(program("sync", source.url, target.url, "--json").document)
    assert [found[name] for name in ("missing", "differing", "extra")] == [1, 1, 2]
    assert [done[name] for name in ("added", "updated", "deleted")] == [1, 1, 2]


# Which collections -------------------------------------------------------------------------------


def test_collections_are_chosen_and_renamed(program: Program, sides: Sides) -> None:
    source, target = sides
    for name in ("docs-a", "docs-b", "notes"):
        fill(source.client, name, 20)
    chosen = ("--include", "docs-*", "--exclude", "*-b", "--map", "docs-a=copied")
    done = program("sync", source.url, target.url, *chosen, "--json")
    assert done.code == 0, done.err
    assert names(target) == ["copied"]
    assert counts(done.document, "docs-a")["target_name"] == "copied"
    assert everything(source.client, "docs-a") == everything(target.client, "copied")
    assert program("verify", source.url, target.url, *chosen).code == 0
    again = program("sync", source.url, target.url, *chosen, "--json")
    assert counts(again.document, "docs-a")["unchanged"] == 20
    both = program("sync", source.url, target.url, "--map", "docs-a=notes")
    assert "Both 'docs-a' and 'notes'" in both.error_line
    assert "'none' is not among" in program("sync", source.url, target.url, "--map", "none=x").err
    assert names(target) == ["copied"]


def test_a_database_is_made_when_asked_to(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 20)
    url = target.url + "x&tenant=tenant-" + target.url[-8:]
    assert "--create-database" in program("sync", source.url, url).error_line
    assert program("sync", source.url, url, "--create-database").code == 0
    assert program("verify", source.url, url).code == 0


def test_collection_metadata_follows(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 20)
    assert program("sync", source.url, target.url).code == 0
    source.client.get_collection("docs", embedding_function=None).modify(
        metadata={"owner": "others", "since": 2}
    )
    assert program("sync", source.url, target.url).code == 0
    copied = target.client.get_collection("docs", embedding_function=None)
    assert copied.metadata == {"owner": "others", "since": 2}


def test_a_target_that_cannot_hold_a_definition_says_so(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 20)  # ef_construction 77
    target.client.create_collection("docs", embedding_function=None)
    done = program("sync", source.url, target.url, "--json")
    assert done.code == 0
    assert any("ef_construction" in note and "77" in note for note in done.document["notes"])


def test_a_collection_that_was_made_again_is_another(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    assert program("sync", source.url, target.url).code == 0
    source.client.delete_collection("docs")
    fill(source.client, "docs", 200)
    assert program("sync", source.url, target.url).code == 0
    assert everything(source.client, "docs") == everything(target.client, "docs")


# A source that changes meanwhile ------------------------------------------------------------------


def test_what_changes_during_a_run_is_synced_again(
    program: Program, sides: Sides, ask: Ask, database_url: str
) -> None:
    source, target = sides
    fill(source.client, "docs", 200)
    command = ("sync", source.url, target.url, "--workers", "0", "--chunk-size", "100", "--json")
    with psycopg.connect(database_url) as holding, program.start(*command) as waiting:
        eventually(lambda: ask("SELECT 1 FROM sync_tasks"))
        # The second chunk cannot be claimed until we say so.
        holding.execute("SELECT FROM sync_tasks WHERE chunk_start_offset = 100 FOR UPDATE")
        worker = program.start("worker")
        eventually(lambda: ask("SELECT 1 FROM sync_tasks WHERE task_status = 'completed'"))
        changed = source.client.get_collection("docs", embedding_function=None)
        changed.add(ids=["new-1", "new-2"], embeddings=vectors([1.0] * 16, [2.0] * 16))
        changed.delete(ids=["id-5"])
        same = embedding_of(source.client, "docs", "id-6")
        changed.update(ids=["id-6"], documents=["changed meanwhile"], embeddings=same)
        # And one that was copied goes from the target: that is a loss, whoever did it.
        target.client.get_collection("docs", embedding_function=None).delete(ids=["id-7"])
        holding.rollback()
        out, err = waiting.communicate(timeout=60)
        worker.terminate()
        worker.communicate(timeout=10)
    assert waiting.returncode == 0, err + out
    report = json.loads(out)
    assert (report["passes"], report["changed_meanwhile"], report["lost"]) == (2, 4, 1)
    row = counts(report)
    assert (row["added"], row["updated"], row["deleted"]) == (203, 1, 1)
    assert everything(source.client, "docs") == everything(target.client, "docs")


def test_a_source_that_never_rests_is_not_called_alike(program: Program, sides: Sides) -> None:
    source, target = sides
    collection = fill(source.client, "docs", 200)
    over = threading.Event()

    def go_on_writing() -> None:
        number = 0
        while not over.is_set():
            collection.add(ids=[f"new-{number}"], embeddings=vectors([float(number)] * 16))
            number += 1

    writer = threading.Thread(target=go_on_writing)
    writer.start()
    try:
        restless = program("sync", source.url, target.url, "--max-passes", "2", "--json")
    finally:
        over.set()
        writer.join()
    assert restless.code == 1, restless.err
    report = restless.document
    assert (report["verified"], report["passes"], report["lost"]) == (False, 2, 0)
    assert report["changed_meanwhile"] > 0
    assert (report["caught_up"], report["status"]) == (True, "completed")
    assert program("sync", source.url, target.url).code == 0
    assert everything(source.client, "docs") == everything(target.client, "docs")


# Publishing ---------------------------------------------------------------------------------------


def test_readers_never_see_half_of_what_is_published(
    program: Program, sides: Sides, ask: Ask
) -> None:
    source, target = sides
    fill(source.client, "docs", 200)
    assert program("sync", source.url, target.url).code == 0
    old = everything(target.client, "docs")
    source.client.delete_collection("docs")
    fill(source.client, "docs", 500, space="cosine")  # which the old one could not become
    assert "--atomic" in program("sync", source.url, target.url).error_line
    command = ("sync", source.url, target.url, "--atomic", "--workers", "0", "--chunk-size", "100")
    with program.start(*command, "--json") as waiting:
        eventually(lambda: ask("SELECT 1 FROM sync_tasks WHERE task_status = 'pending'"))
        worker = program.start("worker")
        eventually(
            lambda: ask(
                "SELECT 1 FROM sync_results r JOIN sync_runs s ON s.id = r.run_id"
                " WHERE s.options ->> 'atomic' = 'true'"
            )
        )
        assert everything(target.client, "docs") == old
        out, err = waiting.communicate(timeout=60)
        worker.terminate()
        worker.communicate(timeout=10)
    assert waiting.returncode == 0, err + out
    assert names(target) == ["docs"]
    there = target.client.get_collection("docs", embedding_function=None)
    assert there.count() == 500
    assert there.configuration_json["hnsw"]["space"] == "cosine"
    assert program("verify", source.url, target.url).code == 0


def test_what_cannot_be_verified_is_not_published(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 100)
    assert program("sync", source.url, target.url).code == 0
    old = everything(target.client, "docs")
    with faulty_proxy(source.url.partition("?")[0]) as proxy:
        proxy.rule = lambda request: (
            Fault(status=400, body=b'{"error":"no"}')
            if request.verb == "get" and b'"id-7"' in request.body
            else None
        )
        url = source.url.replace(proxy.upstream, proxy.url)
        assert program("sync", url, target.url, "--atomic").code == 1
    assert names(target) == ["docs"]
    assert everything(target.client, "docs") == old


# verify and repair --------------------------------------------------------------------------------


def damage(target: Side) -> None:
    damaged = target.client.get_collection("docs", embedding_function=None)
    damaged.delete(ids=["id-1", "id-2"])
    same = embedding_of(target.client, "docs", "id-20")
    damaged.update(ids=["id-20"], documents=["changed"], embeddings=same)
    damaged.add(ids=["odd\tid\n"], embeddings=vectors([1.0] * 16))


def test_a_line_for_each_record(program: Program, sides: Sides, tmp_path: Path) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    assert program("sync", source.url, target.url).code == 0
    damage(target)
    file = tmp_path / "combined.txt"
    found = program("verify", source.url, target.url, "--combined", str(file))
    assert found.code == 1
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    assert len(lines) == 301
    assert {(sign, id_, detail) for sign, _, id_, detail in lines if sign != "="} == {
        ("-", "id-1", ""),
        ("-", "id-2", ""),
        ("*", "id-20", "document"),
        ("+", "odd\\tid\\n", ""),
    }
    nowhere = program("verify", source.url, target.url, "--combined", str(tmp_path / "no" / "file"))
    assert "there is no directory" in nowhere.error_line


def test_a_sample_is_a_share(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 3000)
    assert program("sync", source.url, target.url).code == 0
    sampled = program("verify", source.url, target.url, "--sample", "10%", "--json")
    assert sampled.code == 0, sampled.err
    assert 150 < counts(sampled.document)["unchanged"] < 450
    for wrong in ("0%", "101%", "ten"):
        assert program("verify", source.url, target.url, "--sample", wrong).code == 2


def test_repair_syncs_what_was_found_and_nothing_else(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    assert program("sync", source.url, target.url).code == 0
    damage(target)
    found = program("verify", source.url, target.url, "--json").document
    # Since then; not the business of a repair of what was found.
    target.client.get_collection("docs", embedding_function=None).delete(ids=["id-100"])
    repaired = program("repair", found["run_id"], "--json")
    assert repaired.code == 0, repaired.err
    row = counts(repaired.document)
    assert (row["added"], row["updated"], row["deleted"]) == (2, 1, 1)
    assert everything(source.client, "docs").keys() - everything(target.client, "docs").keys() == {
        "id-100"
    }
    nothing = program("repair", found["run_id"])
    assert "nothing to repair" in nothing.error_line

    all_of_it = program("repair", source.url, target.url, "--json")
    assert all_of_it.code == 0, all_of_it.err
    row = counts(all_of_it.document)
    assert (row["added"], row["updated"], row["deleted"]) == (1, 0, 0)
    assert everything(source.client, "docs") == everything(target.client, "docs")


def test_digests_of_both_sides_add_up(program: Program, sides: Sides, ask: Ask) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    synced = program("sync", source.url, target.url, "--chunk-size", "70", "--json").document
    again = program("sync", source.url, target.url, "--chunk-size", "90", "--json").document
    proof = program("verify", source.url, target.url, "--chunk-size", "50", "--json").document
    digests = {
        digest
        for report in (synced, again, proof)
        for digest in (counts(report)["source_digest"], counts(report)["target_digest"])
    }
    assert len(digests) == 1
    # As an operator would add them up.
    chunks = ask(
        "SELECT source_digest FROM sync_results WHERE run_id ="
        " (SELECT id FROM sync_runs ORDER BY created_at DESC LIMIT 1)"
    )
    assert (len(chunks), proof["chunks"]["planned"]) == (6, 6)
    total = sum(int(source_digest, 16) for (source_digest,) in chunks) % 2**128
    assert {f"{total:032x}"} == digests
    damage(target)
    row = counts(program("verify", source.url, target.url, "--json").document)
    assert {row["source_digest"]} == digests != {row["target_digest"]}


def test_a_record_that_cannot_be_read_is_named_alone(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    with faulty_proxy(source.url.partition("?")[0]) as proxy:
        proxy.rule = lambda request: (
            Fault(status=500, body=b'{"error":"no vector"}')
            if request.verb == "get" and b'"id-7"' in request.body
            else None
        )
        url = source.url.replace(proxy.upstream, proxy.url)
        synced = program("sync", url, target.url, "--json", SYNC_RETRY_BACKOFF="0.1")
        assert synced.code == 1, synced.err
        (failure, *_) = synced.document["failures"]
        assert [one["id"] for one in failure["refused"]] == ["id-7"]
        assert counts(synced.document)["added"] == 0  # its chunk has no result
        there = everything(target.client, "docs")
        assert everything(source.client, "docs").keys() - there.keys() == {"id-7"}
        found = program("verify", url, target.url, "--json", SYNC_RETRY_BACKOFF="0.1")
    assert found.code == 1
    row = counts(found.document)
    assert (row["unreadable"], row["unchanged"]) == (1, 299)
    (finding,) = found.document["findings"]
    assert (finding["sign"], finding["id"]) == ("!", "id-7")
    repaired = program("repair", source.url, target.url, "--json")
    assert (repaired.code, counts(repaired.document)["added"]) == (0, 1)


def nothing_found(query: Request) -> Fault:
    """The answer of an index that is empty."""
    asked = json.loads(query.body)["query_embeddings"]
    return Fault(status=200, body=json.dumps({"ids": [[] for _ in asked]}).encode())


def test_an_index_that_finds_less_is_a_finding(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    whole = program("sync", source.url, target.url, "--json").document
    (check,) = whole["indexes"]
    assert (check["sampled"], check["worse"]) == (100, False)
    assert check["source_recall"] > 0.9
    with faulty_proxy(target.url.partition("?")[0]) as proxy:

        def finds_nothing(request: Request) -> Fault | None:
            return nothing_found(request) if request.verb == "query" else None

        proxy.rule = finds_nothing
        url = target.url.replace(proxy.upstream, proxy.url)
        blind = program("verify", source.url, url, "--json")
        assert blind.code == 1
        (check,) = blind.document["indexes"]
        assert (check["target_recall"], check["worse"]) == (0.0, True)
        assert blind.document["findings"] == []
        assert program("verify", source.url, url, "--index-sample", "0").code == 0


def test_what_a_small_sample_lacks_by_chance_is_no_finding(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 300)
    assert program("sync", source.url, target.url).code == 0
    with faulty_proxy(target.url.partition("?")[0]) as proxy:
        queries = count()

        def finds_nothing_at_first(request: Request) -> Fault | None:
            is_first = request.verb == "query" and next(queries) == 0
            return nothing_found(request) if is_first else None

        proxy.rule = finds_nothing_at_first
        url = target.url.replace(proxy.upstream, proxy.url)
        verified = program("verify", source.url, url, "--json")
    (check,) = verified.document["indexes"]
    assert (check["sampled"], check["worse"]) == (300, False)
    assert check["target_recall"] > 0.9
    assert verified.code == 0


def test_indexes_are_compared_by_what_both_sides_hold(program: Program, sides: Sides) -> None:
    source, target = sides
    fill(source.client, "docs", 60)
    assert program("sync", source.url, target.url).code == 0
    target.client.get_collection("docs", embedding_function=None).delete(
        ids=[f"id-{number}" for number in range(20)]
    )
    lacking = program("verify", source.url, target.url, "--json")
    assert lacking.code == 1
    (check,) = lacking.document["indexes"]
    assert (check["sampled"], check["worse"]) == (40, False)
    assert check["source_recall"] == check["target_recall"] == 1.0
