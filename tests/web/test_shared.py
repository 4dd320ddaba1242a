"""A look that is shared."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from coordinator.web.shared import Shared
from tasks.errors import DatabaseUnavailable, StoreUnavailable


def test_all_who_ask_at_once_share_one_look() -> None:
    numbers, asked, go_on = itertools.count(), threading.Barrier(9), threading.Event()

    def look() -> int:
        go_on.wait(30)
        return next(numbers)

    shared = Shared(look, patience=30)

    def ask() -> int:
        asked.wait(30)
        return shared.get()

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask) for _ in range(8)]
        asked.wait(30)
        # All of them wait by now, or will find the look that the first of them began.
        threading.Timer(0.2, go_on.set).start()
        assert {answer.result() for answer in answers} == {0}
    assert shared.get() == 1


def test_what_was_seen_is_good_for_a_while() -> None:
    numbers = itertools.count()
    shared = Shared(lambda: next(numbers), patience=30, fresh=3600)
    assert [shared.get(), shared.get()] == [0, 0]


def test_nobody_waits_for_long() -> None:
    never, looks = threading.Event(), []

    def look() -> None:
        looks.append(1)
        never.wait(60)

    shared = Shared(look, patience=0.1)
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable, match="No answer within"):
            shared.get()
    assert len(looks) == 1
    never.set()


def test_what_goes_wrong_is_told_to_all_and_tried_again() -> None:
    answers: Iterator[int | Exception] = iter([StoreUnavailable("away"), 7])

    def look() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    shared = Shared(look, patience=30, fresh=3600)
    with pytest.raises(StoreUnavailable):
        shared.get()
    assert shared.get() == 7
