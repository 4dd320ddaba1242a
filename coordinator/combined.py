"""A line for each record that a verification compared, for programs and for grep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from tasks.chunk import UNREADABLE
from tasks.database import Database, load_queries
from tasks.errors import InvalidInput

QUERIES = load_queries("manifest")
SAME = "="
_SPECIAL = re.compile(r"[\x00-\x1f\x7f\\\u0085\u2028\u2029]")


def write_combined(database: Database, run_id: UUID, path: Path) -> None:
    """`SIGN <tab> collection <tab> id <tab> detail`, in the order of the manifests.

    The signs are those of a report, and `=` for a record that is the same on both sides. Control
    characters and backslashes are written as in Python: `\\t`, `\\n`, `\\x00`, `\\\\`.
    Raises `InvalidInput` if the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8") as file:
            for fields in _records(database, run_id):
                file.write("\t".join(map(_field, fields)) + "\n")
    except OSError as error:
        raise InvalidInput(f"--combined {path}: {error.strerror}.") from error


def _records(database: Database, run_id: UUID) -> Iterator[tuple[str, str, str, str]]:
    with (
        database.transaction() as connection,
        connection.cursor(name="compared") as cursor,
    ):
        cursor.itersize = 10
        cursor.execute(QUERIES["compared"], {"run_id": run_id})
        for collection, ids, findings, error in cursor:
            found = {id_: (sign, ", ".join(parts)) for sign, id_, parts in findings or ()}
            rest = (SAME, "") if findings is not None else (UNREADABLE, error or "")
            for encoded in ids:
                id_ = str(encoded, "utf-8")
                sign, detail = found.get(id_, rest)
                yield sign, collection, id_, detail


def _field(text: str) -> str:
    return _SPECIAL.sub(lambda match: repr(match[0])[1:-1], text)
