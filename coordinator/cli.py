"""The command line.

Exit codes: 0 done and verified, 1 not verified (or something failed), 2 could not be done,
130 interrupted. Reports go to standard output; progress, logs and errors to standard error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn
from uuid import UUID

import orjson
import typer
from rich.console import Console
from typer.exceptions import TyperException

from coordinator import control, pair_state
from coordinator import status as status_of
from coordinator.doctor import Verdict, examine, print_diagnosis
from coordinator.local_workers import LocalWorkers
from coordinator.options import (
    INDEX_SAMPLE,
    MAX_PASSES,
    DeletionLimit,
    Options,
    Selection,
    parse_renames,
    parse_share,
)
from coordinator.pair_state import PairAction
from coordinator.progress import ProgressDisplay
from coordinator.report import Report
from coordinator.selftest import WORKERS as SELFTEST_WORKERS
from coordinator.selftest import selftest as run_selftest
from coordinator.service import Role, check_role, role_of, serve
from coordinator.session import open_database, open_settings
from coordinator.sync import Coordinator
from tasks.database import Database
from tasks.errors import ChromaSyncError, InvalidInput
from tasks.schema import migrate as apply_migrations
from tasks.settings import Settings, parse_chunk_size
from tasks.stores.address import parse_address
from tasks.throttle import Limits, read_limits, set_limits
from tasks.worker import DEFAULT_QUEUE

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
IncludeOption = Annotated[
    list[str] | None,
    typer.Option("--include", help="Also collections that match this pattern, such as 'docs-*'."),
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option("--exclude", help="Not collections that match this pattern.")
]
MapOption = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="OLD=NEW", help="Another name for a collection on the target."),
]
ChunkSizeOption = Annotated[
    str | None,
    typer.Option(
        "--chunk-size",
        metavar="N|auto",
        help="Records in a chunk, or `auto`. Default: SYNC_CHUNK_SIZE.",
    ),
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
MaxDeleteOption = Annotated[
    str,
    typer.Option(
        "--max-delete",
        metavar="N|P%",
        help="Delete no more than so many records of a collection, or such a share of it.",
    ),
]
MaxPassesOption = Annotated[
    int,
    typer.Option(
        "--max-passes", min=1, help="How often to go again over what changes on the source."
    ),
]
IndexSampleOption = Annotated[
    int,
    typer.Option(
        "--index-sample",
        min=0,
        help="Records of each collection that the indexes of both sides are asked for; 0: none.",
    ),
]
CreateDatabaseOption = Annotated[
    bool,
    typer.Option("--create-database", help="Make the target's tenant and database if missing."),
]
AtomicOption = Annotated[
    bool,
    typer.Option(
        "--atomic",
        help="Fill and verify a new collection, then put it in the old one's place by a rename.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output.")
]


RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or how it begins.")]


@app.command()
def sync(
    source: SourceArgument,
    target: TargetArgument,
    collection: CollectionOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    map_: MapOption = None,
    dry_run: DryRunOption = False,
    max_delete: MaxDeleteOption = "50%",
    max_passes: MaxPassesOption = MAX_PASSES,
    atomic: AtomicOption = False,
    create_database: CreateDatabaseOption = False,
    chunk_size: ChunkSizeOption = None,
    workers: WorkersOption = None,
    index_sample: IndexSampleOption = INDEX_SAMPLE,
    json: JsonOption = False,
) -> int:
    """Make the target's collections equal to the source's, deletions included, and prove it."""
    settings = open_settings()
    options = Options(
        selection=_selection(collection, include, exclude, map_),
        chunk_size=_chunk_size(settings, chunk_size),
        workers=workers,
        max_delete=DeletionLimit(text=max_delete),
        max_passes=max_passes,
        atomic=atomic,
        create_database=create_database,
        index_sample=index_sample,
    )
    return _write(settings, source, target, options, dry_run=dry_run, json=json)


@app.command()
def copy(
    source: SourceArgument,
    target: TargetArgument,
    collection: CollectionOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    map_: MapOption = None,
    dry_run: DryRunOption = False,
    max_passes: MaxPassesOption = MAX_PASSES,
    create_database: CreateDatabaseOption = False,
    chunk_size: ChunkSizeOption = None,
    workers: WorkersOption = None,
    index_sample: IndexSampleOption = INDEX_SAMPLE,
    json: JsonOption = False,
) -> int:
    """Add and update what the source has, delete nothing, and prove it."""
    settings = open_settings()
    options = Options(
        selection=_selection(collection, include, exclude, map_),
        chunk_size=_chunk_size(settings, chunk_size),
        workers=workers,
        one_way=True,
        max_passes=max_passes,
        create_database=create_database,
        index_sample=index_sample,
    )
    return _write(settings, source, target, options, dry_run=dry_run, json=json)


@app.command()
def verify(
    source: SourceArgument,
    target: TargetArgument,
    collection: CollectionOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    map_: MapOption = None,
    one_way: Annotated[
        bool, typer.Option("--one-way", help="What only the target has is no difference.")
    ] = False,
    sample: Annotated[
        str, typer.Option("--sample", metavar="P%", help="Compare a share of the records.")
    ] = "100%",
    combined: Annotated[
        Path | None,
        typer.Option("--combined", metavar="FILE", help="Write a line about each record."),
    ] = None,
    chunk_size: ChunkSizeOption = None,
    workers: WorkersOption = None,
    index_sample: IndexSampleOption = INDEX_SAMPLE,
    json: JsonOption = False,
) -> int:
    """Read both stores and compare every record; write nothing. Exit 0: alike; 1: they differ."""
    settings = open_settings()
    options = Options(
        selection=_selection(collection, include, exclude, map_),
        chunk_size=_chunk_size(settings, chunk_size),
        workers=workers,
        one_way=one_way,
        sample=parse_share(sample),
        index_sample=index_sample,
    )
    if combined is not None and not combined.absolute().parent.is_dir():
        raise InvalidInput(f"--combined {combined}: there is no directory for it.")
    with _coordinators(settings, options.workers) as (_, coordinator):
        report = coordinator(source, target).verify(options, combined=combined)
    return _conclude(report, json)


@app.command()
def repair(
    source: Annotated[
        str, typer.Argument(metavar="RUN|SOURCE", help="A run's id, or a store's address.")
    ],
    target: Annotated[
        str | None, typer.Argument(metavar="[TARGET]", help="The target; not with a run.")
    ] = None,
    collection: CollectionOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    map_: MapOption = None,
    max_delete: MaxDeleteOption = "50%",
    max_passes: MaxPassesOption = MAX_PASSES,
    chunk_size: ChunkSizeOption = None,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> int:
    """Sync just what a run found to differ; or, given two stores, what they differ in now."""
    settings = open_settings()
    options = Options(
        selection=_selection(collection, include, exclude, map_),
        chunk_size=_chunk_size(settings, chunk_size),
        workers=workers,
        max_delete=DeletionLimit(text=max_delete),
        max_passes=max_passes,
    )
    with _coordinators(settings, options.workers) as (database, coordinator):
        if target is not None:
            both = coordinator(source, target)
            with both.lead():
                report = both.repair(options)
        else:
            found = status_of.find_run(database, source)
            both = coordinator(found.source_url, found.target_url)
            with both.lead():
                report = both.repair_findings(found.run_id, replace(options, one_way=found.one_way))
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
    run: RunArgument,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> int:
    """Try the failed chunks of a run again, then prove the result."""
    settings = open_settings()
    with _coordinators(settings, workers) as (database, coordinator):
        found = status_of.find_run(database, run)
        options = Options(
            selection=Selection.from_document(found.options),
            chunk_size=found.options.get("chunk_size"),
            workers=workers,
            one_way=found.one_way,
        )
        both = coordinator(found.source_url, found.target_url)
        with both.lead():
            report = both.retry(found.run_id, options)
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
def doctor(
    source: Annotated[
        str | None, typer.Argument(metavar="[SOURCE]", help="Look at this store.")
    ] = None,
    target: Annotated[
        str | None, typer.Argument(metavar="[TARGET]", help="And at this one.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Look at all that can be wrong with a set-up, and say what to do. Exit 1 if something is."""
    console, found = _stdout(), []
    for one in examine(open_settings(), [given for given in (source, target) if given]):
        found.append(one)
        if not json:
            print_diagnosis(console, one)
    if json:
        _print_json([one.document() for one in found])
    return 1 if any(one.verdict is Verdict.BAD for one in found) else 0


@app.command()
def selftest() -> int:
    """Sync 1,000 records between two servers of its own with 3 workers, and verify them."""
    settings = open_settings()
    with _coordinators(settings, SELFTEST_WORKERS) as (database, coordinator):
        passed = run_selftest(database, coordinator, console=_stdout())
    return 0 if passed else NOT_VERIFIED


@app.command()
def worker(
    queue: Annotated[str, typer.Option(help="The queue to work on.")] = DEFAULT_QUEUE,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
) -> int:
    """Work on the chunks of any run until SIGTERM or Ctrl-C."""
    return _work(queue, sys.stdin.fileno() if until_stdin_closes else None)


@app.command()
def coordinator() -> int:
    """Keep the pairs of the settings alike on a schedule, until SIGTERM or Ctrl-C."""
    settings = open_settings()
    return _serve(settings, Role(coordinates=True, works=settings.enable_sync_worker))


@app.command()
def run() -> int:
    """Take the role that the environment gives: coordinate, work, or both; until SIGTERM."""
    settings = open_settings()
    return _serve(settings, role_of(settings))


@app.command()
def pause(run: RunArgument) -> int:
    """Let the chunks of a run wait; those under way are finished."""
    return _control(run, control.pause, "is paused")


@app.command()
def resume(run: RunArgument) -> int:
    """Let a run that was paused go on."""
    return _control(run, control.resume, "goes on")


@app.command()
def cancel(run: RunArgument) -> int:
    """End a run; chunks under way are finished, and what was written stays."""
    return _control(run, control.cancel, "is cancelled")


@app.command()
def pairs(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of one pair.")] = None,
    do: Annotated[
        PairAction | None,
        typer.Option("--do", help="What to do with the pair; syncs and verifications begin soon."),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Show the pairs on a schedule: how fresh they are, and what comes next."""
    if do is not None and name is None:
        raise InvalidInput("Name the pair that --do is for.")
    with open_database(open_settings()) as database:
        if name is not None and do is not None:
            do.carry_out(database, name)
        found = [one for one in pair_state.statuses(database) if name in (None, one.name)]
    if name is not None and not found:
        raise InvalidInput(f"There is no pair {name!r}; `chroma-sync pairs` lists them.")
    if json:
        _print_json([asdict(one) for one in found])
    else:
        status_of.print_pairs(_stdout(), found)
    return 0


@app.command()
def throttle(
    server: Annotated[
        str | None, typer.Argument(metavar="[SERVER]", help="The address of a server.")
    ] = None,
    records_per_second: Annotated[
        float | None, typer.Option("--records-per-second", min=0.001, help="For all workers.")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option("--in-flight", min=1, help="Requests at a time, of all workers.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="No limit any more.")] = False,
) -> int:
    """Limit what a server has to bear, also while runs go on; without options, show the limits."""
    settings = open_settings()
    limits = Limits(records_per_second=records_per_second, requests_in_flight=in_flight)
    if off and limits != Limits():
        raise InvalidInput("--off goes with no other option.")
    if server is None and (off or limits != Limits()):
        raise InvalidInput("Name the server whose limits these are.")
    with open_database(settings) as database:
        if server is not None and (off or limits != Limits()):
            set_limits(database, parse_address(server).location, limits)
        for name, one in read_limits(database).items():
            rate, requests = one.records_per_second, one.requests_in_flight
            shown = [
                f"{rate:g} records/s" if rate is not None else "",
                f"{requests} requests in flight" if requests is not None else "",
            ]
            typer.echo(f"{name}: {', '.join(filter(None, shown))}")
    return 0


@contextlib.contextmanager
def _coordinators(
    settings: Settings, workers: int | None
) -> Iterator[tuple[Database, Callable[..., Coordinator]]]:
    """The database, and what makes a coordinator of a source and a target."""
    with (
        _local_workers(workers) as local,
        open_database(settings) as database,
        _display() as display,
    ):
        yield database, partial(Coordinator, settings, database, local=local, display=display)


@contextlib.contextmanager
def _local_workers(count: int | None) -> Iterator[LocalWorkers | None]:
    """Who starts local workers, if any are wanted. To be entered before everything else."""
    if not count:
        yield None
        return
    with contextlib.closing(LocalWorkers(_work_safely)) as local:
        yield local


def _work(queue_name: str, until_closed: int | None) -> int:
    role = Role(coordinates=False, works=True)
    return _serve(open_settings(), role, queue_name=queue_name, until_closed=until_closed)


def _work_safely(queue_name: str, until_closed: int) -> int:
    return _exit_code(lambda: _work(queue_name, until_closed))


def _serve(
    settings: Settings,
    role: Role,
    *,
    queue_name: str = DEFAULT_QUEUE,
    until_closed: int | None = None,
) -> int:
    """Be that until a signal, or until this file descriptor says that its other end is gone."""
    pairs = check_role(settings, role)
    stop = _stop_on_signals()
    with open_database(settings) as database:
        if until_closed is not None:
            arguments = [until_closed, stop]
            threading.Thread(target=_wait_for_end, args=arguments, daemon=True).start()
        serve(
            settings,
            database,
            role,
            pairs,
            stop=stop,
            console=_stdout(),
            queue_name=queue_name,
        )
    return 0


def _control(prefix: str, act: Callable[[Database, UUID], bool], done: str) -> int:
    with open_database(open_settings()) as database:
        found = status_of.find_run(database, prefix)
        if not act(database, found.run_id):
            raise InvalidInput(f"Run {found.run_id} has ended: it is {found.status}.")
    typer.echo(f"run {found.run_id} {done}")
    return 0


def _write(
    settings: Settings, source: str, target: str, options: Options, *, dry_run: bool, json: bool
) -> int:
    with _coordinators(settings, options.workers) as (_, coordinator):
        both = coordinator(source, target)
        if dry_run:
            report = both.dry_run(options)
        else:
            with both.lead():
                report = both.sync(options)
    return _conclude(report, json)


def _selection(
    names: list[str] | None,
    include: list[str] | None,
    exclude: list[str] | None,
    renames: list[str] | None,
) -> Selection:
    return Selection(
        names=names or (),
        include=include or (),
        exclude=exclude or (),
        renames=parse_renames(renames or ()),
    )


def _chunk_size(settings: Settings, given: str | None) -> int | None:
    return settings.sync_chunk_size if given is None else parse_chunk_size(given, "--chunk-size")


def _conclude(report: Report, json: bool) -> int:
    if json:
        _print_json(report.document())
    else:
        report.print(_stdout())
    return 0 if report.verified or report.is_dry else NOT_VERIFIED


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


def _wait_for_end(descriptor: int, stop: threading.Event) -> None:
    # Not through sys.stdin: its lock, held by a daemon thread, aborts the interpreter's exit.
    while os.read(descriptor, 4096):
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
    code = _exit_code(lambda: typer.main.get_command(app).main(standalone_mode=False))
    sys.stdout.flush()
    sys.exit(code)


def _exit_code(act: Callable[[], int]) -> int:
    """Do that; what goes wrong is said in a line, and told by the exit code."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        code = act()
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
    return code


if __name__ == "__main__":
    main()
