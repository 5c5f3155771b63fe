"""A tree with the sources in which one kernel has another tile."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.environments import ROOT
from tools.nvcc.toolchain import host_compiler

_KERNEL = re.compile(r"(fwd|bwd)_hd(\d+)_([a-z]+)(_small)?")
_VARIANTS = ("Plain", "Modified", "Dropout", "Listed", "ListedDropout")
_HEADERS = {"fwd": "sm80/tiles.h", "bwd": "sm80/backward/tiles.h"}
_FIELDS = {"fwd": (6, 7), "bwd": (9, 9)}  # how many, after the head dims
_COPIED = ("csrc", "cmake", "tools", "flash_attn2", "CMakeLists.txt")


class TileError(Exception):
    """A tile or a kernel is not such; the message says how, or what the compiler says."""


@dataclass(frozen=True)
class Kernel:
    """One entry of csrc/instances.cmake, whatever its elements."""

    name: str
    kind: str
    bucket: int
    variant: str
    is_small: bool

    @staticmethod
    def of(name: str) -> Kernel:
        """TileError for what is no forward or backward kernel."""
        found = _KERNEL.fullmatch(name)
        variants = {variant.lower(): variant for variant in _VARIANTS}
        if found is None or found[3] not in variants:
            raise TileError(f"{name!r} is no kernel such as fwd_hd128_plain or bwd_hd64_listed")
        return Kernel(name, found[1], int(found[2]), variants[found[3]], found[4] is not None)

    @property
    def header(self) -> str:
        return _HEADERS[self.kind]

    def initializer(self, tile: str) -> str:
        """Of the C++ struct. TileError where the fields are not so many numbers and bools."""
        fields = [field.strip() for field in tile.split(",")]
        fewest, most = _FIELDS[self.kind]
        if not fewest <= len(fields) <= most:
            raise TileError(f"a tile of {self.name} has {fewest} fields, got {tile!r}")
        for field in fields:
            if not re.fullmatch(r"\d+|true|false", field):
                raise TileError(f"{field!r} in {tile!r} is no number, true or false")
        dim = str(self.bucket)  # of queries and keys, and that of values
        whole = [dim, dim, *fields] if self.kind == "fwd" else [dim, *fields, dim]
        return "{" + ", ".join(whole) + "}"


def with_tile(header: str, kernel: Kernel, tile: str) -> str:
    """The text of the kernel's header, in which it has that tile whatever else is said of it."""
    function = re.compile(
        rf"^constexpr \w+ {kernel.kind}_tile\(Bucket bucket, Variant variant, bool small\) \{{\n",
        re.MULTILINE,
    )
    found = function.search(header)
    if found is None:
        raise TileError(f"no {kernel.kind}_tile in {kernel.header}")
    small = "small" if kernel.is_small else "!small"
    condition = f"bucket == {kernel.bucket} && variant == Variant::k{kernel.variant} && {small}"
    line = f"  if ({condition}) return {kernel.initializer(tile)};\n"
    return header[: found.end()] + line + header[found.end() :]


def make(kernel: Kernel, tile: str | None, tree: Path) -> None:
    """Writes the tree, where it is there but for what was compiled. None: the tile as it is."""
    tree.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        copy(ROOT / name, tree / name)
    if tile is not None:
        header = tree / "csrc" / kernel.header
        header.write_text(with_tile(header.read_text(), kernel, tile))


def copy(source: Path, target: Path) -> None:
    if not source.is_dir():
        shutil.copy2(source, target)
        return
    ignored = shutil.ignore_patterns("__pycache__", "_cuda*.so", "*_emulated*.so")
    shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)


_PROBE = """
#include <cstdio>
#include "{header}"
int main() {{
  constexpr auto tile = fa2::sm80::{kind}_tile({bucket}, fa2::sm80::Variant::k{variant}, {small});
  std::printf("%dx%d keys and queries, %d threads, %d CTAs", {sizes}, tile.threads(),
              tile.ctas_per_sm);
}}
"""


def describe(kernel: Kernel, tree: Path, scratch: Path) -> str:
    """The tile that the kernel has in the tree, as the compiler sees it. TileError if it does not
    compile."""
    sizes = "tile.block_n, tile.block_m"
    text = _PROBE.format(
        header=kernel.header,
        kind=kernel.kind,
        bucket=kernel.bucket,
        variant=kernel.variant,
        small="true" if kernel.is_small else "false",
        sizes=sizes,
    )
    source, program = scratch / "tile.cpp", scratch / "tile"
    source.write_text(text)
    command = [host_compiler(), "-std=c++20", f"-I{tree / 'csrc'}", str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TileError(f"it does not compile:\n{done.stderr}")
    return subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
