"""Leases: one holder, a term that only grows, and transactions that a new term refuses."""

from __future__ import annotations

import threading

import pytest

from coordinator.lease import Lease, held_lease
from tasks.database import Database
from tasks.errors import LeaseLost, RunBusy

NAME = "sync a -> b"
HELD: list[object] = []


def hold(database: Database, holder: str, *, seconds: float = 60, patience: float = 0) -> Lease:
    """Take the lease and keep it, as a leader that is killed would."""
    context = held_lease(database, NAME, holder=holder, seconds=seconds, patience=patience)
    HELD.append(context)  # or it would be closed, and the lease released, when it is collected
    return context.__enter__()


def end_lease(database: Database) -> None:
    with database.connection() as connection:
        connection.execute("UPDATE sync_leases SET expires_at = now() - interval '1 second'")


def test_one_holder_at_a_time(database: Database) -> None:
    with held_lease(database, NAME, holder="one", seconds=60, patience=0) as lease:
        assert lease.term == 1
        with pytest.raises(RunBusy):
            hold(database, "two")
    with held_lease(database, NAME, holder="two", seconds=60, patience=0) as lease:
        assert lease.term == 2


def test_a_lease_is_renewed_while_it_is_held(database: Database) -> None:
    with (
        held_lease(database, NAME, holder="one", seconds=1, patience=0),
        pytest.raises(RunBusy),
    ):
        hold(database, "two", patience=2.5)


def test_the_writes_of_a_leader_that_was_replaced_are_refused(database: Database) -> None:
    paused = hold(database, "paused")
    with paused.transaction() as connection:
        connection.execute("CREATE TABLE written (by text)")
    end_lease(database)
    # It was not taken yet: the old leader is still the only one.
    with paused.transaction() as connection:
        connection.execute("INSERT INTO written VALUES ('paused')")
    end_lease(database)
    new = hold(database, "new")
    assert new.term == paused.term + 1
    with pytest.raises(LeaseLost), paused.transaction() as connection:
        connection.execute("INSERT INTO written VALUES ('paused, again')")
    with pytest.raises(LeaseLost):
        paused.check()
    with database.connection() as connection:
        assert connection.execute("SELECT by FROM written").fetchall() == [("paused",)]
    paused.release()  # what it gives back is not the new leader's
    with pytest.raises(RunBusy):
        hold(database, "third")
    new.release()


def test_a_lease_cannot_be_taken_while_its_holder_commits(database: Database) -> None:
    leader = hold(database, "leader")
    end_lease(database)
    taken: list[Lease] = []
    with database.transaction() as connection:
        connection.execute("SELECT FROM sync_leases FOR SHARE")  # as the leader's transaction does
        taker = threading.Thread(target=lambda: taken.append(hold(database, "taker")))
        taker.start()
        taker.join(0.3)
        assert not taken
    taker.join(10)
    assert taken[0].term == leader.term + 1
    leader.release()
    taken[0].release()
