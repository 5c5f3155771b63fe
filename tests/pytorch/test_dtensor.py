"""DTensors: batches and heads on several processes, equal to one."""

from __future__ import annotations

import pytest
import ranks
from support import TORCH

pytestmark = pytest.mark.skipif(TORCH < (2, 5), reason="torch.distributed.tensor is newer")


def test_on_two_processes() -> None:
    ranks.run(2, "dtensor_checks", "on_two")


def test_on_four_processes() -> None:
    ranks.run(4, "dtensor_checks", "on_four")
