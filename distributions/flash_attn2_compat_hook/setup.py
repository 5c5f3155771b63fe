"""Puts the start-up file beside the module; everything else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

START = "flash_attn2_compat_hook.pth"


class BuildWithStart(build_py):
    """A file of site-packages that is neither a module nor of a package."""

    def run(self) -> None:
        super().run()
        self.copy_file(START, str(Path(self.build_lib) / START))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib) / START)]


setup(cmdclass={"build_py": BuildWithStart})
