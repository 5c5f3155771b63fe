"""Compile every CUDA kernel and check its machine code; no GPU is needed.

Leaves ``build/cuda-check/*.cubin`` and ``build/cuda-check/report.json``, prints a table, and exits
with status 1 if a kernel breaks one of the rules in ``limits.py``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools import third_party
from tools.cuda_check import toolchain
from tools.cuda_check.compiler import Compilation, CompileError, compile_unit
from tools.cuda_check.limits import violations
from tools.cuda_check.loops import main_loops
from tools.cuda_check.report import KernelReport, LoopReport, table
from tools.cuda_check.sass import parse
from tools.cuda_check.units import instance_of

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Tools:
    nvcc: Path
    cuobjdump: Path


@dataclass(frozen=True)
class Instances:
    """The generated translation units and how to compile them."""

    sources: tuple[Path, ...]
    flags: tuple[str, ...]


def generate_instances(output_dir: Path, name_filter: str) -> Instances:
    """Have CMake write the translation units; keep those whose name holds ``name_filter``."""
    script = ROOT / "cmake" / "list_instances.cmake"
    cmake = [sys.executable, "-m", "cmake"]
    subprocess.run([*cmake, f"-DOUTPUT_DIR={output_dir}", "-P", script], check=True)
    lines = [line.split(" ", 1) for line in (output_dir / "instances.txt").read_text().splitlines()]
    sources = [Path(value) for kind, value in lines if kind == "source"]
    flags = [value for kind, value in lines if kind == "flag"]
    flags += [f"-I{ROOT / 'csrc'}", f"-isystem={third_party.THIRD_PARTY / 'cutlass' / 'include'}"]
    kept = tuple(source for source in sources if name_filter in source.stem)
    return Instances(kept, tuple(flags))


def check_unit(
    tools: Tools, source: Path, archs: list[str], output_dir: Path, flags: tuple[str, ...]
) -> list[KernelReport]:
    """Compile one translation unit for each architecture and report on its kernels."""
    return [
        report
        for compilation in compile_unit(tools.nvcc, source, archs, output_dir, flags)
        for report in reports_of(tools, source.stem, compilation)
    ]


def reports_of(tools: Tools, unit: str, compilation: Compilation) -> list[KernelReport]:
    listing = toolchain.disassemble(tools.cuobjdump, compilation.cubin)
    kernels = list(parse(listing.splitlines()))
    names = toolchain.demangle([kernel.name for kernel in kernels])
    return [
        KernelReport(
            instance=instance_of(unit, name),
            arch=compilation.arch,
            name=name,
            shared_bytes=compilation.shared_bytes,
            resources=compilation.resources[kernel.name],
            main_loops=tuple(LoopReport.of(loop) for loop in main_loops(kernel)),
            compile_seconds=round(compilation.seconds, 2),
            compiler_peak_bytes=compilation.peak_rss_bytes,
        )
        for kernel, name in zip(kernels, names, strict=True)
        if kernel.name in compilation.resources
    ]


def architecture(text: str) -> str:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability such as 80 or 90")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.cuda_check", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument(
        "--archs",
        nargs="+",
        type=architecture,
        default=["80", "90"],
        metavar="ARCH",
        help="compute capabilities, such as 80 90",
    )
    parser.add_argument("--filter", default="", help="only instances whose name holds this")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "cuda-check")
    arguments = parser.parse_args()

    output_dir = arguments.output.resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    third_party.main(["cutlass"])
    tools = Tools(toolchain.find_or_fetch("nvcc"), toolchain.find_or_fetch("cuobjdump"))
    instances = generate_instances(output_dir, arguments.filter)
    start = time.monotonic()
    reports: list[KernelReport] = []
    failures: list[str] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        pending = [
            pool.submit(check_unit, tools, source, arguments.archs, output_dir, instances.flags)
            for source in instances.sources
        ]
        for done, future in enumerate(pending, start=1):
            try:
                reports += future.result()
            except CompileError as error:
                failures.append(str(error))
            if sys.stderr.isatty():
                print(f"\r{done} of {len(pending)} compiled", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for report in reports:
        failures += violations(report)

    version = toolchain.nvcc_version(tools.nvcc)
    result = {
        "nvcc": version,
        "seconds": round(time.monotonic() - start, 1),
        "kernels": [report.to_json() for report in reports],
        "failures": failures,
    }
    (output_dir / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(reports))
    for failure in failures:
        print(f"FAILED {failure}")
    print(
        f"{len(reports)} kernels, nvcc {version}, {result['seconds']} s, {len(failures)} failures"
    )
    return 1 if failures or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
