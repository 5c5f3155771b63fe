"""The processor in full, of what systems say of two dozen of them (shortened, to a few cores)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flash_attn2 import build_info
from flash_attn2._impl import processor
from flash_attn2._impl.processor import Cache, describe
from flash_attn2.bench.record import describe_machine, in_full, processor_of

SAMPLES = Path(__file__).parent / "processors"
KIB = 2**10

# vendor; family, model, stepping; generation; 512-bit paths; L1d, L2, L3; cores, threads
EXPECTED: dict[str, tuple[Any, ...]] = {
    "epyc-naples": ("AMD", (23, 1, 2), "Zen (Naples, Summit Ridge)", None, (32, 512, 8192), (2, 4)),
    "epyc-rome": ("AMD", (23, 49, 0), "Zen 2 (Rome)", None, (32, 512, 16384), (2, 4)),
    "epyc-milan-hidden": ("AMD", (25, 1, 1), "Zen 3 (Milan)", None, (32, 512, 32768), (2, 2)),
    "epyc-genoa-hidden": ("AMD", (25, 17, 1), "Zen 4 (Genoa)", "halves", (32, 1024, 32768), (2, 2)),
    "epyc-bergamo": (
        *("AMD", (25, 160, 2), "Zen 4c (Bergamo, Siena)", "halves"),
        *((32, 1024, 16384), (2, 4)),
    ),
    "epyc-turin-hidden": ("AMD", (26, 2, 1), "Zen 5 (Turin)", "whole", (48, 1024, 32768), (2, 2)),
    "ryzen-9950x": ("AMD", (26, 68, 0), "Zen 5", "whole", (48, 1024, 32768), (2, 4)),
    "ryzen-ai-370": (
        "AMD",
        (26, 36, 0),
        "Zen 5 (Strix Point)",
        "halves",
        (48, 1024, 16384),
        (2, 4),
    ),
    "xeon-skylake": ("Intel", (6, 85, 4), "Skylake-SP", "whole", (32, 1024, 33792), (2, 4)),
    "xeon-cascade-lake": ("Intel", (6, 85, 7), "Cascade Lake", "whole", (32, 1024, 39424), (2, 4)),
    "xeon-cooper-lake": ("Intel", (6, 85, 11), "Cooper Lake", "whole", (32, 1024, 39424), (2, 2)),
    "xeon-ice-lake": ("Intel", (6, 106, 6), "Ice Lake-SP", "whole", (48, 1280, 55296), (2, 4)),
    "xeon-sapphire-rapids": (
        *("Intel", (6, 143, 8), "Sapphire Rapids", "whole"),
        *((48, 2048, 107520), (2, 4)),
    ),
    "xeon-emerald-rapids-hidden": (
        *("Intel", (6, 207, 2), "Emerald Rapids", "whole"),
        *((48, 2048, 266240), (2, 2)),
    ),
    "xeon-granite-rapids": (
        *("Intel", (6, 173, 1), "Granite Rapids", "whole"),
        *((48, 2048, 491520), (2, 2)),
    ),
    "core-alder-lake": ("Intel", (6, 151, 2), "Alder Lake", None, (48, 1280, 25600), (2, 4)),
    "core-skylake": ("Intel", (6, 94, 3), "Skylake", None, (32, 256, 8192), (2, 4)),
    "unknown-x86": ("Intel", (6, 254, 1), None, None, (None, None, None), (2, 2)),
    "graviton2": (
        *("ARM", (0x41, 0xD0C, "r3p1"), "Neoverse N1 (Graviton2, Altra)", None),
        *((64, 1024, 32768), (2, 2)),
    ),
    "graviton3": (
        *("ARM", (0x41, 0xD40, "r1p1"), "Neoverse V1 (Graviton3)", None),
        *((64, 1024, 32768), (2, 2)),
    ),
    "graviton4": (
        *("ARM", (0x41, 0xD4F, "r0p1"), "Neoverse V2 (Graviton4, Grace)", None),
        *((64, 2048, 36864), (2, 2)),
    ),
    "big-little": (
        *("ARM", (0x41, 0xD05, "r1p0"), "Cortex-A55 + Cortex-A76", None),
        *((None, None, None), (4, 4)),
    ),
}


def sample(name: str) -> dict[str, Any]:
    cpuinfo, _, caches = (SAMPLES / f"{name}.txt").read_text().partition("[caches]\n")
    return describe(cpuinfo, [Cache(*line.split()) for line in caches.splitlines()])


def test_all_samples_are_expected() -> None:
    assert {path.stem for path in SAMPLES.iterdir()} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_samples(name: str) -> None:
    found = sample(name)
    vendor, numbers, generation, avx512, caches, counts = EXPECTED[name]
    assert found["vendor"] == vendor
    assert (found["family"], found["model"], found["stepping"]) == numbers
    assert found["generation"] == generation
    assert found["avx512"] == avx512
    sizes = tuple(None if size is None else size * KIB for size in caches)
    assert (found["l1d_bytes"], found["l2_bytes"], found["l3_bytes"]) == sizes
    assert (found["cores"], found["threads"]) == counts


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("epyc-genoa-hidden", "AMD EPYC, Zen 4 (Genoa)"),
        ("epyc-turin-hidden", "AMD EPYC, Zen 5 (Turin)"),
        ("xeon-emerald-rapids-hidden", "Intel(R) Xeon(R) Processor, Emerald Rapids"),
        ("unknown-x86", "Intel(R) Xeon(R) Processor"),
        ("graviton3", "ARM, Neoverse V1 (Graviton3)"),
    ],
)
def test_names_that_say_little_are_resolved(name: str, shown: str) -> None:
    assert sample(name)["name"] == shown


def test_in_full() -> None:
    assert in_full(sample("epyc-genoa-hidden")) == (
        "AMD EPYC, Zen 4 (Genoa), family 25 model 17 stepping 1, L1d 32 KiB, L2 1 MiB, L3 32 MiB, "
        "2 cores, 2 hardware threads, 512-bit paths in halves"
    )
    assert in_full(sample("big-little")) == (
        "ARM, Cortex-A55 + Cortex-A76, family 65 model 3333 stepping r1p0, "
        "4 cores, 4 hardware threads"
    )


def test_a_system_that_says_nothing() -> None:
    nothing = describe("", [], "riscv64")
    assert nothing["name"] == in_full(nothing) == "riscv64"
    assert set(nothing.values()) == {"riscv64", None}
    strange = describe("processor\t: 0\nmodel name\t: X\ncpu family\t: ?\n", [Cache("", "", "")])
    assert strange["name"] == "X"
    assert strange["family"] is None
    assert strange["cores"] == 1


def test_this_machine_is_in_every_record() -> None:
    found = processor.processor()
    assert found["name"]
    assert build_info()["processor"] == found
    machine = describe_machine("cpu")
    assert machine["cpu"] == found["name"]
    assert machine["threads"] == torch.get_num_threads()
    assert 1 <= machine["allowed_cpus"] <= machine["cpus"]
    record = {"machine": machine, "build": build_info()}
    assert processor_of(record) == in_full(found)
    assert processor_of({"machine": {"cpu": "A CPU"}, "build": {}}) == "A CPU"
