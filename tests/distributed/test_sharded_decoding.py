"""Decoding over caches on several ranks, beside attention over all keys."""

from __future__ import annotations

import pytest
from pool import Pool

CASES = "decoding_cases"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_merged(pool: Pool, count: int) -> None:
    pool.run(count, CASES, "merged")


def test_errors(pool: Pool) -> None:
    pool.run(1, CASES, "errors")


def test_example(pool: Pool) -> None:
    pool.run(8, CASES, "example")
