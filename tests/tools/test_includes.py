"""Dependencies of the C++ sources point downward only: who includes whom."""

from __future__ import annotations

import re
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"

# Of each part, what it may include beside itself. The longest prefix of a path is its part.
MAY_INCLUDE: dict[str, set[str]] = {
    "core": set(),
    "host": {"core"},
    "tile": {"core"},
    "sm80": {"core", "host", "tile"},
    "sm90": {"core", "host", "tile", "sm80"},  # kernels around the main one of backward
    "cuda": {"core", "host", "sm80", "sm90"},
    "cpu": {"core", "host"},
    "cpu/level": {"core", "cpu"},
    "masks": {"core"},
    "bindings": {"core", "host"},
}
# What one file may include beyond: modules put a family and the bindings together.
EXCEPTIONS: dict[str, set[str]] = {
    "bindings/cpu_module.cpp": {"cpu"},
    "bindings/cuda_module.cpp": {"cuda"},
    "bindings/masks.cpp": {"masks"},
    "bindings/sm80_plans.cpp": {"sm80"},
    "cpu/append.cpp": {"cpu/level"},  # for its conversions, at a level of its own
}
# Parts of a family that kernels are made of know nothing of what plans and launches them.
OF_THE_HOST = {"plan.h", "plan_parts.h", "registry.h", "launch.h", "family.h"}
INTO_THE_REGISTRY = re.compile(r"(\w+_)?instance\.h|run\.cpp")

_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


def sources() -> list[Path]:
    return [path for path in sorted(CSRC.rglob("*")) if path.suffix in (".h", ".cpp")]


def part_of(path: str) -> str:
    return max((part for part in MAY_INCLUDE if path.startswith(f"{part}/")), key=len)


def includes(path: Path) -> list[str]:
    return _INCLUDE.findall(path.read_text())


def test_dependencies_point_downward() -> None:
    wrong = []
    for path in sources():
        name = path.relative_to(CSRC).as_posix()
        part = part_of(name)
        allowed = {part} | MAY_INCLUDE[part] | EXCEPTIONS.get(name, set())
        wrong += [f"{name}: {x}" for x in includes(path) if part_of(x) not in allowed]
    assert not wrong


def test_kernels_do_not_know_who_launches_them() -> None:
    wrong = []
    for path in sources():
        family, *folders, name = path.relative_to(CSRC).parts
        if not folders or family == "cpu" or INTO_THE_REGISTRY.fullmatch(name):
            continue
        known = {f"{family}/{header}" for header in OF_THE_HOST}
        wrong += [f"{path}: {x}" for x in includes(path) if x in known]
    assert not wrong


def test_what_is_included_exists() -> None:
    assert not [f"{p}: {x}" for p in sources() for x in includes(p) if not (CSRC / x).is_file()]


def test_there_is_something_to_look_at() -> None:
    assert len(sources()) > 80
    assert sum(len(includes(path)) for path in sources()) > 200
