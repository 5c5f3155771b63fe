"""Generations of processors, by the numbers that they report."""

from __future__ import annotations

from typing import NamedTuple


class Generation(NamedTuple):
    name: str
    # 512-bit vectors, where there are any, pass through units of 256 bits in two steps.
    halves: bool = False


class _Models(NamedTuple):
    family: int
    first: int  # model numbers, both ends included
    last: int
    generation: Generation


def _models(family: int, first: int, last: int, name: str, halves: bool = False) -> _Models:
    return _Models(family, first, last, Generation(name, halves))


_UNKNOWN = Generation("")

# The first entry that fits counts.
_AMD = (
    _models(0x17, 0x08, 0x08, "Zen+"),
    _models(0x17, 0x18, 0x18, "Zen+"),
    _models(0x17, 0x00, 0x0F, "Zen (Naples, Summit Ridge)"),
    _models(0x17, 0x10, 0x2F, "Zen"),
    _models(0x17, 0x30, 0x3F, "Zen 2 (Rome)"),
    _models(0x17, 0x50, 0x5F, "Zen"),
    _models(0x17, 0x40, 0xAF, "Zen 2"),
    _models(0x19, 0x00, 0x0F, "Zen 3 (Milan)"),
    _models(0x19, 0x10, 0x1F, "Zen 4 (Genoa)", halves=True),
    _models(0x19, 0x20, 0x5F, "Zen 3"),
    _models(0x19, 0xA0, 0xAF, "Zen 4c (Bergamo, Siena)", halves=True),
    _models(0x19, 0x60, 0x9F, "Zen 4", halves=True),
    _models(0x1A, 0x00, 0x0F, "Zen 5 (Turin)"),
    _models(0x1A, 0x10, 0x1F, "Zen 5c (Turin Dense)"),
    _models(0x1A, 0x20, 0x2F, "Zen 5 (Strix Point)", halves=True),
    _models(0x1A, 0x40, 0x4F, "Zen 5"),
    _models(0x1A, 0x60, 0x6F, "Zen 5 (Krackan Point)", halves=True),
    _models(0x1A, 0x70, 0x7F, "Zen 5 (Strix Halo)"),
    _models(0x1A, 0x50, 0x5F, "Zen 6"),
    _models(0x1A, 0x80, 0xCF, "Zen 6"),
)
_HYGON = (_models(0x18, 0x00, 0xFF, "Dhyana (Zen)"),)

# Family 6, but for the last.
_INTEL = {
    (6, 0x2A): "Sandy Bridge",
    (6, 0x2D): "Sandy Bridge-EP",
    (6, 0x3A): "Ivy Bridge",
    (6, 0x3E): "Ivy Bridge-EP",
    (6, 0x3C): "Haswell",
    (6, 0x45): "Haswell",
    (6, 0x46): "Haswell",
    (6, 0x3F): "Haswell-EP",
    (6, 0x3D): "Broadwell",
    (6, 0x47): "Broadwell",
    (6, 0x4F): "Broadwell-EP",
    (6, 0x56): "Broadwell-DE",
    (6, 0x4E): "Skylake",
    (6, 0x5E): "Skylake",
    (6, 0x8E): "Kaby Lake, Coffee Lake",
    (6, 0x9E): "Kaby Lake, Coffee Lake",
    (6, 0xA5): "Comet Lake",
    (6, 0xA6): "Comet Lake",
    (6, 0x66): "Cannon Lake",
    (6, 0x57): "Knights Landing",
    (6, 0x85): "Knights Mill",
    (6, 0x6A): "Ice Lake-SP",
    (6, 0x6C): "Ice Lake-D",
    (6, 0x7D): "Ice Lake",
    (6, 0x7E): "Ice Lake",
    (6, 0x8C): "Tiger Lake",
    (6, 0x8D): "Tiger Lake",
    (6, 0xA7): "Rocket Lake",
    (6, 0x97): "Alder Lake",
    (6, 0x9A): "Alder Lake",
    (6, 0xBE): "Alder Lake-N",
    (6, 0xB7): "Raptor Lake",
    (6, 0xBA): "Raptor Lake",
    (6, 0xBF): "Raptor Lake",
    (6, 0xAA): "Meteor Lake",
    (6, 0xAC): "Meteor Lake",
    (6, 0xB5): "Arrow Lake",
    (6, 0xC5): "Arrow Lake",
    (6, 0xC6): "Arrow Lake",
    (6, 0xBD): "Lunar Lake",
    (6, 0xCC): "Panther Lake",
    (6, 0x8F): "Sapphire Rapids",
    (6, 0xCF): "Emerald Rapids",
    (6, 0xAD): "Granite Rapids",
    (6, 0xAE): "Granite Rapids-D",
    (6, 0xAF): "Sierra Forest",
    (6, 0xDD): "Clearwater Forest",
    (0x13, 0x01): "Diamond Rapids",
}
_SKYLAKE_SP = (6, 0x55)  # three generations, told apart by their steppings

# (implementer, part)
_ARM = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD0C): "Neoverse N1 (Graviton2, Altra)",
    (0x41, 0xD40): "Neoverse V1 (Graviton3)",
    (0x41, 0xD49): "Neoverse N2",
    (0x41, 0xD4F): "Neoverse V2 (Graviton4, Grace)",
    (0x41, 0xD84): "Neoverse V3",
    (0x41, 0xD8E): "Neoverse N3",
    (0x43, 0x0AF): "ThunderX2",
    (0x46, 0x001): "A64FX",
    (0x48, 0xD01): "TaiShan v110 (Kunpeng 920)",
    (0x51, 0x001): "Oryon",
    (0x61, 0x022): "Icestorm (M1)",
    (0x61, 0x023): "Firestorm (M1)",
    (0x61, 0x032): "Blizzard (M2)",
    (0x61, 0x033): "Avalanche (M2)",
    (0xC0, 0xAC3): "AmpereOne",
    (0xC0, 0xAC4): "AmpereOne",
}
IMPLEMENTERS = {
    0x41: "ARM",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x51: "Qualcomm",
    0x61: "Apple",
    0x6D: "Microsoft",
    0xC0: "Ampere",
}


def generation(vendor: str, family: int, model: int, stepping: int = 0) -> Generation:
    """That of an x86 processor; its name is empty where the numbers are not known."""
    if vendor == "AMD" or vendor == "Hygon":
        return _among(_AMD if vendor == "AMD" else _HYGON, family, model)
    if vendor != "Intel":
        return _UNKNOWN
    if (family, model) == _SKYLAKE_SP:
        return Generation(_skylake_sp(stepping))
    return Generation(_INTEL.get((family, model), ""))


def arm_core(implementer: int, part: int) -> str:
    """The name of a core; empty where it is not known."""
    return _ARM.get((implementer, part), "")


def _among(models: tuple[_Models, ...], family: int, model: int) -> Generation:
    for one in models:
        if one.family == family and one.first <= model <= one.last:
            return one.generation
    return _UNKNOWN


def _skylake_sp(stepping: int) -> str:
    if stepping >= 10:
        return "Cooper Lake"
    return "Cascade Lake" if stepping >= 5 else "Skylake-SP"
