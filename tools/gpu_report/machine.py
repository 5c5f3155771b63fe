"""What the machine is: its GPU and releases, and how fast the GPU's clocks ran."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from flash_attn2.bench.record import describe_machine

NO_GPU = 4  # exit status
SECONDS = 2.0  # between two looks at the clocks
# As nvidia-smi names them, and as records do.
_QUERIES = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "celsius",
    "power.draw": "watts",
}
_LIMITS = {
    "driver_version": "driver",
    "clocks.max.sm": "max_sm_mhz",
    "clocks.max.mem": "max_memory_mhz",
    "power.limit": "power_limit_watts",
}


class NoGpuError(Exception):
    """torch sees none; the message says which torch."""


def probe(device: str) -> dict[str, Any]:
    """Of this process; NoGpuError where there is none."""
    if device != "cuda":
        return describe_machine("cpu") | {"gpu": "none: kernel emulator, whose times mean nothing"}
    if not torch.cuda.is_available():
        raise NoGpuError(f"torch {torch.__version__} sees no CUDA device")
    major, minor = torch.cuda.get_device_capability()
    cudnn: Any = torch.backends.cudnn
    return describe_machine("cuda") | {
        "compute_capability": f"{major}.{minor}",
        "cudnn": cudnn.version() if cudnn.is_available() else None,
        **dict(zip(_LIMITS.values(), _ask(_LIMITS), strict=False)),
    }


def _ask(names: dict[str, str]) -> list[Any]:
    """What nvidia-smi says of the first GPU; empty without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0 or not done.stdout.strip():
        return []
    return [_number(text.strip()) for text in done.stdout.splitlines()[0].split(",")]


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:  # a version, or [N/A]
        return text


class Clocks:
    """What nvidia-smi says again and again, while something runs."""

    def __init__(self) -> None:
        self._samples: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        done = threading.Event()

        def watch() -> None:
            while not done.wait(SECONDS):
                for name, value in zip(_QUERIES.values(), _ask(_QUERIES), strict=False):
                    if isinstance(value, float):
                        self._samples.setdefault(name, []).append(value)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def summary(self) -> dict[str, dict[str, float]]:
        """The lowest, the median and the highest of each; empty where nothing was said."""
        return {
            name: {"low": min(one), "median": statistics.median(one), "high": max(one)}
            for name, one in self._samples.items()
        }


if __name__ == "__main__":
    try:
        Path(sys.argv[2]).write_text(json.dumps(probe(sys.argv[1])))
    except NoGpuError as error:
        print(error)
        sys.exit(NO_GPU)
