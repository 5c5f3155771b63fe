"""The tests with other libraries: `make test-integrations`.

The libraries are installed into build/integrations, with what tests need beside them; the native
module is the one that `make build` makes.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
import venv
from pathlib import Path

from tools.test_torch import PINNED, REQUIREMENTS, ROOT

# What users run, in releases that are known to work together.
LIBRARIES = ("transformers==5.24.0", "accelerate==1.15.0", "peft==0.21.2")
PINNED_HERE = (*PINNED, "numpy", "torch")


def pins(constraints: str) -> str:
    """Lines of a constraints file that no library has an opinion on."""
    lines = [line for line in constraints.splitlines() if line.split("==")[0] in PINNED_HERE]
    return "\n".join(lines) + "\n"


def install(directory: Path) -> Path:
    """The interpreter of an environment with the libraries; what is there is used again."""
    constraints = pins((ROOT / "constraints.txt").read_text())
    wanted = ("torch", *LIBRARIES, *REQUIREMENTS)
    state = hashlib.sha256("\n".join((constraints, *wanted)).encode()).hexdigest()
    python, stamp = directory / "bin" / "python", directory / ".stamp"
    if stamp.exists() and stamp.read_text() == state:
        return python
    venv.create(directory, with_pip=True, clear=True)
    (directory / "constraints.txt").write_text(constraints)
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install"]
    pip += ["--quiet", "-c", directory / "constraints.txt"]
    subprocess.run([*pip, *wanted], check=True)
    stamp.write_text(state)
    return python


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("pytest", nargs="*", help="options and tests; all of tests/integrations")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    python = install(ROOT / "build" / "integrations")
    print(f"[test-integrations] installed: {time.monotonic() - begin:.0f} s", flush=True)
    wanted = options.pytest or ["-n", "2", ROOT / "tests" / "integrations"]
    subprocess.run([python, "-m", "pytest", "-q", *wanted], check=True, cwd=ROOT)
    print(f"[test-integrations] {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
