"""What the kernels' machine code must keep to."""

from __future__ import annotations

import re
from functools import cache

from tools.cuda_check.report import KernelReport
from tools.nvcc.instances import ROOT
from tools.nvcc.units import has_main_loop

# Most instructions per MMA in the steady loop of the plain forward kernels, by head dim. The best
# public kernels take 6.62, 4.48, 3.69, 3.50, 3.08 and 2.84 with the same compiler. At 32 more
# of them are worth a third CTA on an SM, and at 128 steps of 32 keys, whose softmax hides behind
# the next scores (docs/notes/timing.md).
PLAIN_FORWARD_LIMITS = {32: 6.2, 64: 4.0, 96: 3.1, 128: 2.85, 192: 2.55, 256: 2.35, 512: 2.55}

# The same of the backward kernels. The best public kernels, which fix masks, strides and sequence
# lengths at compile time, take 3.30 (with a spill), 2.66 (with 5) and 2.65 at 64, 128 and 256.
PLAIN_BACKWARD_LIMITS = {32: 4.2, 64: 3.0, 96: 2.75, 128: 2.45, 192: 2.5, 256: 2.3, 512: 2.9}

# The same of the split kernel for many rows; that for few waits for memory. The best public one
# takes 3.81 at 128.
PLAIN_SPLIT_LIMITS = {32: 7.1, 64: 4.3, 96: 3.4, 128: 3.05, 192: 2.95, 256: 3.0, 512: 2.8}

# The same over caches of 8 bits, by bucket as names have them, for few and many rows: what bfloat16
# takes, and 2% more. The loops that expand codes count once, though they turn up to 8 times a step
# (docs/notes/sm80_split.md).
CODES_SPLIT_LIMITS = {
    "few": {
        **{"32": 24.8, "64": 13.8, "96": 12.1, "128": 8.8, "192v128": 11.1, "192": 10.3},
        **{"256": 9.15, "512": 6.15, "576v512": 5.86},
    },
    "many": {
        **{"32": 12.2, "64": 6.9, "96": 8.0, "128": 5.35, "192v128": 4.7, "192": 4.75},
        **{"256": 5.5, "512": 5.4, "576v512": 7.85},
    },
}

# Of the listed kernels, of steps that need no mask. Where tiles are those of plain ones this is
# no more than 4% above what those take.
LISTED_FORWARD_LIMITS = {32: 6.5, 64: 3.9, 96: 3.08, 128: 2.68, 192: 2.55, 256: 2.25, 512: 2.65}
LISTED_BACKWARD_LIMITS = {32: 4.3, 64: 3.0, 96: 2.75, 128: 2.42, 192: 2.45, 256: 2.29, 512: 3.05}

# Where values have another width than keys, by both as names of kernels have them. Above what is
# measured, and below the mean of what kernels of the two widths take; of latents for any rows.
PAIR_LIMITS = {
    "192v128": {("fwd", "plain"): 2.45, ("bwd", "plain"): 2.35},
    "576v512": {("split", "latents"): 2.95},
}

# Most instructions of a step of the sm90 kernels, by instance without its element: what a prototype
# of theirs took (docs/notes/sm90.md), or what they take where that had none, and backward, and 3%
# more. Of listed kernels, of steps that need no mask.
WGMMA_STEP_LIMITS = {
    "sm90_fwd_hd64_plain": 382,
    "sm90_fwd_hd96_plain": 515,
    "sm90_fwd_hd128_plain": 523,
    "sm90_fwd_hd128_plain_short": 394,
    "sm90_fwd_hd192v128_plain": 428,
    "sm90_fwd_hd192_plain": 385,
    "sm90_fwd_hd256_plain": 323,
    "sm90_fwd_hd64_modified": 470,
    "sm90_fwd_hd96_modified": 470,
    "sm90_fwd_hd128_modified": 470,
    "sm90_fwd_hd192v128_modified": 509,
    "sm90_fwd_hd192_modified": 407,
    "sm90_fwd_hd256_modified": 329,
    "sm90_fwd_hd64_listed": 418,
    "sm90_fwd_hd96_listed": 425,
    "sm90_fwd_hd128_listed": 431,
    "sm90_fwd_hd192v128_listed": 463,
    "sm90_fwd_hd192_listed": 294,
    "sm90_fwd_hd256_listed": 322,
    "sm90_bwd_hd64_modified": 417,
    "sm90_bwd_hd96_modified": 439,
    "sm90_bwd_hd128_modified": 477,
    "sm90_bwd_hd192v128_modified": 314,
    "sm90_bwd_hd192_modified": 314,
    "sm90_bwd_hd64_listed": 396,
    "sm90_bwd_hd96_listed": 417,
    "sm90_bwd_hd128_listed": 458,
    "sm90_bwd_hd192v128_listed": 266,
    "sm90_bwd_hd192_listed": 266,
    "sm90_bwd_hd64_plain": 345,
    "sm90_bwd_hd96_plain": 366,
    "sm90_bwd_hd128_plain": 391,
    "sm90_bwd_hd192v128_plain": 252,
    "sm90_bwd_hd192_plain": 244,
    "sm90_bwd_hd256_plain": 359,
}

# KiB of shared memory that a CTA may have, by compute capability.
SHARED_KIB = {
    **{"80": 163, "86": 99, "87": 163, "89": 99, "90": 227, "90a": 227},
    **{"100": 227, "103": 227, "110": 227, "120": 99, "121": 99},
}
_LARGE_KIB = 160  # from here on plans take regular tiles (kLargeSmemBytes)

# The limits are those of this architecture; others schedule differently.
LIMITED_ARCH = "80"

_LIMITED = re.compile(
    r"(fwd|bwd|split)_hd(\d+(?:v\d+)?)_(?:(plain|listed)(?:_many)?|(latents)_\w+)_[a-z]+\d+"
)
_CODES = re.compile(r"split_hd(\d+(?:v\d+)?)_codes_(few|many)_[a-z]+\d+")
_LIMITS = {
    ("fwd", "plain"): PLAIN_FORWARD_LIMITS,
    ("bwd", "plain"): PLAIN_BACKWARD_LIMITS,
    ("split", "plain"): PLAIN_SPLIT_LIMITS,
    ("fwd", "listed"): LISTED_FORWARD_LIMITS,
    ("bwd", "listed"): LISTED_BACKWARD_LIMITS,
}


@cache
def _small_tiles() -> dict[str, set[str]]:
    """What has a second tile for less shared memory, by kind of kernel.

    Buckets, as names have them, of which not every variant needs to have one, and variants of
    others.
    """
    text = (ROOT / "csrc" / "instances.cmake").read_text()
    found = re.findall(r"FA2_sm80_(\w+)_SMALL_TILES ([\w/ ]+)\)", text)
    return {kind: set(names.lower().replace("/", "v").split()) for kind, names in found}


def serves(unit: str, arch: str) -> bool:
    """Whether plans take kernels of a unit, or of an instance, on devices of this architecture.

    Where shared memory is small, the small tile of a kernel takes the place of its regular one, and
    that of a split kernel the place of its large one.
    """
    if SHARED_KIB.get(arch, _LARGE_KIB) >= _LARGE_KIB:
        return True
    if "_many_large" in unit:
        return False
    found = re.fullmatch(r"(fwd|bwd)_hd(\w+?)_(.*)", unit)
    if found is None:
        return True
    kind, bucket, variant = found.groups()
    small = _small_tiles().get(kind, set())
    # A unit has one variant; an instance's name ends with its element.
    others = {bucket, f"{bucket}_{variant}", f"{bucket}_{variant.rpartition('_')[0]}"}
    return "_small" in unit or not others & small


def instructions_per_mma_limit(instance: str, arch: str) -> float | None:
    """The limit for an instance such as ``fwd_hd64_plain_float16``, or None without one."""
    if arch != LIMITED_ARCH:
        return None
    if codes := _CODES.fullmatch(instance):
        bucket, rows = codes.groups()
        return CODES_SPLIT_LIMITS[rows].get(bucket)
    limited = _LIMITED.fullmatch(instance)
    if limited is None:
        return None
    kind, bucket, *variants = limited.groups()
    variant = next(filter(None, variants))
    if bucket.isdecimal():
        return _LIMITS[kind, variant].get(int(bucket))
    return PAIR_LIMITS.get(bucket, {}).get((kind, variant))


def violations(report: KernelReport) -> list[str]:
    """What is wrong with a kernel, in words; empty if nothing is."""
    where = f"{report.label} for sm_{report.arch}"
    if not has_main_loop(report.instance):
        stack = report.resources.stack_bytes
        return [f"{where}: {stack} bytes of local memory"] if stack else []
    if not report.main_loops:
        return [f"{where}: no loop with tensor-core instructions"]
    wrong = []
    if report.shared_bytes > (kib := SHARED_KIB.get(report.arch, 0)) * 1024 > 0:
        wrong.append(f"{where}: {report.shared_bytes} bytes of shared memory, of {kib} KiB")
    steady = report.main_loops[0]
    if steady.local_accesses:
        wrong.append(f"{where}: {steady.local_accesses} local-memory accesses in the main loop")
    limit = instructions_per_mma_limit(report.instance, report.arch)
    if limit is not None and steady.instructions_per_mma > limit:
        per_mma = steady.instructions_per_mma
        wrong.append(f"{where}: {per_mma:.2f} instructions per MMA, the limit is {limit}")
    return wrong + _asynchronous_violations(report, where)


def _asynchronous_violations(report: KernelReport, where: str) -> list[str]:
    """What is wrong with a kernel of wgmma beside that."""
    limit = WGMMA_STEP_LIMITS.get(report.instance.rpartition("_")[0])
    if limit is None:
        return []
    wrong, steady = [], report.main_loops[0]
    if stack := report.resources.stack_bytes:
        wrong.append(f"{where}: {stack} bytes of local memory")
    wrong += _violations_of_shares(report, where)
    if report.resources.serialises:
        wrong.append(f"{where}: its products wait for each other")
    if late := steady.late_exponentials:
        wrong.append(
            f"{where}: {late} exponentials come after the products they are to hide behind"
        )
    if steady.instructions > limit:
        wrong.append(f"{where}: {steady.instructions} instructions a step, the limit is {limit}")
    return wrong


def _violations_of_shares(report: KernelReport, where: str) -> list[str]:
    """Every such kernel shares its registers out; one of which nothing is found is not checked."""
    shares = report.register_shares
    if shares is None:
        return [f"{where}: no setmaxnreg was found in its PTX"]
    if isinstance(shares, str):
        return [f"{where}: {shares}"]
    given = shares.threads * report.resources.registers
    if shares.needed > given:
        return [f"{where}: setmaxnreg asks for {shares.needed} registers of {given}"]
    return []
