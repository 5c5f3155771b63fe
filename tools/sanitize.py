"""Tests and fuzzer of the CPU family under sanitizers: `make sanitize`, `make sanitize-short`.

Builds the CPU module with AddressSanitizer and UndefinedBehaviorSanitizer, or with ThreadSanitizer,
into build/sanitize-<kind>, beside links to the package's Python files, and runs it there. The first
report ends the process that caused it, and so fails its test.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
KINDS = ("address", "thread")
RUNTIMES = {"address": ("libasan.so", "libstdc++.so.6"), "thread": ("libtsan.so",)}
OPTIONS = {
    "address": {
        # Python's and torch's leaks are not ours; torch mixes new with free.
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    },
    "thread": {
        "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1:"
        f"suppressions={TESTS / 'sanitize' / 'thread.supp'}",
    },
}
# Without the emulator and what is about Python alone. ThreadSanitizer sees neither the GIL nor the
# allocator through which threads of Python hand memory to each other; and sequences that overlap,
# as hostile lengths make them, do write the same rows.
SELECTION = {
    "address": "not emulated and not compile and not cuda",
    "thread": "not emulated and not compile and not cuda and not concurrent and not gil "
    "and not hostile",
}
FUZZ: dict[str, tuple[str, ...]] = {"address": (), "thread": ("--no-hostile",)}
SHORT_FILES = (
    "attention/test_forward.py",
    "kvcache/test_kvcache.py",
    "call/test_threads.py",
    "fuzz/test_hostile.py",
)
LONG_FILES = (
    *SHORT_FILES,
    "attention/test_backward.py",
    "attention/test_dropout.py",
    "call/test_isa.py",
    "kvcache/test_kvcache_splits.py",
    "attention/test_nan_inf.py",
    "call/test_direct_calls.py",
    "attention/test_properties.py",
    "attention/test_varlen.py",
    "attention/test_varlen_backward.py",
    "attention/test_varlen_paged.py",
)


def build(kind: str, jobs: int) -> Path:
    """The directory whose flash_attn2 has the instrumented module."""
    directory = ROOT / "build" / f"sanitize-{kind}"
    package = directory / "flash_attn2"
    link_package(package)
    tools = Path(sys.executable).parent
    configure: list[str | Path] = [
        tools / "cmake",
        "-S",
        ROOT,
        "-B",
        directory / "cmake",
        "-G",
        "Ninja",
    ]
    configure += [
        "--log-level=NOTICE",
        f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DFLASH_ATTN2_SANITIZE={kind}",
        f"-DFLASH_ATTN2_OUTPUT_DIR={package}",
        "-DFLASH_ATTN2_CUDA=off",
        # With assertions, and quickly compiled.
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1",
    ]
    subprocess.run(configure, check=True)
    command: list[str | Path] = [
        tools / "cmake",
        "--build",
        directory / "cmake",
        "--parallel",
        str(jobs),
    ]
    subprocess.run([*command, "--target", "_cpu"], check=True)
    return directory


def link_package(package: Path) -> None:
    """Python files as they are in the checkout."""
    package.mkdir(parents=True, exist_ok=True)
    for link in package.iterdir():
        if link.is_symlink():
            link.unlink()
    for source in (ROOT / "flash_attn2").iterdir():
        if source.suffix == ".py" or (source.is_dir() and source.name != "__pycache__"):
            (package / source.name).symlink_to(source)


def environment(kind: str, directory: Path) -> dict[str, str]:
    """Of a Python that has the sanitizer's runtime from the start."""
    compiler = os.environ.get("CXX", "c++")
    libraries = []
    for name in RUNTIMES[kind]:
        query = [compiler, f"-print-file-name={name}"]
        path = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
        if not Path(path).is_absolute():
            raise FileNotFoundError(f"{compiler} has no {name}")
        libraries.append(path)
    return {
        **os.environ,
        **OPTIONS[kind],
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": f"{directory}{os.pathsep}{TESTS}",
        "FLASH_ATTN2_BACKEND": "cpu",
    }


def python(kind: str) -> list[str]:
    """ThreadSanitizer wants memory to lie where it expects it."""
    setarch = shutil.which("setarch") if kind == "thread" else None
    return [*([setarch, platform.machine(), "-R"] if setarch else []), sys.executable]


def run(kind: str, short: bool, jobs: int) -> None:
    directory = build(kind, jobs)
    begin = time.monotonic()
    base, variables = python(kind), environment(kind, directory)

    def step(*command: str) -> None:
        print(f"[sanitize] {kind}: {' '.join(command)}", flush=True)
        subprocess.run([*base, *command], check=True, cwd=TESTS, env=variables)

    step("sanitize/check_module.py", kind)
    problems = "200" if short else "5000"
    step("-m", "fuzz", "--no-shrink", "--problems", problems, "--seed", "1", *FUZZ[kind])
    files = SHORT_FILES if short else LONG_FILES
    pytest = [str(Path(sys.executable).parent / "pytest"), "-q", "-n", str(jobs)]
    step(*pytest, "-k", SELECTION[kind], *files)
    print(f"[sanitize] {kind}: no report, {time.monotonic() - begin:.0f} s", flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="address|thread")
    parser.add_argument("--short", action="store_true", help="a selection of a few minutes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    for kind in options.kinds:
        run(kind, options.short, options.jobs)


if __name__ == "__main__":
    main(sys.argv[1:])
