"""The documents of the API. Times are ISO 8601 in UTC; durations are in seconds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field

Moment = Annotated[datetime, AfterValidator(lambda moment: moment.astimezone(UTC))]
TaskStatus = Literal["pending", "processing", "completed", "failed"]


class Error(BaseModel):
    """Why a request was not done."""

    error: str


class Accepted(BaseModel):
    """What will happen."""

    accepted: str


class Leader(BaseModel):
    holder: str
    term: int


class Pair(BaseModel):
    """A source and a target that are kept alike."""

    name: str
    source: str
    target: str
    schedule: str
    state: Literal[
        "alike", "caught up", "syncing", "stalled", "failed", "overdue", "paused", "waiting"
    ]
    paused: bool
    requested: str | None = Field(description="`sync` or `verify`, if somebody wants it now.")
    next_run: Moment | None
    error: str | None = Field(description="Why the last run could not be done.")
    run_id: UUID | None = Field(description="The newest run.")
    run_status: str | None
    run_verified: bool | None
    run_begun: Moment | None
    last_sign_of_life: Moment | None
    alike_as_of: Moment | None = Field(description="The target held then all the source held.")
    lag: float | None = Field(description="Since then.")


class Chunks(BaseModel):
    planned: int
    pending: int
    processing: int
    completed: int
    failed: int


class Part(BaseModel):
    """A run is a sync, its verifications, and further passes."""

    run_id: UUID
    kind: Literal["sync", "verify"]
    status: str
    verified: bool | None
    begun: Moment
    ended: Moment | None
    chunks: Chunks
    records: int
    records_done: int
    records_per_second: float = Field(description="Of the last 15 seconds.")
    seconds_left: float | None = Field(description="At that rate.")


class Run(BaseModel):
    run_id: UUID
    kind: str = Field(description="`sync`, `copy`, `repair`, `verify` or `dry run`.")
    pair: str | None
    source: str
    target: str
    status: str
    verified: bool | None
    paused: bool
    error: str | None
    begun: Moment
    ended: Moment | None
    results_suppressed: int = Field(description="Late results that were refused.")
    parts: list[Part]


class Segment(BaseModel):
    """The chunks of one collection, in the order of its manifest."""

    collection: str
    chunks: int
    cells: str = Field(
        description="A character a cell: `f` a chunk failed, `r` one is being worked on, `c` all "
        "are completed, `1` to `9` so many tenths are, `p` none is."
    )


class Grid(BaseModel):
    run_id: UUID
    per_cell: int = Field(description="Chunks in a cell.")
    segments: list[Segment]


class Failure(BaseModel):
    run_id: UUID = Field(description="The run that was asked for, of whose parts it is.")
    task_id: int
    collection: str
    start: int
    end: int
    error: str | None
    refused: int = Field(description="Records that the target would not take.")
    retries: int
    worker_id: str | None


class Task(BaseModel):
    task_id: int
    collection: str
    start: int
    end: int
    status: TaskStatus
    worker_id: str | None
    attempts: int
    retries: int
    begun: Moment | None
    ended: Moment | None
    error: str | None


class TaskPage(BaseModel):
    tasks: list[Task]
    next_after: int | None = Field(description="`after` of the next page.")


class Worker(BaseModel):
    worker_id: str
    hostname: str
    pid: int
    status: Literal["active", "stopped", "dead"]
    started: Moment
    last_heartbeat: Moment
    seconds_since_heartbeat: float
    memory_bytes: int | None
    cpu_percent: float | None
    current_task: int | None
    queues: list[str]


class Role(BaseModel):
    pair: str
    role: Literal["source", "target"]


class Store(BaseModel):
    server: str
    roles: list[Role]
    records_per_second: float | None
    requests_in_flight: int | None


class StoreLimits(BaseModel):
    """What a server is to bear from all workers together; what is null is not limited."""

    server: str = Field(description="Its address.")
    records_per_second: Annotated[float | None, Field(gt=0)] = None
    requests_in_flight: Annotated[int | None, Field(gt=0)] = None


class Share(BaseModel):
    worker_id: str
    chunks: int


class Work(BaseModel):
    """A run as the page shows it: the part that is under way, or was last, with its chunks."""

    run: Run
    part: UUID
    grid: Grid
    shares: list[Share]


class Trouble(BaseModel):
    """A run that went wrong, with its first failures."""

    run_id: UUID
    pair: str | None
    status: str
    error: str | None
    failures: list[Failure]


class Overview(BaseModel):
    """All that the page shows, but for the past."""

    at: Moment
    version: str
    may_change: bool = Field(description="Changes are possible, with a token.")
    leader: Leader | None
    pairs: list[Pair]
    work: list[Work]
    workers: list[Worker]
    trouble: list[Trouble]


class Ended(BaseModel):
    """A run that has ended, for a chart."""

    run_id: UUID
    kind: str
    pair: str | None
    status: str
    verified: bool | None
    begun: Moment
    ended: Moment
    written: int = Field(description="Records added, updated or deleted.")
    unchanged: int
    unlike: int = Field(description="Records that were not alike at the end.")
