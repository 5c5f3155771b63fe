"""How the native modules are protected, read from their files."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import elf
import pytest

import flash_attn2

PACKAGE = Path(flash_attn2.__file__).parent
MODULES = sorted(PACKAGE.glob("*.so"))
COMMANDS = PACKAGE.parent / "build" / "dev" / "compile_commands.json"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="ELF is Linux's")
FINE = {
    "relro": True,
    "bound_at_start": True,
    "text_relocations": False,
    "executable_stack": False,
    "writable_code": False,
    "search_path": False,
}


@LINUX
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name.split(".")[0])
def test_modules_are_hardened(path: Path) -> None:
    module = elf.read(path)
    assert {name: getattr(module, name) for name in FINE} == FINE
    assert module.exports == {f"PyInit_{path.name.split('.')[0]}"}
    assert "__stack_chk_fail" in module.imports


def test_the_cpu_module_is_there() -> None:
    assert any(path.name.startswith("_cpu.") for path in MODULES)


@pytest.mark.skipif(not COMMANDS.exists(), reason="needs the files of a build")
def test_shipped_sources_are_fortified() -> None:
    """All but the kernels of the CPU family."""
    checked = set()
    for entry in json.loads(COMMANDS.read_text()):
        source = Path(entry["file"])
        if "csrc/bindings" in entry["file"] or "csrc/cpu" in entry["file"]:
            flags = shlex.split(entry["command"])
            protected = "-fstack-protector-strong" in flags and "-D_FORTIFY_SOURCE=2" in flags
            is_kernel = source.name in ("level.cpp", "quantised.cpp")
            assert protected != is_kernel, entry["file"]
            checked.add(source.name)
    assert {"cpu_module.cpp", "forward.cpp", "append.cpp", "level.cpp", "quantised.cpp"} <= checked


@LINUX
@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        ("-Wl,-z,norelro", "relro"),
        ("-Wl,-z,lazy", "bound_at_start"),
        ("-Wl,-z,execstack", "executable_stack"),
        ("-Wl,-rpath,/tmp", "search_path"),
        ("-Wl,--omagic -nostdlib", "writable_code"),
        ("-Wl,-z,notext -fno-pic -mcmodel=large", "text_relocations"),
    ],
)
def test_what_is_wrong_is_seen(flags: str, wrong: str, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    assert compiler is not None
    source, library = tmp_path / "x.cpp", tmp_path / "x.so"
    source.write_text("int value; int* shown() { return &value; }\n")
    protection = "-Wl,-z,relro,-z,now,-z,noexecstack"
    command = [compiler, "-shared", "-fPIC", protection, *flags.split(), str(source)]
    subprocess.run([*command, "-o", str(library)], check=True)
    module = elf.read(library)
    assert getattr(module, wrong) != FINE[wrong]
    assert "_Z5shownv" in module.exports
