"""What needs other libraries is for `make test-integrations`, whose environment has them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The adapters of the CPU table's peers.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

if importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["test_hf_*.py", "test_compat_clients.py"]


@pytest.fixture
def registered() -> Iterator[None]:
    """The adapter is registered, and nothing of it stays."""
    from flash_attn2.integrations.transformers import register, unregister

    register()
    yield
    unregister()
