"""Adapters where their libraries are missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is not None, reason="transformers is installed"
)
def test_transformers_is_missing() -> None:
    from flash_attn2.integrations.transformers import register, unregister

    with pytest.raises(ImportError, match="pip install transformers"):
        register()
    unregister()


def test_importing_an_adapter_imports_nothing_else() -> None:
    code = (
        "import sys, flash_attn2.integrations.transformers\n"
        "assert 'transformers' not in sys.modules, 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
