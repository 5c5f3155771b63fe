"""Fetch pinned third-party headers and compilers into ``third_party/``.

Usage: ``python tools/third_party.py COMPONENT...`` with components

* ``cutlass``: the CUTLASS and CuTe headers, into ``third_party/cutlass/include``;
* ``cuda-headers``: CUDA's own headers, ``third_party/cuda/include``;
* ``nvcc``: a compiler beside them, so that ``third_party/cuda`` serves as a CUDA toolkit;
* ``cuobjdump``: the disassembler, ``third_party/cuda/bin/cuobjdump``.

Everything comes from wheels on the package index that pip is configured for. They are unpacked, not
installed: the environment stays as it is, and their Python dependencies are not needed. What is
there already, at the right version, is not fetched again. Needs Python's standard library and pip.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

THIRD_PARTY = Path(__file__).resolve().parent.parent / "third_party"


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel: files below ``prefix`` are unpacked into ``target``."""

    requirement: str
    prefix: str
    target: str


def _cuda(name: str, version: str) -> Wheel:
    return Wheel(f"{name}=={version}", "nvidia/cu13/", "cuda")


_CUDA_HEADERS = (
    _cuda("nvidia-cuda-crt", "13.0.88"),
    _cuda("nvidia-cuda-runtime", "13.0.96"),
    _cuda("nvidia-cuda-cccl", "13.0.85"),
)

COMPONENTS: dict[str, tuple[Wheel, ...]] = {
    "cutlass": (
        Wheel("nvidia-cutlass==4.2.0.0", "cutlass_library/source/include/", "cutlass/include"),
    ),
    "cuda-headers": _CUDA_HEADERS,
    "nvcc": (
        *_CUDA_HEADERS,
        _cuda("nvidia-cuda-nvcc", "13.0.88"),
        _cuda("nvidia-nvvm", "13.0.88"),
    ),
    # The disassembler is on the index from 13.2 on; it reads older machine code.
    "cuobjdump": (
        _cuda("nvidia-cuda-cuobjdump", "13.2.51"),
        _cuda("nvidia-cuda-nvdisasm", "13.2.51"),
    ),
}


def unpack(archive: Path, prefix: str, destination: Path) -> int:
    """Unpack the archive's files below ``prefix`` into ``destination``; return how many.

    Executable bits are kept. Raises ``ValueError`` if a name leads out of ``destination``.
    """
    count = 0
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.infolist():
            if member.is_dir() or not member.filename.startswith(prefix):
                continue
            relative = PurePosixPath(member.filename[len(prefix) :])
            if relative.is_absolute() or ".." in relative.parts:
                raise ValueError(f"{archive.name} holds an unsafe name: {member.filename}")
            path = destination / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wheel.read(member))
            path.chmod(0o755 if (member.external_attr >> 16) & 0o100 else 0o644)
            count += 1
    return count


def download(requirement: str, directory: Path) -> Path:
    """Download one wheel with pip into the empty ``directory``; return its path."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    pip += ["--no-deps", "--only-binary=:all:", "--dest", str(directory), requirement]
    subprocess.run(pip, check=True, stdout=sys.stderr)
    (wheel,) = directory.glob("*.whl")
    return wheel


def fetch(wheel: Wheel, root: Path = THIRD_PARTY) -> None:
    """Make the files of one wheel present below ``root``."""
    target = root / wheel.target
    stamp = target / ".fetched" / wheel.requirement
    if stamp.exists():
        return
    print(f"Fetching {wheel.requirement}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        archive = download(wheel.requirement, Path(scratch))
        if unpack(archive, wheel.prefix, target) == 0:
            raise ValueError(f"{archive.name} holds nothing below {wheel.prefix}")
    # nvcc's linker looks in lib64; those wheels that have libraries have lib.
    if wheel.target == "cuda" and (target / "lib").is_dir() and not (target / "lib64").exists():
        (target / "lib64").symlink_to("lib")
    stamp.parent.mkdir(exist_ok=True)
    stamp.touch()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("components", nargs="+", choices=sorted(COMPONENTS), metavar="COMPONENT")
    for component in parser.parse_args(arguments).components:
        for wheel in COMPONENTS[component]:
            fetch(wheel)


if __name__ == "__main__":
    main(sys.argv[1:])
