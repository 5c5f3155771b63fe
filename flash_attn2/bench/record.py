"""Records of measurements: JSON that says what was measured where, with what, and every sample."""

from __future__ import annotations

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

_SCHEMA = 2


class Record:
    """A file of results, a line each, below what identifies the run."""

    def __init__(self, path: Path, device: str, options: Mapping[str, Any]) -> None:
        self.path = path
        self.head = {
            "schema": _SCHEMA,
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "complete": False,
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

    def write(self, results: Iterable[Mapping[str, Any]], complete: bool) -> None:
        """Replaces the file as a whole: whenever the process ends, one can be read."""
        head = json.dumps(self.head | {"complete": complete}, indent=1).removesuffix("\n}")
        lines = ",\n".join(json.dumps(result) for result in results)
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        unfinished.write_text(f'{head},\n "results": [\n{lines}\n ]\n}}\n', encoding="utf-8")
        unfinished.replace(self.path)


def read_record(path: Path) -> dict[str, Any]:
    """A record of any release, in the terms of today."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for result in record["results"]:
        if "error_of_plain_formula" in result:  # schema 1, which had forward passes only
            result["errors_of_plain_formula"] = {"out": result.pop("error_of_plain_formula")}
            result["errors"] = {
                name: {"out": one["error"]}
                for name, one in result["contenders"].items()
                if one.get("error") is not None
            }
    return record


def hardware(record: Mapping[str, Any]) -> str:
    """What the results were measured on, for a title."""
    machine, versions = record["machine"], record["versions"]
    device = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{device}, torch {versions['torch']}, flash_attn2 {versions['flash_attn2']}"


def processor_of(record: Mapping[str, Any]) -> str:
    """The processor in full; of a record of an earlier release, what it calls itself."""
    known = record["build"].get("processor")
    return in_full(known) if known else record["machine"]["cpu"]


def in_full(known: Mapping[str, Any]) -> str:
    """What `build_info()` knows of a processor, as a line."""
    parts = [known["name"]]
    if known["family"] is not None:
        parts.append(f"family {known['family']} model {known['model']}")
        parts[-1] += "" if known["stepping"] is None else f" stepping {known['stepping']}"
    for label in ("L1d", "L2", "L3"):
        if size := known[f"{label.lower()}_bytes"]:
            parts.append(f"{label} {_size(size)}")
    if known["threads"]:
        parts.append(f"{known['cores']} cores, {known['threads']} hardware threads")
    if known["avx512"]:
        parts.append(f"512-bit paths {known['avx512'].replace('halves', 'in halves')}")
    return ", ".join(parts)


def _size(size: int) -> str:
    return f"{size >> 10} KiB" if size % 2**20 else f"{size >> 20} MiB"


def describe_machine(device: str) -> dict[str, Any]:
    """Hardware and system, without anything that names this particular machine."""
    machine: dict[str, Any] = {
        "cpu": flash_attn2.build_info()["processor"]["name"],
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "allowed_cpus": len(os.sched_getaffinity(0)),
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
