"""One OpenMP runtime in the process, torch's: parallel calls of both share its threads.

The native module names libgomp.so.1 as torch does, and torch is imported before it is loaded.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ORDERS = {
    "torch-first": "import torch; torch.randn(1 << 20).exp(); import flash_attn2",
    "flash_attn2-first": "import flash_attn2, torch",
    "module-first": "from flash_attn2 import _cpu; import torch, flash_attn2",
}
CALL = """
from pathlib import Path
torch.set_num_threads(2)
q = torch.randn(2, 512, 4, 64)
flash_attn2.flash_attn_func(q, q, q)
torch.exp(torch.randn(1 << 20))
loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
names = ("libgomp", "libomp", "libiomp")
print(*(x for x in loaded if Path(x).name.startswith(names)), sep="\\n")
"""
OF_TORCH = sorted((Path(torch.__file__).resolve().parent / "lib").glob("libgomp*"))
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(not OF_TORCH, reason="this torch uses the system's OpenMP runtime"),
]


def run(program: str, **variables: str) -> list[str]:
    """Lines that it prints."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which the system's runtime cannot be found."""
    compiler = shutil.which("c++")
    assert compiler is not None
    library = tmp_path_factory.mktemp("audit") / "hide_openmp.so"
    source = Path(__file__).with_name("hide_openmp.cpp")
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    return {"LD_AUDIT": str(library)}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_one_runtime(order: str) -> None:
    assert run(order + CALL) == [*map(str, OF_TORCH)]


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_one_runtime_where_the_system_has_none(order: str, hidden: dict[str, str]) -> None:
    assert run(order + CALL, **hidden) == [*map(str, OF_TORCH)]


@pytest.mark.skipif(ctypes.util.find_library("gomp") is None, reason="the system has none")
def test_hidden_is_hidden(hidden: dict[str, str]) -> None:
    load = "import ctypes\nctypes.CDLL('libgomp.so.1')"
    assert run(load) == []
    with pytest.raises(AssertionError, match=r"libgomp\.so\.1: cannot open shared object"):
        run(load, **hidden)
