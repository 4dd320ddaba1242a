"""Every setting, once. Nothing else in the program reads the environment for its own settings.

(Tokens of stores are read from the variables that an address names, see tasks/stores/address.py.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import InvalidInput


class Settings(BaseSettings):
    """The settings, from the environment. Field descriptions are the documentation."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    database_url: Annotated[
        SecretStr | None,
        Field(description="The ledger and the queue; without it, an embedded Postgres is used."),
    ] = None
    sync_source_url: Annotated[
        str | None, Field(description="The source that `chroma-sync coordinator` syncs from.")
    ] = None
    sync_target_url: Annotated[
        str | None, Field(description="The target that `chroma-sync coordinator` syncs to.")
    ] = None
    sync_pairs: Annotated[
        Path | None, Field(description="A TOML file of pairs, instead of the two above.")
    ] = None
    sync_distributed: Annotated[
        bool,
        Field(description="`false`: one process does everything; `true`: roles, as below."),
    ] = False
    sync_coordinator: Annotated[
        bool,
        Field(
            description="With `SYNC_DISTRIBUTED=true`: `chroma-sync run` coordinates (`true`) "
            "or works (`false`)."
        ),
    ] = False
    enable_sync_worker: Annotated[
        bool, Field(description="A coordinator has a worker inside its process.")
    ] = True
    sync_chunk_size: Annotated[
        int | None,
        BeforeValidator(lambda text: parse_chunk_size(str(text), "SYNC_CHUNK_SIZE")),
        Field(description="Records in a chunk; `auto` chooses for each collection."),
    ] = 1000
    sync_interval: Annotated[
        float, Field(gt=0, description="Seconds between scheduled runs of the coordinator.")
    ] = 300
    sync_cron: Annotated[
        str | None,
        Field(description="A cron expression (UTC) for scheduled runs, instead of the interval."),
    ] = None
    sync_data_dir: Annotated[
        Path,
        Field(description="Where the embedded Postgres keeps its data."),
    ] = platformdirs.user_data_path("chroma-sync", appauthor=False)
    sync_worker_threads: Annotated[
        int, Field(gt=0, le=64, description="Chunks that one worker process works on at a time.")
    ] = 2
    sync_worker_memory_mb: Annotated[
        float | None,
        Field(gt=0, description="Above so many megabytes a worker process takes no new chunk."),
    ] = None
    sync_lease_seconds: Annotated[
        float,
        Field(
            ge=1,
            description="How long a silent worker keeps what it holds; it renews every quarter.",
        ),
    ] = 6
    sync_listen: Annotated[
        bool,
        Field(
            description="Wake workers by LISTEN and use prepared statements; "
            "`false` behind a pooler in transaction mode, where workers poll every second."
        ),
    ] = True
    sync_connect_timeout: Annotated[
        float, Field(gt=0, description="Seconds to wait for a connection to a store.")
    ] = 5
    sync_read_timeout: Annotated[
        float, Field(gt=0, description="Seconds to wait for a store's answer.")
    ] = 120
    sync_retry_backoff: Annotated[
        float,
        Field(
            gt=0,
            description="Seconds before the first retry of a chunk, at most; "
            "doubles for the second and the third.",
        ),
    ] = 6
    sync_message_retention: Annotated[
        float, Field(gt=0, description="Seconds that finished messages stay in the queue's table.")
    ] = 3600
    sync_web_host: Annotated[
        str | None,
        Field(
            description="Where a coordinator serves its page, API and metrics; `0.0.0.0` if the "
            "platform sets `PORT`. Beyond loopback it needs `SYNC_API_TOKEN`."
        ),
    ] = None
    sync_web_port: Annotated[
        int | None,
        Field(
            ge=0,
            le=65535,
            description="Its port; if not given and taken, one of the 20 after it. 0: no page.",
        ),
    ] = None
    port: Annotated[
        int | None,
        Field(gt=0, le=65535, description="The port that a platform wants the page on."),
    ] = None
    sync_api_token: Annotated[
        SecretStr | None,
        Field(
            min_length=16,
            description="Whoever changes something by the page or the API gives it as a bearer "
            "token; 16 characters or more.",
        ),
    ] = None
    sync_metrics_port: Annotated[
        int,
        Field(
            ge=0,
            le=65535,
            description="A worker serves its metrics there, or on one of the 20 ports after it. "
            "0: nowhere.",
        ),
    ] = 0
    sync_history_days: Annotated[
        float, Field(gt=0, description="Days that runs stay in the ledger after they have ended.")
    ] = 30
    sync_log_level: Annotated[
        str,
        Field(
            pattern="(?i)^(debug|info|warning|error)$",
            description="`debug`, `info`, `warning` or `error`; logs go to standard error.",
        ),
    ] = "warning"
    sync_log_json: Annotated[bool, Field(description="Write logs as one JSON object a line.")] = (
        False
    )


def parse_chunk_size(text: str, name: str) -> int | None:
    """A number of records; None for `auto`. Raises `InvalidInput` that names the setting."""
    if text.strip().lower() == "auto":
        return None
    if not text.strip().isdecimal() or int(text) == 0:
        raise InvalidInput(f"{name}: {text!r} is neither a number of records above 0 nor auto.")
    return int(text)


def load_settings() -> Settings:
    """The settings from the environment. Raises `InvalidInput` that names the variable."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        raise InvalidInput(f"{name}: {first['msg'].lower()}.") from None
