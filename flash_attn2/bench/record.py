"""Records of measurements: JSON that says what was measured where, with what, and every sample."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import flash_attn2
from flash_attn2.bench.timing import Samples

_SCHEMA = 2


def write_record(
    path: Path,
    device: str,
    options: Mapping[str, Any],
    complete: bool,
    results: Iterable[Mapping[str, Any]],
) -> None:
    """Writes `results`, a line each, below what identifies the run."""
    record = {
        "schema": _SCHEMA,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "complete": complete,
        "machine": describe_machine(device),
        "versions": {
            "flash_attn2": flash_attn2.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "commit": _commit(),
        },
        "build": flash_attn2.build_info(),
        "options": dict(options),
    }
    head = json.dumps(record, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(result) for result in results)
    path.write_text(f'{head},\n "results": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def case_record(result: Any, **more: Any) -> dict[str, Any]:
    """A line of a record: the result of a case, of either suite, with every sample by its round."""
    contenders: dict[str, Any] = {
        name: {"unavailable": reason} for name, reason in result.unavailable.items()
    }
    for name, one in result.measurements.items():
        contenders[name] = dataclasses.asdict(one)
        contenders[name]["samples"] = rounded(one.samples)
        if name in result.ratios:
            contenders[name]["ratio"] = dataclasses.asdict(result.ratios[name])
    return {
        "case": dataclasses.asdict(result.case),
        **more,
        "errors": result.errors.contenders,
        "errors_of_plain_formula": result.errors.low,
        "share_checked": result.errors.checked,
        "contenders": contenders,
    }


def rounded(samples: Samples) -> Samples:
    """To nanoseconds, which keeps records small."""
    return {index: round(seconds, 9) for index, seconds in samples.items()}


def describe_machine(device: str) -> dict[str, Any]:
    """Hardware and system, without anything that names this particular machine."""
    machine: dict[str, Any] = {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        machine["gpu"] = properties.name
        machine["gpu_sms"] = properties.multi_processor_count
        machine["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        machine["cuda"] = torch.version.cuda
    return machine


def _cpu_model() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, if it does."""
    folder = Path(__file__).resolve().parent

    def git(*args: str) -> str | None:
        command = ["git", "-C", str(folder), *args]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return run.stdout.strip()

    # Without this, an installed copy inside some other project would report that one's commit.
    if not git("ls-files", str(Path(__file__).name)):
        return None
    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += " (modified)"
    return commit
