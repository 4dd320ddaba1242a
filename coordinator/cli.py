"""The command line.

Exit codes: 0 done and verified, 1 not verified (or something failed), 2 could not be done,
130 interrupted. Reports go to standard output; progress, logs and errors to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from importlib.metadata import version
from types import FrameType
from typing import Annotated, NoReturn

import orjson
import typer
from rich.console import Console
from typer.exceptions import TyperException

from coordinator import status as status_of
from coordinator.progress import ProgressDisplay
from coordinator.report import Report
from coordinator.schedule import run_on_schedule
from coordinator.selftest import selftest as run_selftest
from coordinator.session import open_database, open_settings
from coordinator.sync import Coordinator, Options
from tasks.errors import ChromaSyncError, InvalidInput
from tasks.schema import migrate as apply_migrations
from tasks.settings import Settings
from tasks.worker import DEFAULT_QUEUE, Worker

NOT_VERIFIED = 1
NOT_DONE = 2
INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Replicate Chroma collections from a source to a target, and prove that the two agree.",
)

SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="http://host:port, or a Chroma data directory.")
]
TargetArgument = Annotated[
    str, typer.Argument(metavar="TARGET", help="The same, of the store to be made equal.")
]
CollectionOption = Annotated[
    list[str] | None,
    typer.Option("--collection", help="Only this collection; may be given again. Default: all."),
]
ChunkSizeOption = Annotated[
    int | None,
    typer.Option("--chunk-size", min=1, help="Records in a chunk. Default: SYNC_CHUNK_SIZE, 1000."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Local worker processes; 0: only enqueue, workers run elsewhere. "
        "Default: work in this process.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output.")
]


@app.command()
def sync(
    source: SourceArgument,
    target: TargetArgument,
    collection: CollectionOption = None,
    chunk_size: ChunkSizeOption = None,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> int:
    """Make the target's collections equal to the source's, deletions included, and prove it."""
    settings = open_settings()
    options = _options(settings, collection, chunk_size, workers)
    with open_database(settings) as database, _display() as display:
        coordinator = Coordinator(settings, database, source, target, display=display)
        with coordinator.lead():
            report = coordinator.sync(options)
    return _conclude(report, json)


@app.command()
def verify(
    source: SourceArgument,
    target: TargetArgument,
    collection: CollectionOption = None,
    chunk_size: ChunkSizeOption = None,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> int:
    """Read both stores and compare every record; write nothing. Exit 0: alike; 1: they differ."""
    settings = open_settings()
    options = _options(settings, collection, chunk_size, workers)
    with open_database(settings) as database, _display() as display:
        coordinator = Coordinator(settings, database, source, target, display=display)
        report = coordinator.verify(options)
    return _conclude(report, json)


@app.command()
def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's id, or how it begins.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Show the latest runs, or one run with its chunks, workers and failures."""
    settings = open_settings()
    with open_database(settings) as database:
        if run is None:
            listed = status_of.recent_runs(database)
            _print_json(listed) if json else status_of.print_runs(_stdout(), listed)
        else:
            details = status_of.run_details(database, run)
            _print_json(details) if json else status_of.print_run(_stdout(), details)
    return 0


@app.command()
def retry(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or how it begins.")],
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> int:
    """Try the failed chunks of a run again, then prove the result."""
    settings = open_settings()
    with open_database(settings) as database, _display() as display:
        found = status_of.find_run(database, run)
        options = Options(
            collections=found.options.get("collections", ()),
            chunk_size=found.options.get("chunk_size", settings.sync_chunk_size),
            workers=workers,
        )
        coordinator = Coordinator(
            settings, database, found.source_url, found.target_url, display=display
        )
        with coordinator.lead():
            report = coordinator.retry(found.run_id, options)
    return _conclude(report, json)


@app.command()
def migrate() -> int:
    """Bring the schema in Postgres up to date. Every other command does it by itself as well."""
    settings = open_settings()
    with open_database(settings, migrated=False) as database:
        applied = apply_migrations(database)
    for migration in applied:
        typer.echo(f"applied {migration.version:04}_{migration.name}")
    if not applied:
        typer.echo("the schema is up to date")
    return 0


@app.command()
def selftest() -> int:
    """Sync 1,000 records between two servers of its own with 3 workers, and verify them."""
    settings = open_settings()
    with open_database(settings) as database, _display() as display:
        passed = run_selftest(settings, database, display=display, console=_stdout())
    return 0 if passed else NOT_VERIFIED


@app.command()
def worker(
    queue: Annotated[str, typer.Option(help="The queue to work on.")] = DEFAULT_QUEUE,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
) -> int:
    """Work on the chunks of any run until SIGTERM or Ctrl-C."""
    settings = open_settings()
    stop = _stop_on_signals()
    with open_database(settings) as database:
        process = Worker(settings, database, queue_name=queue)
        process.start()
        if until_stdin_closes:
            threading.Thread(target=_wait_for_end_of_stdin, args=[stop], daemon=True).start()
        # With a timeout: a signal that reached the process while it was paused may be taken by any
        # of its threads, and the main thread, which alone runs handlers, must wake to find it.
        while not stop.wait(1):
            pass
        process.stop()
    return 0


@app.command()
def coordinator() -> int:
    """Sync SYNC_SOURCE_URL to SYNC_TARGET_URL every SYNC_INTERVAL seconds until SIGTERM."""
    settings = open_settings()
    if not (settings.sync_source_url and settings.sync_target_url):
        raise InvalidInput("Set SYNC_SOURCE_URL and SYNC_TARGET_URL to the two stores' addresses.")
    with open_database(settings) as database, _display() as display:
        run_on_schedule(
            settings,
            database,
            settings.sync_source_url,
            settings.sync_target_url,
            display=display,
            console=_stdout(),
        )
    return 0


def _options(
    settings: Settings, collections: list[str] | None, chunk_size: int | None, workers: int | None
) -> Options:
    return Options(
        collections=collections or (),
        chunk_size=chunk_size or settings.sync_chunk_size,
        workers=workers,
    )


def _conclude(report: Report, json: bool) -> int:
    if json:
        _print_json(report.document())
    else:
        report.print(_stdout())
    return 0 if report.verified else NOT_VERIFIED


def _stdout() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a pipe has no width; lines are not to be broken there
    return console


def _display() -> ProgressDisplay:
    return ProgressDisplay(Console(stderr=True, highlight=False))


def _print_json(document: object) -> None:
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2, default=str).decode())
    sys.stdout.write("\n")


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


def _wait_for_end_of_stdin(stop: threading.Event) -> None:
    # Not through sys.stdin: its lock, held by a daemon thread, aborts the interpreter's exit.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> NoReturn:
    """Run the command that the arguments name, and exit with its code."""
    signal.signal(signal.SIGTERM, _interrupt)
    if sys.argv[1:] == ["--version"]:
        typer.echo(f"chroma-sync {version('chroma-sync')}")
        sys.exit(0)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        code = typer.main.get_command(app).main(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except TyperException as error:
        message = error.format_message()
        hint = " See `chroma-sync --help`." if message else ""
        errors.print("[red]error:[/] ", end="")
        errors.print(f"{message}{hint}", markup=False)
        code = NOT_DONE
    except ChromaSyncError as error:
        errors.print("[red]error:[/] ", end="")
        errors.print(str(error), markup=False)
        code = NOT_DONE
    if code == INTERRUPTED:
        errors.print("Interrupted. The same command goes on from here.")
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
