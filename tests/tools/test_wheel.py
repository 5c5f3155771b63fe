"""The wheels of `make wheel`: for whom, what they need, and what is refused."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from tools.environments import ROOT
from tools.wheel import check, interpreters, symbols

DUMP = """
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.2.5) free
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.27) logf
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.27) exp2f
0000000000000000  w   DF *UND*\t0000000000000000  Base        __gmon_start__
0000000000000000      DF *UND*\t0000000000000000 (GOMP_4.0) GOMP_parallel
0000000000000000      DF *UND*\t0000000000000000              PyList_New
0000000000012340 g    DF .text\t0000000000000010  Base        PyInit__cpu
"""


def test_symbols_that_bind() -> None:
    assert symbols.binding(symbols.parse(DUMP)) == [
        "GLIBC_2.27: exp2f, logf",
        "GOMP_4.0: GOMP_parallel",
    ]


def test_versions_are_numbers() -> None:
    lines = "\n".join(f"*UND*\t0000 (GLIBC_{x}) f{i}" for i, x in enumerate(("2.4", "2.14")))
    assert symbols.binding(symbols.parse(lines)) == ["GLIBC_2.14: f1"]


def test_symbols_of_this_module() -> None:
    module = next((ROOT / "flash_attn2").glob("_cpu*.so"))
    needs = symbols.needs([module])
    assert "GOMP_parallel" in needs["GOMP"][4, 0]


def test_functions_of_newer_systems_are_replaced() -> None:
    """What a module built here takes of a glibc newer than that of the wheels' platform."""
    module = next((ROOT / "flash_attn2").glob("_cpu*.so"))
    of_glibc = symbols.needs([module])["GLIBC"]
    newer = {name for version in of_glibc if version > (2, 28) for name in of_glibc[version]}
    source = (ROOT / "csrc" / "bindings" / "old_glibc.cpp").read_text()
    replaced = re.findall(r"^(?:FA2_OLD\w*\(|char )(\w+)", source, re.MULTILINE)
    assert newer <= set(replaced)


def test_interpreters_are_the_classifiers() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', text)
    assert [(3, int(minor)) for minor in named] == list(interpreters.SUPPORTED)
    assert f'requires-python = ">=3.{interpreters.SUPPORTED[0][1]}"' in text


def test_interpreters_that_are_found() -> None:
    found = interpreters.find()
    versions = [x.version for x in found]
    assert versions == sorted(set(versions))
    assert set(versions) <= set(interpreters.SUPPORTED)


def script(tmp_path: Path, printed: str) -> Path:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\necho '{printed}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("printed", "why"),
    [
        ("pypy 3 11 1 0", "is pypy 3.11: wheels are for CPython 3.10, 3.11"),
        ("cpython 3 9 1 0", "is cpython 3.9: wheels are for"),
        ("cpython 3 13 1 1", "is cpython 3.13 without a GIL: wheels are for"),
        ("cpython 3 12 0 0", "has no Python.h: install its headers"),
    ],
)
def test_interpreters_that_are_refused(printed: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(interpreters.UnusableError, match=re.escape(why)):
        interpreters.ask(script(tmp_path, printed))


def test_an_interpreter_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(interpreters.UnusableError, match="does not run"):
        interpreters.ask(tmp_path / "python")
    tag = interpreters.ask(script(tmp_path, "cpython 3 12 1 0")).tag
    assert tag == "cp312"


def wheel(path: Path, *more: str, without: str = "") -> Path:
    """One that holds the sources, and empty files of these names."""
    sources = [x.relative_to(ROOT) for x in (ROOT / "flash_attn2").rglob("*.py*")]
    licenses = [f"x.dist-info/licenses/{x}" for x in ("LICENSE", "cutlass.txt", "pybind11.txt")]
    names = [str(x) for x in sources if x.suffix in (".py", ".pyi")]
    names += ["flash_attn2/py.typed", *licenses, *more]
    file = path / "x.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            if name != without:
                archive.writestr(name, "")
    return file


CPU, CUDA = "flash_attn2/_cpu.cpython-311.so", "flash_attn2/_cuda.cpython-311.so"


def test_contents(tmp_path: Path) -> None:
    check.contents(wheel(tmp_path, CPU), cuda=False)
    check.contents(wheel(tmp_path, CPU, CUDA), cuda=True)


@pytest.mark.parametrize(
    ("more", "without", "why"),
    [
        ((), "", "has the libraries [], not ['_cpu']"),
        ((CPU, CUDA), "", "['_cpu', '_cuda'], not ['_cpu']"),
        ((CPU, "flash_attn2.libs/libgomp-1.so.1.0.0"), "", "libgomp-1"),
        ((CPU, "flash_attn2/_sm80_emulated.so"), "", "_sm80_emulated"),
        ((CPU,), "flash_attn2/py.typed", "has no flash_attn2/py.typed"),
        ((CPU,), "x.dist-info/licenses/LICENSE", "has no licenses/LICENSE"),
        ((CPU,), "x.dist-info/licenses/cutlass.txt", "has no licenses/cutlass.txt"),
        ((CPU,), "flash_attn2/ops.py", "differ in ['flash_attn2/ops.py']"),
        ((CPU,), "flash_attn2/_impl/typed_dense.pyi", "differ in"),
        ((CPU, "flash_attn2/old.py"), "", "differ in ['flash_attn2/old.py']"),
    ],
)
def test_wrong_contents(more: tuple[str, ...], without: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(check.WheelError, match=re.escape(why)):
        check.contents(wheel(tmp_path, *more, without=without), cuda=False)


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MOST_BYTES", 10**4)
    with pytest.raises(check.WheelError, match=r"has 0\.\d MB, more than 0"):
        check.contents(wheel(tmp_path, CPU), cuda=False)
