"""nvcc and the host compiler that it calls: those of the machine, else a fetched nvcc.

    python -m tools.nvcc.toolchain

prints the path of the machine's own nvcc, or nothing where there is none: CMake asks here, too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools import third_party


class ToolchainError(Exception):
    """There is no nvcc, or none that works with the host compiler; the message says which."""


@dataclass(frozen=True)
class Toolchain:
    """An nvcc with the host compiler that it is told to call."""

    nvcc: Path
    nvcc_version: str
    host_compiler: str
    host_version: str

    @property
    def identity(self) -> str:
        """What results depend on: the versions of both."""
        return f"nvcc {self.nvcc_version} with {self.host_version}"

    def command(self, *arguments: str | Path) -> list[str]:
        return [str(self.nvcc), "-ccbin", self.host_compiler, *map(str, arguments)]


def find_own(tool: str) -> Path | None:
    """Path of a program of the machine's own CUDA toolkit."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    on_path = shutil.which(tool)
    candidates = [Path(root, "bin", tool) for root in roots if root]
    candidates += [Path(on_path)] if on_path else []
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def find(tool: str) -> Path | None:
    """The same, else the one that has been fetched."""
    fetched = third_party.THIRD_PARTY / "cuda" / "bin" / tool
    return find_own(tool) or (fetched if os.access(fetched, os.X_OK) else None)


def find_or_fetch(tool: str) -> Path:
    """Path of ``nvcc`` or ``cuobjdump``, of the machine or of ``third_party``."""
    if find(tool) is None:
        try:
            third_party.main([tool])
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise ToolchainError(f"no {tool} on this machine, nor to be fetched: {error}") from None
    path = find(tool)
    if path is None:
        raise ToolchainError(f"no {tool} on this machine, and the fetched one is not executable")
    return path


def nvcc_version(nvcc: Path) -> str:
    """The version, such as ``13.0.88``."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+(?:\.\d+)+)", text)
    return found[1] if found else "unknown"


def host_compiler() -> str:
    """The host compiler for nvcc, by the variables that CMake and nvcc have for it."""
    return os.environ.get("CUDAHOSTCXX") or os.environ.get("NVCC_CCBIN") or "g++"


def accepted_versions(host_config: str) -> dict[str, int]:
    """The newest host compilers that nvcc takes, read from its ``crt/host_config.h``."""
    newest = {}
    if found := re.search(r"#if __GNUC__ > (\d+)", host_config):
        newest["g++"] = int(found[1])
    if found := re.search(r"#if \(__clang_major__ >= (\d+)\)", host_config):
        newest["clang++"] = int(found[1]) - 1
    return newest


def _accepted(nvcc: Path) -> str:
    """The same in words."""
    header = nvcc.resolve().parent.parent / "include" / "crt" / "host_config.h"
    versions = accepted_versions(header.read_text()) if header.is_file() else {}
    words = [f"{name} up to {newest}" for name, newest in versions.items()]
    return f"it takes {' and '.join(words)}; " if words else ""


def _host_version(compiler: str) -> str:
    if shutil.which(compiler) is None:
        raise ToolchainError(f"no host compiler {compiler!r}; CUDAHOSTCXX names another")
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.partition("\n")[0]


def check_host_compiler(toolchain: Toolchain) -> None:
    """Raise ``ToolchainError`` unless nvcc compiles C++20 with the host compiler."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.cu")
        source.write_text("template <class T> concept Any = true;\n__global__ void probe() {}\n")
        command = toolchain.command("-std=c++20", "-c", source, "-o", Path(scratch, "probe.o"))
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ToolchainError(
            f"nvcc {toolchain.nvcc_version} ({toolchain.nvcc}) cannot compile C++20 with "
            f"{toolchain.host_compiler}, {toolchain.host_version}: {_accepted(toolchain.nvcc)}"
            f"CUDAHOSTCXX names another host compiler. nvcc says:\n{done.stdout}{done.stderr}"
        )


def find_toolchain(checked: bool = True) -> Toolchain:
    """What compiles CUDA on this machine; nvcc is fetched where there is none.

    The check, which takes a second, may be left out where it was made before.
    """
    nvcc = find_or_fetch("nvcc")
    compiler = host_compiler()
    toolchain = Toolchain(nvcc, nvcc_version(nvcc), compiler, _host_version(compiler))
    if checked:
        check_host_compiler(toolchain)
    return toolchain


if __name__ == "__main__":
    print(find_own("nvcc") or "", end="")
