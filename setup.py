"""Builds the native modules with CMake and ninja; everything else stands in pyproject.toml.

Environment variables that reach CMake as options of the same name: see ``CMAKE_OPTIONS`` and the
table in docs/reference/environment.md.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CMAKE_OPTIONS = (
    "FLASH_ATTN2_CUDA",
    "FLASH_ATTN2_CUDA_ARCHS",
    "FLASH_ATTN2_HEAD_DIMS",
    "FLASH_ATTN2_WERROR",
    "FLASH_ATTN2_PORTABLE",
    "FLASH_ATTN2_CUTLASS_INCLUDE_DIR",
)
SOURCE_DIR = Path(__file__).resolve().parent
# One for all interpreters: kernels, most of what is compiled, are the same for all of them.
BUILD_DIR = SOURCE_DIR / "build" / "native"


def forget_configuration() -> None:
    """Of an earlier build, in another isolated environment, which is gone; what it compiled stays
    (`cmake --fresh` would take that, too)."""
    (BUILD_DIR / "CMakeCache.txt").unlink(missing_ok=True)
    for of_compilers in BUILD_DIR.glob("CMakeFiles/[0-9]*"):
        shutil.rmtree(of_compilers)


class CMakeBuild(build_ext):
    """Lets one CMake build stand for all extension modules: CMake decides which there are."""

    def run(self) -> None:
        package = Path("flash_attn2")
        output_dir = SOURCE_DIR / package if self.inplace else Path(self.build_lib) / package
        for stale in output_dir.glob("*.so"):
            stale.unlink()
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "FLASH_ATTN2_OUTPUT_DIR": output_dir.resolve(),
            "Python_EXECUTABLE": sys.executable,
        }
        options |= {name: os.environ[name] for name in CMAKE_OPTIONS if name in os.environ}
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        forget_configuration()
        configure = ["cmake", "-S", SOURCE_DIR, "-B", BUILD_DIR, "-G", "Ninja"]
        subprocess.run([*configure, *definitions], check=True)
        subprocess.run(["cmake", "--build", BUILD_DIR], check=True)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in Path(self.build_lib, "flash_attn2").glob("*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


# The name only marks the wheel as one with native code.
setup(
    ext_modules=[Extension("flash_attn2._cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
