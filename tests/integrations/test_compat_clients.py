"""Programs from the package index that import flash-attn, on `flash_attn2.compat`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flash_attn2

SCRIPT = Path(__file__).parent / "compat_clients.py"


@pytest.mark.parametrize("client", ["ring_flash_attn", "diffusers", "transformers"])
def test_client(client: str) -> None:
    assert importlib.util.find_spec(client) is not None
    path = str(Path(flash_attn2.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, SCRIPT, client]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
