"""The CPU tests under any release of torch: `make test-torch TORCH=2.4.1`.

The release is installed into build/torch-<version>, with what tests need beside it; the native
module is the one that `make build` makes, as one wheel serves them all.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tools import environments
from tools.environments import PINNED, REQUIREMENTS, ROOT

BENCHMARKS = ("matplotlib", "rich")
SHORT_FILES = (
    "call/test_api.py",
    "call/test_arguments.py",
    "autograd/test_autograd.py",
    "call/test_call_path.py",
    "call/test_direct_calls.py",
    "attention/test_forward.py",
    "kvcache/test_kvcache.py",
    "kvcache/test_kvcache_ops.py",
    "nn/test_nn.py",
    "autograd/test_ops.py",
    "call/test_openmp.py",
    "call/test_threads.py",
    "call/test_vocabulary.py",
)


def pins(constraints: str) -> str:
    """Lines of a constraints file that hold whatever torch is installed."""
    return environments.pins(constraints, PINNED)


def install(version: str) -> Path:
    """The interpreter of an environment that has this torch."""
    wanted = (f"torch=={version}", *REQUIREMENTS, *BENCHMARKS)
    return environments.install(f"torch-{version}", wanted, PINNED)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("version", help="of torch, as 2.4.1")
    parser.add_argument("--short", action="store_true", help="a selection of a few minutes")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    python = install(options.version)
    print(f"[test-torch] {options.version} installed: {time.monotonic() - begin:.0f} s", flush=True)
    tests = ROOT / "tests"
    command: list[str | Path] = [
        python,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "-k",
        "not emulated and not cuda",
    ]
    command += [tests / name for name in SHORT_FILES] if options.short else [tests]
    command += ["--ignore", tests / "tools", "--ignore", tests / "docs"]
    subprocess.run(command, check=True, cwd=ROOT)
    print(f"[test-torch] {options.version}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
