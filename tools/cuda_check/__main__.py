"""Compile every CUDA kernel and check its machine code; no GPU is needed.

Leaves ``build/cuda-check/report.json``, prints a table, and exits with status 1 if a kernel breaks
one of the rules in ``limits.py``. What is compiled lies in ``build/nvcc`` (``tools/nvcc``), and
serves again where nothing has changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools import third_party
from tools.cuda_check import listing
from tools.cuda_check.compiler import Compilation, Unreadable, compile_units
from tools.cuda_check.limits import serves, violations
from tools.cuda_check.loops import main_loops
from tools.cuda_check.report import KernelReport, LoopReport, table
from tools.cuda_check.sass import parse
from tools.nvcc.instances import Instances, generate_instances
from tools.nvcc.steps import CompileError
from tools.nvcc.toolchain import Toolchain, ToolchainError, find_or_fetch, find_toolchain
from tools.nvcc.units import instance_of

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Tools:
    toolchain: Toolchain
    cuobjdump: Path


def check_group(
    tools: Tools, asked: dict[Path, list[str]], folder: Path, flags: tuple[str, ...]
) -> tuple[list[KernelReport], list[str]]:
    """Compile units, each for its architectures, together; report on their kernels, and say which
    could not be read."""
    served = {unit: archs for unit, archs in asked.items() if archs}
    reports: list[KernelReport] = []
    failures: list[str] = []
    if not served:
        return reports, failures
    for unit, found in compile_units(tools.toolchain, served, folder, flags):
        if isinstance(found, Unreadable):
            failures.append(f"{unit} for sm_{found.arch}: {found.reason}")
        else:
            reports += reports_of(tools, unit, found)
    return reports, failures


def reports_of(tools: Tools, unit: str, compilation: Compilation) -> list[KernelReport]:
    text = listing.disassemble(tools.cuobjdump, compilation.cubin)
    kernels = list(parse(text.splitlines()))
    names = listing.demangle([kernel.name for kernel in kernels])
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
            register_shares=compilation.register_shares.get(kernel.name),
        )
        for kernel, name in zip(kernels, names, strict=True)
        if kernel.name in compilation.resources
    ]


def archs_of(instances: Instances, source: Path, asked: list[str]) -> list[str]:
    """The architectures that a unit serves: its family's own, or of those that are asked for."""
    own = instances.arch_of.get(source.parent.name)
    if own is not None:
        return [own] if own.rstrip("a") in asked else []
    return [arch for arch in asked if serves(source.stem, arch)]


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
    parser.add_argument(
        "--units", type=Path, default=ROOT / "build" / "nvcc", help="where what is compiled lies"
    )
    arguments = parser.parse_args()

    output_dir, units = arguments.output.resolve(), arguments.units.resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    third_party.main(["cutlass"])
    try:
        tools = Tools(find_toolchain(), find_or_fetch("cuobjdump"))
    except ToolchainError as error:
        parser.exit(1, f"{error}\n")
    instances = generate_instances(units, arguments.filter)
    start = time.monotonic()
    reports: list[KernelReport] = []
    failures: list[str] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        pending = [
            pool.submit(check_group, tools, archs, units, instances.flags)
            for group in instances.groups
            for archs in [{unit: archs_of(instances, unit, arguments.archs) for unit in group}]
        ]
        for done, future in enumerate(pending, start=1):
            try:
                of_group, unreadable = future.result()
                reports += of_group
                failures += unreadable
            except CompileError as error:
                failures.append(str(error))
            if sys.stderr.isatty():
                print(
                    f"\r{done} of {len(pending)} groups compiled",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for report in reports:
        failures += violations(report)

    version = tools.toolchain.nvcc_version
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
