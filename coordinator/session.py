"""Opens what every command needs: the settings, the logs, and a migrated Postgres."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tasks.database import Database
from tasks.embedded import embedded_postgres
from tasks.log import configure_logging
from tasks.schema import migrate
from tasks.settings import Settings, load_settings


def open_settings() -> Settings:
    """The settings, with logging set up by them. Raises `InvalidInput`."""
    settings = load_settings()
    configure_logging(settings.sync_log_level, as_json=settings.sync_log_json)
    return settings


@contextlib.contextmanager
def open_database(settings: Settings, *, migrated: bool = True) -> Iterator[Database]:
    """The Postgres of the settings, or the embedded one; with the schema brought up to date."""
    with contextlib.ExitStack() as stack:
        if settings.database_url is not None:
            url = settings.database_url.get_secret_value()
        else:
            url = stack.enter_context(embedded_postgres(settings.sync_data_dir))
        database = Database(url, listen=settings.sync_listen)
        database.open()
        stack.callback(database.close)
        if migrated:
            migrate(database)
        yield database
