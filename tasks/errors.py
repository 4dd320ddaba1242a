"""The error tree.

Whether a fault may pass is said by its type, `Retryable` or `Permanent`, never by the text of a
message. Every message is one line that says what happened and, where there is something to do,
what to do; it is fit to be shown to a user, stored in a table and written to a log, so no secret
may get into it.
"""


class ChromaSyncError(Exception):
    """Root of all errors that chroma-sync raises on purpose."""


class Retryable(ChromaSyncError):
    """A fault that may pass by itself: the same call may succeed later."""


class Permanent(ChromaSyncError):
    """A fault that stays until somebody changes something."""


class InvalidInput(Permanent):
    """What the user gave cannot be used: an address, an option, a setting."""


# Stores ---------------------------------------------------------------------------------------


class StoreUnavailable(Retryable):
    """The store could not be reached, or did not answer in time."""


class StoreOverloaded(Retryable):
    """The store answered 429 or 5xx.

    `retry_after` is the number of seconds that the server asked for, if it did.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreGarbled(Retryable):
    """The store answered with something that its API does not promise (cut JSON, HTML)."""


class StoreRefused(Permanent):
    """The store understood the request and refuses it (400, 403, 409, 422 and the like)."""


class CollectionNotFound(Permanent):
    """No collection of that name, or of that id, is there."""


class CollectionMismatch(Permanent):
    """The target's collection cannot hold the source's records (another space or dimension)."""


class TooManyDeletions(Permanent):
    """A run would delete more of a collection than it was allowed to."""


# Ledger and database --------------------------------------------------------------------------


class DatabaseUnavailable(Retryable):
    """Postgres could not be reached, or the connection broke."""


class DatabaseRefused(Permanent):
    """Postgres refuses: no rights, no such database, a wrong password."""


class SchemaMismatch(Permanent):
    """The schema in Postgres is newer than the program, or an applied migration was changed."""


class RunNotFound(Permanent):
    """No run with that id is in the ledger."""


class WorkersFailed(Permanent):
    """The worker processes of a run cannot be kept alive."""


class RunBusy(Permanent):
    """Another coordinator holds the lease on this source and target."""


class RunCancelled(Permanent):
    """Somebody has cancelled the run."""


class Stopped(Permanent):
    """This process was told to stop; the run is left in order, and can be resumed."""


class LeaseLost(Permanent):
    """This coordinator leads no more: another has taken over."""
