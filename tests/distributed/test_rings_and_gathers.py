"""`context_attention` by rings and gathers, with and without shared heads, beside one process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pool import SIZES, Pool
from support import require_backend

from flash_attn2._impl import backends, parts
from flash_attn2.bench.memory import supported

CASES = "outer_cases"
SCHEMES = ("ring", "gather")


@pytest.mark.parametrize("count", [1, *SIZES])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_number_of_ranks(pool: Pool, count: int, scheme: str) -> None:
    pool.run(count, CASES, "lengths", scheme)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_options(pool: Pool, count: int, scheme: str) -> None:
    pool.run(count, CASES, "options", scheme)


@pytest.mark.parametrize(("case", "count"), [("windows", 3), ("patterns", 3), ("few_rows", 2)])
def test_masks(pool: Pool, case: str, count: int) -> None:
    pool.run(count, CASES, case)


@pytest.mark.parametrize("outer", [2, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_dimensions(pool: Pool, scheme: str, outer: int) -> None:
    pool.run(8, CASES, "both_dimensions", scheme, outer)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_empty_batches(pool: Pool, scheme: str) -> None:
    pool.run(2, CASES, "nothing", scheme)


def test_slices_of_several_heads(pool: Pool) -> None:
    pool.run(8, CASES, "limited")


@pytest.mark.skipif(not supported(), reason="memory is counted on Linux with glibc")
def test_memory_is_that_of_the_plan() -> None:
    """And copies of a rank's own rows, which are saved for the backward pass."""
    apart = Pool()  # whose malloc keeps what is freed
    try:
        ranks = apart.run(8, CASES, "memory")
    finally:
        apart.stop()
    for found in ranks:
        for name, (touched, held, own) in found.items():
            assert touched <= held + 4 * own + 2**20, (name, ranks)
            assert name == "gather 1" or touched <= 6 * own, (name, ranks)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounding_is_that_of_one_process(pool: Pool, scheme: str) -> None:
    pool.run(3, CASES, "low_precision", scheme)


@pytest.mark.parametrize("chunk", [1, 17, 128, 129])
def test_a_gather_has_the_bits_of_one_process(pool: Pool, chunk: int) -> None:
    pool.run(2, CASES, "same_bits", chunk)


@pytest.mark.parametrize("count", [1, *SIZES])
def test_bytes_are_those_of_the_plan(pool: Pool, count: int) -> None:
    pool.run(count, CASES, "bytes_sent")


def test_dropout_depends_on_neither_ranks_nor_scheme(pool: Pool) -> None:
    found = set(pool.run(1, "context_cases", "dropout_mask"))
    for count in SIZES:
        for scheme in SCHEMES:
            found |= set(pool.run(count, CASES, "dropout_mask", scheme))
    assert len(found) == 1


@pytest.mark.parametrize("case", ["disturbed", "same_in_every_run"])
@pytest.mark.parametrize("count", [3, 8])
def test_whatever_the_others_do(pool: Pool, case: str, count: int) -> None:
    pool.run(count, CASES, case)


@pytest.mark.parametrize("case", ["overlap", "a_remote_key_counts"])
def test_messages(pool: Pool, case: str) -> None:
    pool.run(3, CASES, case)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_wrapped(pool: Pool, scheme: str) -> None:
    pool.run(2, CASES, "wrapped", scheme)


def test_differences_between_ranks_of_a_mesh(pool: Pool) -> None:
    pool.run(8, CASES, "differences")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rank_that_dies(scheme: str) -> None:
    own = Pool()
    with pytest.raises(AssertionError) as error:
        own.run(2, CASES, "dies", scheme)
    assert str(error.value) == "rank 1:\nthe process is gone"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cuda_kernels(pool: Pool, scheme: str) -> None:
    require_backend("sm80-emulated")
    pool.run(2, CASES, "emulated", scheme)


def test_what_kernels_do_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.zeros(1, 1, 1, 8)
    parts.require_kernels(q, q)
    names = {torch.bfloat16: "bfloat16"}
    cuda = replace(backends.serving(q), name="cuda", aligned=True, dtype_names=names)
    monkeypatch.setattr(backends, "serving", lambda q: cuda)
    with pytest.raises(TypeError, match="q must be bfloat16 on the cuda backend"):
        parts.require_kernels(q, q)
    wide = torch.zeros(1, 1, 1, 520, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match="got head_dim 520 and head_dim_v 8"):
        parts.require_kernels(wide, q)
