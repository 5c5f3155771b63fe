"""compute-sanitizer's four tools on small problems, side by side."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.gpu_report.children import Ended, run
from tools.gpu_report.suite_run import SkippedError
from tools.nvcc.toolchain import find

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_FOUND = 7  # exit status where a tool has found something
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (.*)")
_KERNELS = "fa2"  # what names of our kernels hold; torch's are left alone
_LAST_WORDS = 4000


def program() -> str:
    """Path of compute-sanitizer. SkippedError without it."""
    path = find("compute-sanitizer")
    if path is None and (folder := shutil.which("compute-sanitizer")):
        path = Path(folder)
    if path is None:
        raise SkippedError("compute-sanitizer is not installed")
    return str(path)


def command(sanitizer: str, tool: str, target: Sequence[str]) -> list[str]:
    """Only our own kernels are looked at, where this release can be told so."""
    words = [sanitizer, "--tool", tool, "--error-exitcode", str(_FOUND)]
    known = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, check=False)
    if "--kernel-regex" in known.stdout + known.stderr:
        words += ["--kernel-regex", f"kns={_KERNELS}"]
    return [*words, *target]


def check(
    seconds: float, folder: Path, device: str, environment: Mapping[str, str], family: str = ""
) -> dict[str, Any]:
    """What each tool says of all problems, or of those that a family serves: its verdict, and its
    last words where it found something."""
    sanitizer = program()
    target = [sys.executable, "-m", "tools.gpu_report.problems", "--device", device]
    target += ["--family", family] if family else []
    ended: dict[str, Ended] = {}

    def use(tool: str) -> None:
        log = folder / f"sanitizer-{tool}.log"
        more = {**environment, **_environment()}
        ended[tool] = run(command(sanitizer, tool, target), seconds, log, more)

    threads = [threading.Thread(target=use, args=(tool,)) for tool in TOOLS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {tool: verdict(ended[tool]) for tool in TOOLS}


def _environment() -> Mapping[str, str]:
    """Every tensor is an allocation of its own, whose bounds the tools see."""
    return {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": str(os.cpu_count() or 2)}


def verdict(ended: Ended) -> dict[str, Any]:
    found = _SUMMARY.findall(ended.output)
    problems = re.findall(r"^.*: (?:ok|WRONG.*)$", ended.output, flags=re.MULTILINE)
    words = {0: "clean", _FOUND: "found something", None: "took too long, and was killed"}
    said: dict[str, Any] = {
        "verdict": words.get(ended.status, f"ended with status {ended.status}"),
        "summary": found[-1] if found else "",
        "problems": len(problems),
    }
    if ended.status != 0:
        said["output"] = ended.output[-_LAST_WORDS:]
    return said
