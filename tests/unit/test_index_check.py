"""What two samples say of two indexes."""

from __future__ import annotations

from math import comb

import pytest

from coordinator.index_check import IndexCheck


def check(sampled: int, source: int, target: int) -> IndexCheck:
    return IndexCheck(name="docs", sampled=sampled, source_found=source, target_found=target)


@pytest.mark.parametrize(
    ("sampled", "source", "target", "worse"),
    [
        (100, 97, 0, True),
        (100, 97, 80, True),
        (100, 97, 89, False),  # seen of two sound indexes
        (100, 100, 95, False),
        (100, 100, 90, True),
        (1000, 960, 900, True),
        (1000, 960, 930, False),  # a real difference, which another order of writing makes as well
        (100, 80, 97, False),
        (1, 1, 0, False),
        (3, 0, 0, False),
    ],
)
def test_a_target_is_worse_if_it_finds_clearly_less(
    sampled: int, source: int, target: int, worse: bool
) -> None:
    assert check(sampled, source, target).is_worse == worse


@pytest.mark.parametrize("recall", [0.5, 0.8, 0.9, 0.96, 0.99])
def test_equal_indexes_are_hardly_ever_told_apart(recall: float) -> None:
    sampled = 100
    chance = [
        comb(sampled, found) * recall**found * (1 - recall) ** (sampled - found)
        for found in range(sampled + 1)
    ]
    looks = worse = 0.0
    for source, target in ((s, t) for s in range(sampled + 1) for t in range(sampled + 1)):
        one = check(sampled, source, target)
        looks += one.looks_worse * chance[source] * chance[target]
        worse += one.is_worse * chance[source] * chance[target]
        assert one.looks_worse or not one.is_worse
    assert looks < 0.04
    assert worse < 0.002
