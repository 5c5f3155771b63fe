"""`python -m tools.gpu_tune`; see the package's docstring."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.environments import ROOT
from tools.gpu_report.build import BuildError, Recipe, build
from tools.gpu_tune import trees
from tools.gpu_tune.candidates import TILES
from tools.gpu_tune.trees import Kernel, TileError

AS_BUILT = "as it is"


@dataclass
class Entry:
    """A tile, and how far it came: `fault` says why it has no times."""

    name: str
    tile: str | None  # None: as the headers have it
    tree: Path
    words: str = ""
    fault: str = ""
    flops: float = 0.0
    seconds: list[float] = field(default_factory=list)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_tune",
        description="Compiles a kernel with several tiles, and times them on this machine's GPU.",
    )
    parser.add_argument("kernel", help="such as fwd_hd128_plain")
    parser.add_argument(
        "--tile", action="append", default=[], metavar="NAME=FIELDS", help="one more tile"
    )
    parser.add_argument("--device", choices=("cuda", "emulated"), default="cuda")
    parser.add_argument("--seqlen", type=int, default=4096)
    parser.add_argument("--mask", choices=("full", "causal"), default="full")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cutlass", type=Path, help="folder of CUTLASS's headers")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu-tune")
    parser.add_argument("--output", type=Path, help="a JSON file of every sample")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """0 where at least one tile has times; 2 for what is no kernel or tile."""
    given = parse(arguments)
    try:
        kernel = Kernel.of(given.kernel)
        if kernel.variant != "Plain" or kernel.is_small:
            raise TileError(f"{kernel.name}: only plain kernels with regular tiles are timed")
        entries = entries_of(kernel, given.tile, given.folder)
    except TileError as error:
        print(error, file=sys.stderr)
        return 2
    for entry in entries:
        prepare(entry, kernel, given)
    race([entry for entry in entries if not entry.fault], kernel, given)
    print(table(kernel, entries, given.device))
    if given.output:
        given.output.write_text(json.dumps(record(kernel, entries, given), indent=1) + "\n")
    return 0 if any(entry.seconds for entry in entries) else 1


def entries_of(kernel: Kernel, more: Sequence[str], folder: Path) -> list[Entry]:
    """The tile that is built, those of `candidates`, and those given. TileError for a bad one."""
    named: dict[str, str | None] = {AS_BUILT: None, **TILES.get(kernel.name, {})}
    for text in more:
        name, equals, fields = text.partition("=")
        if not equals or not name:
            raise TileError(f"--tile {text!r} is not NAME=FIELDS")
        named[name] = fields
    for tile in named.values():
        if tile is not None:
            kernel.initializer(tile)
    return [
        Entry(name, tile, folder / kernel.name / re.sub(r"\W+", "-", name))
        for name, tile in named.items()
    ]


def prepare(entry: Entry, kernel: Kernel, given: argparse.Namespace) -> None:
    """Its tree and, for a GPU, its module."""
    try:
        trees.make(kernel, entry.tile, entry.tree)
        with tempfile.TemporaryDirectory() as scratch:
            entry.words = trees.describe(kernel, entry.tree, Path(scratch))
        if given.device == "cuda":
            recipe = Recipe(
                architecture(),
                entry.tree / "build",
                entry.tree / "flash_attn2",
                given.cutlass,
                str(kernel.bucket),
                source=entry.tree,
                target="_cuda",
            )
            build(recipe, entry.tree / "build.log")
    except (TileError, BuildError) as error:
        entry.fault = str(error)


def architecture() -> str:
    """Of this machine's GPU, by a child: this process leaves the GPU to those that measure."""
    code = "import torch; print('%d%d' % torch.cuda.get_device_capability())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"torch sees no GPU:\n{done.stderr}")
    return done.stdout.strip()


def race(entries: Sequence[Entry], kernel: Kernel, given: argparse.Namespace) -> None:
    """All of them in turns."""
    children = {entry.name: start(entry, kernel, given) for entry in entries}
    try:
        for entry in entries:
            if (first := answer(entry, children[entry.name])) is not None:
                entry.flops = first["flops"]
                entry.fault = "" if first["right"] else "its results are wrong"
        for _ in range(given.rounds):
            for entry in entries:
                if entry.fault:
                    continue
                child = children[entry.name]
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
                if (line := answer(entry, child)) is not None:
                    entry.seconds.append(line["seconds"])
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def start(entry: Entry, kernel: Kernel, given: argparse.Namespace) -> subprocess.Popen[str]:
    emulated = given.device == "emulated"
    folder = ROOT if emulated else entry.tree
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(folder)}
    environment = {**environment, "FLASH_ATTN2_CUDA_FAMILY": "sm80"}  # whose tiles these are
    if emulated:
        environment = {**environment, "FLASH_ATTN2_BACKEND": "sm80-emulated"}
    command = [sys.executable, "-m", "tools.gpu_tune.worker", kernel.kind, str(kernel.bucket)]
    command += [str(given.seqlen), given.mask, "--device", "cpu" if emulated else "cuda"]
    with (entry.tree / "worker.log").open("w") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env=environment,
        )


def answer(entry: Entry, child: subprocess.Popen[str]) -> dict[str, Any] | None:
    """The next line of a worker; None, and a fault of the entry, where it has died."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if line:
        found: dict[str, Any] = json.loads(line)
        return found
    said = (entry.tree / "worker.log").read_text().splitlines()
    entry.fault = f"its process ended: {said[-1] if said else 'without a word'}"
    return None


def table(kernel: Kernel, entries: Sequence[Entry], device: str) -> str:
    """A line for each tile, the fastest first."""
    lines = [f"{kernel.name}, median of {len(entries[0].seconds)} rounds"]
    if device == "emulated":
        lines.append(
            "No GPU: the kernel emulator ran the built tile each time; times mean nothing."
        )
    done = [entry for entry in entries if entry.seconds]
    for entry in sorted(done, key=lambda entry: statistics.median(entry.seconds)):
        median = statistics.median(entry.seconds)
        rate = f"{entry.flops / median / 1e12:8.1f} TFLOP/s" if device == "cuda" else ""
        lines.append(f"{entry.name:<24} {median * 1e6:10.1f} µs {rate}  {entry.words}")
    for entry in entries:
        if entry.fault:
            lines.append(f"{entry.name:<24} {entry.fault}")
    return "\n".join(lines)


def record(kernel: Kernel, entries: Sequence[Entry], given: argparse.Namespace) -> dict[str, Any]:
    return {
        "kernel": kernel.name,
        "device": given.device,
        "seqlen": given.seqlen,
        "mask": given.mask,
        "tiles": [
            {
                "name": entry.name,
                "tile": entry.tile,
                "words": entry.words,
                "fault": entry.fault,
                "flops": entry.flops,
                "seconds": entry.seconds,
            }
            for entry in entries
        ],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
