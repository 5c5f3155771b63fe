"""Environment variables: wrong ones are one clear error, empty ones are unset; the info command."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import flash_attn2
from flash_attn2 import build_info
from flash_attn2.__main__ import main

# Everything that reads the environment, twice: a failure leaves nothing behind.
SCRIPT = """
import os, torch, flash_attn2
from flash_attn2._impl import backends
from flash_attn2.__main__ import main

q = torch.randn(1, 3, 2, 8)
cache = torch.randn(1, 9, 2, 8)
calls = {
    "dense": lambda: flash_attn2.flash_attn_func(q, q, q),
    "with_gradient": lambda: flash_attn2.flash_attn_func(q.requires_grad_(), q, q).sum().backward(),
    "cache": lambda: flash_attn2.flash_attn_with_kvcache(q.detach(), cache, cache),
    "build_info": flash_attn2.build_info,
}
for name, call in [*calls.items(), *calls.items()]:
    try:
        call()
        print(name, "works")
    except Exception as error:
        print(name, type(error).__name__, error)
print("status", main(["info"]))
for name in ("BACKEND", "CPU_ISA", "CPU_L2_KIB"):
    os.environ.pop(f"FLASH_ATTN2_{name}", None)
for name, call in calls.items():
    call()
print("isa", flash_attn2.build_info()["cpu"]["isa"])
"""


def run(**variables: str) -> list[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("FLASH_ATTN2_")
    }
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines() + result.stderr.splitlines()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLASH_ATTN2_BACKEND", "CPU"),
        ("FLASH_ATTN2_CPU_ISA", "avx1024"),
        ("FLASH_ATTN2_CPU_L2_KIB", "1M"),
        ("FLASH_ATTN2_CPU_L2_KIB", "0"),
    ],
)
def test_wrong_variables(name: str, value: str) -> None:
    """The same error from every call and from info; once mended, everything works."""
    lines = run(**{name: value})
    expected = f"ValueError {name} must be "
    assert all(f" {expected}" in line and line.endswith(f"got {value!r}") for line in lines[:8])
    assert "status 2" in lines
    assert any(line.startswith(f"error: {name} must be ") for line in lines)
    assert f"isa {build_info()['cpu']['isa']}" in lines


def test_empty_variables_are_unset() -> None:
    lines = run(FLASH_ATTN2_BACKEND="", FLASH_ATTN2_CPU_ISA="", FLASH_ATTN2_CPU_L2_KIB="")
    assert all(line.endswith(" works") for line in lines[:8])
    assert "status 0" in lines


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert json.loads(capsys.readouterr().out) == build_info()


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    help_text = capsys.readouterr().out
    assert all(command in help_text for command in ("info", "bench", "io", "--version"))


def test_version() -> None:
    command = [sys.executable, "-m", "flash_attn2", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"flash_attn2 {flash_attn2.__version__}\n"
