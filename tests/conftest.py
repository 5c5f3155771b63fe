"""Fixtures of all tests."""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import support
import torch

from flash_attn2._impl import backends, launch

# Workers of pytest-xdist share the processor.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, torch.get_num_threads() // workers))

# The same examples every time; `pytest --hypothesis-profile=explore` looks for new ones. Without
# hypothesis, as on a machine that has only a GPU, files that do not import it can be run.
if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import settings

    settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
    settings.register_profile("explore", deadline=None, max_examples=1000)
    settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _fresh_inputs() -> None:
    torch.manual_seed(support.SEED)


@pytest.fixture
def emulated() -> Iterator[None]:
    """CPU tensors go to the sm80 kernels in the emulator."""
    support.require_backend("sm80-emulated")
    with support.cpu_tensors_on("sm80-emulated"):
        yield


@pytest.fixture(autouse=True)
def _poisoned_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write shows as NaN."""
    for module, name in ((launch, "empty"), (launch, "empty_like"), (backends, "allocated")):
        allocate = getattr(module, name)

        def poisoned(*args: Any, allocate: Any = allocate, **kwargs: Any) -> torch.Tensor:
            result: torch.Tensor = allocate(*args, **kwargs)
            # All bits set: NaN in every type that a workspace may hold.
            return result.fill_(torch.nan if result.is_floating_point() else 0xFF)

        monkeypatch.setattr(module, name, poisoned)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[support.Target]:
    """The target of `support.targets`, with CPU tensors sent to its backend.

    Under the emulator every test has a schedule of its own, unless FLASH_ATTN2_EMULATOR says one.
    """
    target: support.Target = request.param
    support.require_backend(target.backend)
    with ExitStack() as stack:
        stack.enter_context(support.cpu_tensors_on(target.backend))
        if target.backend.endswith("-emulated") and "FLASH_ATTN2_EMULATOR" not in os.environ:
            options = f"seed={zlib.crc32(request.node.nodeid.encode())},async=random"
            stack.enter_context(support.emulator_options(options, target.backend))
        yield target
