"""The CUDA compiler and disassembler: those of the machine, else fetched into ``third_party``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tools import third_party


def _find(tool: str) -> Path | None:
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    on_path = shutil.which(tool)
    candidates = [Path(root, "bin", tool) for root in roots if root]
    candidates += [Path(on_path)] if on_path else []
    candidates.append(third_party.THIRD_PARTY / "cuda" / "bin" / tool)
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def find_or_fetch(tool: str) -> Path:
    """Path of ``nvcc`` or ``cuobjdump``."""
    if _find(tool) is None:
        third_party.main([tool])
    path = _find(tool)
    if path is None:
        raise FileNotFoundError(f"no {tool} on this machine, and the fetched one is not executable")
    return path


def nvcc_version(nvcc: Path) -> str:
    """The version, such as ``13.0.88``."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+(?:\.\d+)+)", text)
    return found[1] if found else "unknown"


def disassemble(cuobjdump: Path, cubin: Path) -> str:
    """What ``cuobjdump --dump-sass`` prints of the file."""
    # It looks for nvdisasm on the path.
    environment = os.environ | {"PATH": f"{cuobjdump.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [str(cuobjdump), "--dump-sass", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout


def demangle(names: list[str]) -> list[str]:
    """Readable names where the machine has ``c++filt``, else the names as they are."""
    filt = shutil.which("c++filt")
    if filt is None or not names:
        return names
    text = "\n".join(names)
    done = subprocess.run([filt], input=text, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
