"""`context_attention` of DTensors, and in modules under FSDP2."""

from __future__ import annotations

import pytest
from pool import Pool
from support import TORCH

pytestmark = pytest.mark.skipif(TORCH < (2, 6), reason="fully_shard was elsewhere")
CASES = "dtensor_cases"


@pytest.mark.parametrize(("case", "count"), [
    ("as_local_rows", 3), ("as_local_rows", 8), ("gradient_whole_on_each", 3), ("compiled", 3),
    ("wrong", 3), ("wrong_mesh", 8),
])  # fmt: skip
def test_dtensors(pool: Pool, case: str, count: int) -> None:
    pool.run(count, CASES, case)


@pytest.mark.parametrize("compiled", [False, True])
def test_fsdp2(pool: Pool, compiled: bool) -> None:
    pool.run(2, CASES, "fsdp2", compiled)
