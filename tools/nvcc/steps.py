"""Steps of a build that are taken again only where the content of what they depend on has changed.

A step leaves a record beside its outputs: the command, the versions of its tools, hashes of all
files that it has read, and what it printed. While these hold, its outputs are as good as new.
Times of files do not matter, so that going back and forth between commits costs nothing.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path


class CompileError(Exception):
    """A compiler failed; the message holds its command and output."""


@dataclass(frozen=True)
class Step:
    """A command, and what it depends on beside its own words.

    ``tools``: their versions. ``inputs``: files that it reads; ``depfile``: where it lists more of
    them, in the format of make.
    """

    command: tuple[str, ...]
    tools: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    depfile: Path | None = None


@dataclass(frozen=True)
class Taken:
    """How a step went when it was taken last: its words, its time, its largest process.

    Of steps that were taken together, its share of the time.
    """

    output: str
    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class _Record:
    command: list[str]
    tools: str
    inputs: dict[str, str]
    taken: Taken


def listed_inputs(text: str) -> list[Path]:
    """What a rule in the format of make depends on."""
    _, _, names = text.replace("\\\n", " ").partition(": ")
    found = re.findall(r"(?:\\.|\S)+", names)
    return [Path(re.sub(r"\\(.)", r"\1", name)) for name in found]


def write_depfile(path: Path, output: Path, inputs: Iterable[Path]) -> None:
    """A rule in the format of make, of an output and what it depends on."""
    names = (re.sub(r"([ \\])", r"\\\1", str(name)) for name in (output, *inputs))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{next(names)} : " + " \\\n    ".join(names) + "\n")


@cache
def _hash_of_version(path: str, modified_ns: int, size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _hash(path: Path) -> str | None:
    """The hash of a file; None where there is none."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return _hash_of_version(str(path), state.st_mtime_ns, state.st_size)


def _read(record: Path) -> _Record | None:
    try:
        fields = json.loads(record.read_text())
    except FileNotFoundError:
        return None
    return _Record(**fields | {"taken": Taken(**fields["taken"])})


def _holds(record: _Record, step: Step) -> bool:
    return (
        record.command == list(step.command)
        and record.tools == step.tools
        and all(output.is_file() for output in step.outputs)
        and all(_hash(Path(path)) == known for path, known in record.inputs.items())
    )


def _run(command: Sequence[str]) -> Taken:
    with tempfile.TemporaryFile("w+") as log:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        # wait4 counts the children that nvcc has waited for, hence cicc and ptxas.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read()
    if process.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{output}")
    return Taken(output, seconds, usage.ru_maxrss * 1024)


def last_taken(step: Step, record_path: Path) -> Taken | None:
    """How a step went whose outputs are up to date; None where it is to be taken."""
    record = _read(record_path)
    return record.taken if record is not None and _holds(record, step) else None


def _note(step: Step, record_path: Path, taken: Taken, start_ns: int) -> None:
    """Record a step that has been taken since ``start_ns``."""
    paths = list(step.inputs)
    if step.depfile is not None:
        paths += listed_inputs(step.depfile.read_text())
    # What has changed meanwhile may have been read before or after: next time, then.
    if all(path.stat().st_mtime_ns <= start_ns for path in paths):
        inputs = {str(path): _hash(path) or "" for path in paths}
        record = _Record(list(step.command), step.tools, inputs, taken)
        record_path.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n")


def take(step: Step, record_path: Path) -> Taken:
    """Have the outputs of a step up to date; how it went when it was taken last.

    Raises ``CompileError`` if its command fails.
    """
    taken = last_taken(step, record_path)
    if taken is None:
        record_path.unlink(missing_ok=True)
        start_ns = time.time_ns()
        taken = _run(step.command)
        _note(step, record_path, taken, start_ns)
    return taken


def take_together(
    steps: Mapping[Path, Step], command: Sequence[str], hand_out: Callable[[], None]
) -> None:
    """Take steps, by where their records go, by one command in place of theirs.

    ``hand_out`` makes their outputs, and what they read, of what the command has made.
    Raises ``CompileError`` if the command fails.
    """
    for record_path in steps:
        record_path.unlink(missing_ok=True)
    start_ns = time.time_ns()
    taken = _run(command)
    hand_out()
    share = dataclasses.replace(taken, seconds=taken.seconds / len(steps))
    for record_path, step in steps.items():
        _note(step, record_path, share, start_ns)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other builds out of a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
