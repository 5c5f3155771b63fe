"""A program that stands in for nvcc: it notes how it is called and writes what it is told to."""

from __future__ import annotations

from pathlib import Path

from tools.nvcc.toolchain import Toolchain

# The file after -o holds what is compiled, and nvcc's --keep leaves the PTX beside it.
COMPILES = """
while [ $# -gt 0 ]; do
  case $1 in
    -o) output=$2;; -MF) depfile=$2;; *.cu) source=$1;; --keep-dir) kept=$2;;
  esac
  shift
done
cat {directory}/words
: > $output
if [ -n "$depfile" ]; then
  echo "$output : $source \\\\\n    {directory}/header.h" > $depfile
  name=$(basename $source .cu)
  case $output in *.ptx) cp {directory}/ptx $output;; esac
  if [ -n "$kept" ]; then
    cp {directory}/ptx $kept/$name.ptx
    : > $kept/$name.cudafe1.cpp
  fi
fi
"""


def make_toolchain(directory: Path, script: str = COMPILES, version: str = "13.0") -> Toolchain:
    """It reads ``ptx``, ``words`` and ``header.h`` in ``directory``, and adds to ``calls``."""
    compiler = directory / "nvcc"
    body = script.replace("{directory}", str(directory))
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {directory}/calls\n{body}')
    compiler.chmod(0o755)
    for name in ("ptx", "words", "header.h", "calls"):
        (directory / name).touch()
    return Toolchain(compiler, version, "g++", "g++ 12.2")


def calls(directory: Path) -> list[str]:
    """The arguments of each call so far, without the host compiler."""
    lines = (directory / "calls").read_text().splitlines()
    return [line.removeprefix("-ccbin g++ ") for line in lines]
