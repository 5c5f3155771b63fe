"""Wheels for release, into dist/: `make wheel`.

One for each supported interpreter of this machine, or for those that are named; with the CUDA
module unless FLASH_ATTN2_CUDA=off. They are built to run on older systems than this one
(cmake/Portable.cmake), tagged by auditwheel, and each is installed into an environment of its own
and called there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from tools.environments import ROOT
from tools.wheel import build, check, interpreters, symbols
from tools.wheel.interpreters import Interpreter


def make(interpreter: Interpreter, options: argparse.Namespace) -> Path:
    """One wheel, checked."""
    begin = time.monotonic()
    built = build.build(interpreter, options.cuda, options.jobs)
    wheel = build.repair(built, options.platform, options.target)
    check.contents(wheel, cuda=options.cuda == "on")
    print(f"[wheel] {wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
    for line in symbols.binding(symbols.needs(build.unpacked(wheel))):
        print(f"[wheel]   {line}")
    if not options.no_run:
        check.runs(wheel, interpreter, build.WORK / interpreter.tag / "check")
    print(f"[wheel] {interpreter.tag}: {time.monotonic() - begin:.0f} s", flush=True)
    return wheel


def chosen(paths: list[Path]) -> list[Interpreter]:
    """The interpreters of these paths, or all that there are. SystemExit where there is none."""
    try:
        found = [interpreters.ask(path) for path in paths] or interpreters.find()
    except interpreters.UnusableError as error:
        sys.exit(str(error))
    if not found:
        sys.exit(f"There is no CPython {interpreters.supported()} with headers here.")
    if not paths:
        missing = set(interpreters.SUPPORTED) - {x.version for x in found}
        for version in sorted(missing):
            print("[wheel] no CPython {}.{} with headers here: no wheel".format(*version))
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("python", nargs="*", type=Path, help="interpreters; all that are found")
    parser.add_argument("--platform", default="manylinux_2_28_x86_64", help="or auto: the oldest")
    parser.add_argument("--target", type=Path, default=ROOT / "dist", help="a folder")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at once")
    parser.add_argument("--no-run", action="store_true", help="do not install and call them")
    options = parser.parse_args(arguments)
    options.cuda = os.environ.get("FLASH_ATTN2_CUDA", "on")
    if options.cuda not in ("on", "off"):
        sys.exit(f"FLASH_ATTN2_CUDA is '{options.cuda}': a wheel is made with on or off")
    try:
        for interpreter in chosen(options.python):
            make(interpreter, options)
    except (build.PlatformError, check.WheelError) as error:
        sys.exit(f"[wheel] {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
