"""The distribution that holds a start-up hook, installed into an environment of its own."""

from __future__ import annotations

import importlib.util
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import flash_attn2
from flash_attn2.compat import names

ROOT = Path(__file__).parents[2]
NAME = "flash_attn2_compat_hook"
SOURCE = ROOT / "distributions" / NAME

pytestmark = pytest.mark.skipif(
    not SOURCE.exists() or importlib.util.find_spec("setuptools") is None,
    reason="needs a checkout and setuptools",
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the hook, and flash_attn2 and its dependencies as here."""
    directory = tmp_path_factory.mktemp("hook")
    source = shutil.copytree(SOURCE, directory / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    alone = ["--no-deps", "--no-index"]
    made = ["--no-build-isolation", "--wheel-dir", str(directory)]
    subprocess.run([*pip, "wheel", *alone, *made, str(source)], check=True)
    (wheel,) = directory.glob("*.whl")
    environment = directory / "environment"
    venv.create(environment, symlinks=True)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    subprocess.run([*pip, "install", *alone, "--target", str(packages), str(wheel)], check=True)
    # Behind those of the environment, and without start-up files of their own.
    there = [str(Path(flash_attn2.__file__).parents[1]), *site.getsitepackages()]
    (packages / "there.pth").write_text("\n".join(there))
    return environment / "bin" / "python"


def run(python: Path, program: str, *options: str) -> str:
    """What it prints, with warnings as errors."""
    command = [python, "-W", "error", *options, "-c", program]
    done = subprocess.run(command, cwd=python.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # errors of start-up files are printed, and no more
    return done.stdout.strip()


def test_flash_attn_is_flash_attn2(python: Path) -> None:
    program = """
import sys
assert not {"torch", "flash_attn2", "importlib.metadata"} & set(sys.modules)
from flash_attn import flash_attn_func
from flash_attn.bert_padding import unpad_input
import flash_attn, flash_attn2, flash_attn_interface
assert flash_attn_func is flash_attn2.flash_attn_func
names = [type(finder).__module__ for finder in sys.meta_path]
assert names.count("flash_attn2_compat_hook") == 0 and names.count("flash_attn2.compat.finder") == 1
try:
    import flash_attn.losses.cross_entropy
except ImportError as error:
    print(error)
"""
    assert "torch.nn.functional.cross_entropy" in run(python, program)


def test_metadata_without_an_import(python: Path) -> None:
    """The same as `compat` offers."""
    program = """
import importlib.metadata, sys
assert importlib.metadata.version("Flash.Attn") == "2.8.3"
packages = importlib.metadata.packages_distributions()
assert packages["flash_attn"] == ["flash_attn"]
assert packages["flash_attn_interface"] == packages["flash_attn_3"] == ["flash_attn_3"]
names = [x.metadata["Name"] for x in importlib.metadata.distributions()]
assert names.count("flash_attn") == names.count("flash_attn_3") == 1
assert list(importlib.metadata.distributions(path=[])) == []
assert not {"torch", "flash_attn2"} & set(sys.modules)
"""
    run(python, program)
    specification = importlib.util.spec_from_file_location(NAME, SOURCE / f"{NAME}.py")
    assert specification is not None
    assert specification.loader is not None
    hook = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hook)
    assert hook.DISTRIBUTIONS == names.DISTRIBUTIONS
    assert set(hook.TOP_LEVEL) == {*names.TOP_LEVEL, "flash_attn_2_cuda"}


def test_a_real_one_wins(python: Path, tmp_path: Path) -> None:
    """Also one whose finder stands behind the hook's, as those of editable installations may."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("real = True\n")
    run(
        python,
        f"""
import importlib.metadata, sys
sys.path.append({str(tmp_path)!r})
import flash_attn
assert flash_attn.real and "torch" not in sys.modules
names = [x.metadata["Name"] for x in importlib.metadata.distributions()]
assert "flash_attn" not in names and "flash_attn_3" in names
""",
    )
    behind = f"""
import sys
from importlib.machinery import PathFinder
class Behind:
    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, [{str(tmp_path)!r}]) if path is None else None
sys.meta_path.append(Behind())
import flash_attn
assert flash_attn.real
"""
    run(python, behind, "-W", "ignore:flash_attn is installed:UserWarning")


def test_it_does_nothing_without_flash_attn2(python: Path) -> None:
    """Left alone in an environment."""
    program = """
import importlib.metadata, importlib.util
assert importlib.util.find_spec("flash_attn2") is None
for module in ("flash_attn", "flash_attn_interface"):
    assert importlib.util.find_spec(module) is None
names = [x.metadata["Name"] for x in importlib.metadata.distributions()]
assert "flash_attn" not in names
"""
    (packages,) = (python.parent.parent / "lib").glob("python*/site-packages")
    there = packages / "there.pth"
    away = there.rename(packages / "there.away")
    try:
        run(python, program)
    finally:
        away.rename(there)
