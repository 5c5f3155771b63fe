"""Whether the module that is imported is the instrumented one, and what is wrong gets reported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flash_attn2 import _cpu

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
import elf

# A read past the end of k; and two threads that write the same results.
WRONG = {
    "address": """
import torch
from flash_attn2._impl import backends
from flash_attn2._impl.lower import lower
from flash_attn2._impl.problem import Problem
q, k = torch.randn(1, 64, 1, 64), torch.randn(1, 64, 1, 64)
out, lse = torch.empty_like(q), torch.empty(1, 1, 64)
problem = lower(Problem(q, k, k), "float32", out, lse, None, 64)
problem["seqs_k"]["max_seqlen"] = 65
backends.load("cpu").module.forward(problem, 1, None)
""",
    "thread": """
import threading, torch
from flash_attn2._impl import backends
from flash_attn2._impl.lower import lower
from flash_attn2._impl.problem import Problem
q = torch.randn(1, 256, 1, 64)
out, lse = torch.empty_like(q), torch.empty(1, 1, 256)
problem = lower(Problem(q, q, q), "float32", out, lse, None, 64)
def attend():
    for _ in range(20):
        backends.load("cpu").module.forward(problem, 1, None)
threads = [threading.Thread(target=attend) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
}
REPORTS = {"address": "ERROR: AddressSanitizer", "thread": "WARNING: ThreadSanitizer: data race"}
PREFIX = {"address": "__asan_", "thread": "__tsan_"}


def main(kind: str) -> None:
    path = Path(_cpu.__file__)
    imports = elf.read(path).imports
    assert f"sanitize-{kind}" in path.parts[-3], path
    assert any(name.startswith(PREFIX[kind]) for name in imports)
    if kind == "thread":
        assert not any(name.startswith(("GOMP", "omp_")) for name in imports)
    wrong = subprocess.run(
        [sys.executable, "-c", WRONG[kind]], capture_output=True, text=True, check=False
    )
    assert wrong.returncode != 0, "a fault goes unnoticed"
    assert REPORTS[kind] in wrong.stderr, wrong.stderr


main(sys.argv[1])
