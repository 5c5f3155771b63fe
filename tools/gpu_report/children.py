"""Parts of the report in processes of their own, which may die, hang or leave the device broken."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flash_attn2.bench.suite import Outcome
from tools.environments import ROOT
from tools.gpu_report.machine import NO_GPU, NoGpuError

_GRACE = 5.0  # seconds beyond its time until a child is killed
_SHORTEST = 5.0  # it does not pay to start a child for less
_PROBE = 120.0  # seconds that it may take to start torch
_LAST_WORDS = 3000  # characters of what a child said


@dataclass(frozen=True)
class Ended:
    """A child that is no more: None where its time was not enough."""

    status: int | None
    output: str


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """A child's: modules come from this checkout, and from where the parent found them."""
    before = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join([str(ROOT), *([before] if before else [])])
    return {**os.environ, "PYTHONPATH": path, **more}


def run(
    command: Sequence[str],
    seconds: float,
    log: Path,
    more: Mapping[str, str],
    last_words: float = 0.0,
) -> Ended:
    """Runs a command for at most so long; its output is in `log`, too. Before it is killed it is
    interrupted, and has `last_words` seconds to say what it knows."""
    with log.open("w") as file:
        child = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment(more),
            start_new_session=True,  # so that what it has started ends with it
        )
        try:
            status: int | None = child.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
            if last_words:
                child.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(last_words)
        finally:
            end(child)
    return Ended(status, log.read_text(errors="replace"))


def end(child: subprocess.Popen[Any]) -> None:
    """Kills a child that still runs, with all that it has started."""
    if child.poll() is None:
        os.killpg(child.pid, 9)
    child.wait()


def probed(device: str, folder: Path, more: Mapping[str, str]) -> dict[str, Any]:
    """What `machine` finds, in a child: this process leaves the GPU to those that measure."""
    file = folder / "machine.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tools.gpu_report.machine", device, str(file)]
    ended = run(command, _PROBE, folder / "machine.log", more)
    if ended.status == NO_GPU:
        raise NoGpuError(ended.output.strip())
    if ended.status != 0 or not file.is_file():
        raise RuntimeError(f"the machine could not be looked at:\n{ended.output[-_LAST_WORDS:]}")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


class Measured(NamedTuple):
    """Of a section: its lines, how many cases it has, None if that was never said, and the names of
    those that another family serves."""

    outcomes: list[Outcome]
    total: int | None
    left_out: list[str]


def case_by_case(
    section: str,
    device: str,
    seconds: float,
    folder: Path,
    more: Mapping[str, str],
    family: str = "",
) -> Measured:
    """What `worker` measures of a section, or of those of its cases that a family serves.

    After a case that takes its process with it, another one goes on with the next case.
    """
    deadline = time.time() + seconds
    file = folder / f"{section}.jsonl"
    file.write_text("")
    outcomes: list[Outcome] = []
    total: int | None = None
    while True:
        command = [sys.executable, "-m", "tools.gpu_report.worker", section]
        command += ["--device", device, "--deadline", f"{deadline:.1f}"]
        command += ["--skip", str(len(outcomes)), "--family", family, "--output", str(file)]
        left = max(deadline - time.time(), 0) + _GRACE
        ended = run(command, left, folder / f"{section}.log", more)
        found = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
        known = [line for line in found if "cases" in line]
        total = known[-1]["cases"] if known else None
        left_out = known[-1].get("left_out", []) if known else []
        outcomes = [line for line in found if "case" in line]
        if ended.status == 0 or total is None:
            if total is None and ended.status != 0:
                raise RuntimeError(f"the process ended early:\n{ended.output[-_LAST_WORDS:]}")
            return Measured(outcomes, total, left_out)
        if len(outcomes) < total:
            last = _lost(found, ended) | {"section": section}
            outcomes.append(last)
            with file.open("a") as lines:
                lines.write(json.dumps(last) + "\n")
        if len(outcomes) >= total or deadline - time.time() < _SHORTEST:
            return Measured(outcomes, total, left_out)


def _lost(lines: Sequence[Outcome], ended: Ended) -> Outcome:
    """What is said of the case that ran when its process ended."""
    names = [line["begins"] for line in lines if "begins" in line]
    case = {"case": {"name": names[-1] if names else "unknown"}}
    if ended.status is None:
        return case | {"cut": "the time was over"}
    words = ended.output[-_LAST_WORDS:]
    return case | {"failed": f"its process ended with status {ended.status}:\n{words}"}
