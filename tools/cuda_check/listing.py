"""Machine code and names as text."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


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
