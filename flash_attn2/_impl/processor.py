"""The processor, named in full: what it calls itself, its numbers, its generation, its caches."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flash_attn2._impl.processor_generations import IMPLEMENTERS, arm_core, generation

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_VENDORS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel", "HygonGenuine": "Hygon"}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

_Fields = Mapping[str, str]  # of one processor in /proc/cpuinfo


class Cache(NamedTuple):
    """As /sys/devices/system/cpu/cpu0/cache/index* say it."""

    level: str
    type: str
    size: str


@functools.cache
def processor() -> dict[str, Any]:
    """That of this machine; see `describe`. Where the system says nothing, what Python knows."""
    return describe(_read(_CPUINFO), _caches(_CACHES), platform.processor() or platform.machine())


def describe(cpuinfo: str, caches: Iterable[Cache], otherwise: str = "") -> dict[str, Any]:
    """What identifies a processor, of the text of /proc/cpuinfo and the caches of its first core.

    Keys: `name` (for people: the processor's own name and its generation, or `otherwise`),
    `vendor`, `model_name` (its own), `family`, `model`, `stepping` (on ARM implementer, part, and
    variant and revision as "r1p0"), `generation`, `l1d_bytes`, `l2_bytes`, `l3_bytes`, `cores`,
    `threads` (of the machine, whoever may use them) and `avx512`, whose data paths are "whole" or
    "halves". None where it is not known, and where a processor has no AVX-512.
    """
    cpus = _cpus(cpuinfo)
    first = cpus[0] if cpus else {}
    known = _arm(cpus) if "CPU implementer" in first else _x86(first)
    parts = list(dict.fromkeys(part for part in (known["model_name"], known["generation"]) if part))
    name = ", ".join(parts) or otherwise
    avx512 = _avx512(first, known)
    return {"name": name, **known, **_sizes(caches), **_counts(cpus), "avx512": avx512}


def _cpus(cpuinfo: str) -> list[_Fields]:
    """A block of lines for each processor; what other blocks ARM has are not of one."""
    blocks = (block.splitlines() for block in cpuinfo.split("\n\n"))
    found = [
        {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block)}
        for block in blocks
    ]
    return [fields for fields in found if "processor" in fields]


def _x86(fields: _Fields) -> dict[str, Any]:
    vendor_id = fields.get("vendor_id")
    vendor = _VENDORS.get(vendor_id or "", vendor_id)
    family, model, stepping = (
        _number(fields.get(name)) for name in ("cpu family", "model", "stepping")
    )
    found = None
    if vendor and family is not None and model is not None:
        found = generation(vendor, family, model, stepping or 0).name or None
    return {
        "vendor": vendor,
        "model_name": fields.get("model name"),
        "family": family,
        "model": model,
        "stepping": stepping,
        "generation": found,
    }


def _arm(cpus: Sequence[_Fields]) -> dict[str, Any]:
    """Cores of several kinds may stand in one machine; the numbers are those of the first."""
    first = cpus[0]
    implementer, part = (_number(first.get(name)) for name in ("CPU implementer", "CPU part"))
    variant, revision = (_number(first.get(name)) for name in ("CPU variant", "CPU revision"))
    kinds = dict.fromkeys(
        arm_core(_number(cpu.get("CPU implementer")) or 0, _number(cpu.get("CPU part")) or 0)
        for cpu in cpus
    )
    vendor = IMPLEMENTERS.get(implementer or 0)
    cores = " + ".join(kind for kind in kinds if kind) or None
    return {
        "vendor": vendor,
        "model_name": first.get("model name") or vendor,
        "family": implementer,
        "model": part,
        "stepping": None if variant is None else f"r{variant}p{revision or 0}",
        "generation": cores,
    }


def _avx512(fields: _Fields, numbers: Mapping[str, Any]) -> str | None:
    if "avx512f" not in fields.get("flags", "").split():
        return None
    known = generation(
        numbers["vendor"] or "",
        *(numbers[name] or 0 for name in ("family", "model", "stepping")),
    )
    if not known.name:
        return None
    return "halves" if known.halves else "whole"


def _sizes(caches: Iterable[Cache]) -> dict[str, int | None]:
    sizes: dict[str, int | None] = dict.fromkeys(("l1d_bytes", "l2_bytes", "l3_bytes"))
    for cache in caches:
        name = "l1d_bytes" if cache.level == "1" else f"l{cache.level}_bytes"
        if cache.type in ("Data", "Unified") and name in sizes:
            sizes[name] = _bytes(cache.size) or None
    return sizes


def _counts(cpus: Sequence[_Fields]) -> dict[str, int | None]:
    """Threads of one core share its number and that of its package; ARM has no such numbers."""
    cores = {(cpu.get("physical id"), cpu.get("core id", cpu["processor"])) for cpu in cpus}
    return {"cores": len(cores) or None, "threads": len(cpus) or None}


def _number(text: str | None) -> int | None:
    """Decimal, or hexadecimal after 0x; None for what is not a number."""
    try:
        return int(text or "", 0)
    except ValueError:
        return None


def _bytes(text: str) -> int:
    unit = _UNITS.get(text[-1:], 1)
    digits = text.rstrip("".join(_UNITS))
    return int(digits) * unit if digits.isdigit() else 0


def _caches(folder: Path) -> list[Cache]:
    return [
        Cache(*(_read(index / name).strip() for name in ("level", "type", "size")))
        for index in sorted(folder.glob("index*"))
    ]


def _read(path: Path) -> str:
    """Empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
