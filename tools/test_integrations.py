"""The tests with other libraries: `make test-integrations`.

The libraries are installed into build/integrations, with what tests need beside them; the native
module is the one that `make build` makes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

from tools import environments
from tools.environments import PINNED, REQUIREMENTS, ROOT

# What users run, in releases that are known to work together.
LIBRARIES = (
    *("transformers==5.24.0", "accelerate==1.15.0", "peft==0.21.2"),
    *("diffusers==0.42.1", "ring-flash-attn==0.1.8"),
)
PINNED_HERE = (*PINNED, "numpy", "torch")


def peers(pyproject: str) -> list[str]:
    """The requirements of the extra `peers`; tomllib came with Python 3.11, as some of them do."""
    found = re.search(r"^peers = \[\n(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)
    assert found is not None
    return re.findall(r'"(.+?)"', found[1])


def pins(constraints: str) -> str:
    """Lines of a constraints file that no library has an opinion on."""
    return environments.pins(constraints, PINNED_HERE)


def install() -> Path:
    """The interpreter of an environment with the libraries."""
    wanted = ["torch", *LIBRARIES, *REQUIREMENTS]
    if sys.version_info >= (3, 11):
        wanted += peers((ROOT / "pyproject.toml").read_text())
    return environments.install("integrations", wanted, PINNED_HERE)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("pytest", nargs="*", help="options and tests; all of tests/integrations")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    python = install()
    print(f"[test-integrations] installed: {time.monotonic() - begin:.0f} s", flush=True)
    tests = ROOT / "tests"
    page = f"{tests}/docs/test_pages.py::test_blocks_run[docs/transformers.md]"
    wanted = options.pytest or ["-n", "2", tests / "integrations", page]
    subprocess.run([python, "-m", "pytest", "-q", *wanted], check=True, cwd=ROOT)
    print(f"[test-integrations] {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
