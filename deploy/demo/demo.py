"""The main job on real input, from nothing to a proven copy: `make demo`.

A collection of the standard library's docstrings goes from one Chroma server to another, by a
coordinator and three workers that share an embedded Postgres. One worker is killed in the middle.
Exit codes: 0 everything held, 1 something did not, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import platform
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from chromadb.api.models.Collection import Collection
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.demo.corpus import COLLECTION, Docstring, collect
from deploy.demo.embedding import DIMENSION, Embedder, Vectors
from deploy.demo.ledger import Held, Recovery
from deploy.demo.processes import Process, forget_settings, paused, survivors
from deploy.demo.proof import client, compare, neighbours
from deploy.demo.stage import PATIENCE_SECONDS, DemoFailed, Stage, open_stage, require
from deploy.demo.story import Story, from_program
from tasks.errors import ChromaSyncError
from tasks.settings import Settings

MIN_TEXTS = 5000
WORKERS = 3
CHUNK_SIZE = 100
KILL_AT = 0.2  # of the chunks
WRITE_BATCH = 500
QUESTION = "compress a file with gzip"
NEIGHBOURS = 5
PLURALS = {"method": "methods", "function": "functions", "class": "classes", "module": "modules"}
WIDE = 110  # characters of a line on which a neighbour's text has room


def play(story: Story, console: Console) -> None:
    """All steps. Raises `DemoFailed` where one does not hold."""
    with contextlib.ExitStack() as stack:
        texts = collect_texts(story)
        with story.step(f"Start Postgres, two Chroma servers and {WORKERS} workers") as step:
            stage = stack.enter_context(open_stage(console, workers=WORKERS))
            step.tell(f"source {stage.source}, target {stage.target}")
        question = fill_source(story, stage, texts)
        coordinator = start_sync(story, stage)
        started = stage.processes()
        victim, held = kill_one(story, stage, coordinator)
        recover(story, stage, coordinator, victim, held)
        show_report(story, stage, coordinator)
        compare_both(story, stage, len(texts))
        ask_both(story, stage, question, wide=console.width >= WIDE)
        with story.step("Stop everything") as step:
            stack.close()
            left = survivors(started)
            require(not left, f"Still there: {', '.join(map(str, left))}.")
            step.tell(f"all {len(started)} processes are gone, and so are their files")


def collect_texts(story: Story) -> list[Docstring]:
    with story.step("Collect the docstrings of Python's standard library") as step:
        texts = collect()
        kinds = Counter(text.kind for text in texts)
        counts = (f"{kinds[kind]:,} {name}" for kind, name in PLURALS.items())
        step.tell(f"{len(texts):,} of Python {platform.python_version()}: {', '.join(counts)}")
        require(len(texts) >= MIN_TEXTS, f"That is fewer than {MIN_TEXTS:,}.")
    return texts


def fill_source(story: Story, stage: Stage, texts: Sequence[Docstring]) -> Vectors:
    """Returns the embedded question."""
    with story.step(f"Embed them into the source's collection {COLLECTION}") as step:
        embedder = Embedder(text.passage for text in texts)
        vectors = embedder.embed(text.passage for text in texts)
        collection = client(stage.source).create_collection(
            COLLECTION,
            embedding_function=None,
            # A wide search, so that no neighbour depends on how the index happened to grow.
            configuration={"hnsw": {"space": "l2", "ef_search": 500}},
        )
        for start in range(0, len(texts), WRITE_BATCH):
            batch = texts[start : start + WRITE_BATCH]
            collection.add(
                ids=[text.id for text in batch],
                embeddings=vectors[start : start + WRITE_BATCH],
                documents=[text.text for text in batch],
                metadatas=[text.metadata for text in batch],
            )
            step.now(f"{start + len(batch):,} of {len(texts):,}")
        step.tell(f"{collection.count():,} records of {DIMENSION} dimensions")
    question: Vectors = embedder.embed([QUESTION])[0]
    return question


def start_sync(story: Story, stage: Stage) -> Process:
    """Returns the coordinator."""
    with story.step("Start a coordinator") as step:
        options = ("--workers", "0", "--chunk-size", str(CHUNK_SIZE))
        command = ("sync", stage.source, stage.target, *options)
        coordinator = stage.run(*command, log="coordinator")
        step.tell(f"[dim]$[/] chroma-sync {' '.join(command)}")

        def planned() -> int:
            return stage.ledger.progress()[1]

        step.tell(f"{stage.wait('a plan', planned, coordinator)} chunks planned")
    return coordinator


def kill_one(story: Story, stage: Stage, coordinator: Process) -> tuple[str, Held]:
    """Returns the dead worker's name, and what it held in its last moment."""
    with story.step("Kill a worker (SIGKILL) in the middle of its work") as step:

        def a_fifth_done() -> tuple[int, int] | None:
            done, planned = stage.ledger.progress()
            step.now(f"{done} of {planned} chunks are done")
            return (done, planned) if done >= KILL_AT * planned else None

        done, planned = stage.wait("a fifth of the chunks", a_fifth_done, coordinator)
        victim, held = stage.wait("a worker at work", lambda: _kill_at_work(stage), coordinator)
        chunks = " and ".join(f"[{start}, {end})" for start, end in held.slices)
        step.tell(
            f"{stage.name(victim)} (pid {stage.workers[victim].pid}) died "
            f"when {done} of {planned} chunks were done, at work on {escape(chunks)}"
        )
    return victim, held


def _kill_at_work(stage: Stage) -> tuple[str, Held] | None:
    """Kill the busiest worker, unless it is between two chunks at this moment."""
    victim = stage.ledger.busiest()
    if victim is None:
        return None
    process = stage.workers[victim]
    # Paused, it cannot finish its chunk between our look at the ledger and its end.
    with paused(process):
        if stage.ledger.held(victim) is None:
            return None
        process.kill()
    process.wait()
    # Once more, because a commit may have been on its way to Postgres.
    held = stage.ledger.held(victim)
    require(held is not None, "The worker finished its chunk in the moment in which it died.")
    assert held is not None
    return victim, held


def recover(story: Story, stage: Stage, coordinator: Process, victim: str, held: Held) -> None:
    with story.step("See the other workers complete what it left") as step:

        def recovered() -> Recovery | None:
            step.now("{} of {} chunks are done".format(*stage.ledger.progress()))
            return stage.ledger.recovery(held)

        recovery = stage.wait("the dead worker's chunks", recovered, coordinator)
        require(
            victim not in recovery.worker_ids,
            "The ledger says that the dead worker completed what it was at work on.",
        )
        lease = Settings().sync_lease_seconds
        step.tell(
            f"{' and '.join(map(stage.name, recovery.worker_ids))} did, {recovery.seconds:.1f} s "
            f"after its death, of which up to {lease:g} s are the lease that it still had",
            f"records of its chunks: {recovery.unchanged} written before it died and found alike, "
            f"{recovery.added} written now",
        )


def show_report(story: Story, stage: Stage, coordinator: Process) -> None:
    with story.step("Wait for the verification; the coordinator reports") as step:
        output, _ = coordinator.communicate(timeout=PATIENCE_SECONDS)
        step.tell(from_program(output))
        completed = stage.ledger.completed()
        counts = (f"{completed.get(one, 0)} by {stage.name(one)}" for one in stage.workers)
        step.tell(f"chunks completed: {', '.join(counts)}")
        code = coordinator.returncode
        require(code == 0, f"The coordinator ended with code {code}.")


def compare_both(story: Story, stage: Stage, expected: int) -> None:
    with story.step("Compare both servers with Chroma's own client") as step:
        comparison = compare(*_collections(stage))
        unlike = len(comparison.unlike)
        step.tell(f"{comparison.alike:,} records alike, vectors bit by bit; {unlike:,} not")
        step.tell(*(escape(f"! {id_}") for id_ in comparison.unlike[:10]))
        require(not unlike and comparison.alike == expected, "The two servers differ.")


def ask_both(story: Story, stage: Stage, question: Vectors, *, wide: bool) -> None:
    with story.step(f"Ask both: {QUESTION}") as step:
        left, right = (neighbours(side, question, NEIGHBOURS) for side in _collections(stage))
        table = Table(box=None, pad_edge=False)
        for side in ("source", "target"):
            table.add_column(side, no_wrap=True)
            table.add_column("", justify="right")
        if wide:
            table.add_column("text", style="dim", no_wrap=True)
        for one, other in zip(left, right, strict=True):
            text = [escape(one.text.partition("\n")[0])] if wide else []
            found = (f"{one.similarity:.3f}", other.id, f"{other.similarity:.3f}")
            table.add_row(one.id, *found, *text)
        step.tell(table)
        require(left == right, "The answers differ.")


def _collections(stage: Stage) -> tuple[Collection, Collection]:
    source, target = (
        client(url).get_collection(COLLECTION, embedding_function=None)
        for url in (stage.source, stage.target)
    )
    return source, target


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # Once is enough: a second Ctrl-C must not cut the stopping short.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> NoReturn:
    """Play the demo, and exit with its code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    forget_settings()
    console = Console(highlight=False)
    story = Story(console)
    try:
        play(story, console)
    except KeyboardInterrupt:
        story.end("[yellow]Interrupted.[/] Everything is stopped.")
        sys.exit(130)
    except (DemoFailed, ChromaSyncError) as failure:
        story.end(f"[red]Failed.[/] {escape(str(failure))}")
        sys.exit(1)
    story.end("[green]Everything held.[/]")
    sys.exit(0)


if __name__ == "__main__":
    main()
