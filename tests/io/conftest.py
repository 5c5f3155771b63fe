"""What tests of closed forms need to count."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support import cpu_tensors_on, emulator_options, require_backend


@pytest.fixture
def emulated() -> Iterator[None]:
    """CPU tensors go to the emulated kernels of sm80."""
    require_backend("sm80-emulated")
    torch.manual_seed(0)
    with (
        cpu_tensors_on("sm80-emulated"),
        emulator_options("races=off,poison=off"),  # counts do not depend on them
    ):
        yield
