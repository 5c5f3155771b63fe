"""`context_attention` on 2, 3, 4 and 8 ranks of gloo, beside one process."""

from __future__ import annotations

import pytest
from context_cases import HEADS
from pool import SIZES, Pool

CASES = "context_cases"


@pytest.mark.parametrize("count", [1, *SIZES])
@pytest.mark.parametrize("case", ["heads", "bytes_sent"])
def test_any_number_of_ranks(pool: Pool, count: int, case: str) -> None:
    assert count in HEADS
    pool.run(count, CASES, case)


@pytest.mark.parametrize(("case", "count"), [
    ("options", 2), ("options", 3), ("options", 8), ("patterns", 2), ("patterns", 4),
    ("low_precision", 3), ("same_bits", 4), ("unshard", 3), ("unshard", 4),
])  # fmt: skip
def test_as_one_process(pool: Pool, case: str, count: int) -> None:
    pool.run(count, CASES, case)


@pytest.mark.parametrize("how", ["autocast", "checkpoint", "compile"])
def test_wrapped(pool: Pool, how: str) -> None:
    pool.run(2, CASES, "wrapped", how)


def test_dropout_does_not_depend_on_ranks(pool: Pool) -> None:
    found = {x for count in (1, *SIZES) for x in pool.run(count, CASES, "dropout_mask")}
    assert len(found) == 1


@pytest.mark.parametrize(
    "case", ["differences", "refusals", "wrong_plans", "checked_always", "second_derivative"]
)
def test_errors(pool: Pool, case: str) -> None:
    pool.run(2, CASES, case)


def test_differences_between_many(pool: Pool) -> None:
    pool.run(4, CASES, "differences")


def test_a_rank_that_dies() -> None:
    own = Pool()
    with pytest.raises(AssertionError) as error:
        own.run(2, CASES, "dies")
    assert str(error.value) == "rank 1:\nthe process is gone"
