"""Closed forms beside what the kernel emulator counts, where its module is built."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2._impl import backends
from flash_attn2.io import mask_columns, piece_kernels
from flash_attn2.io.counts import NOTHING, SECTOR_BYTES, Kernel, Pass, Traffic
from flash_attn2.io.emulated_standard import Counters, Standard
from flash_attn2.io.problem import Attention
from flash_attn2.masks import BlockMask


@dataclass(frozen=True)
class Counted:
    """Counters of each kernel, by its name."""

    forward: Mapping[str, Counters]
    backward: Mapping[str, Counters]


def count_flash2(problem: Attention, mask: BlockMask | None = None) -> Counted:
    """Runs it. CPU tensors must go to the emulator."""
    module: Any = backends.load("sm80-emulated").module
    rows = (problem.batch, problem.seqlen, problem.heads)
    widths = (problem.head_dim, problem.head_dim, problem.width_v)
    q, k, v = (torch.randn(*rows, width).half().requires_grad_() for width in widths)
    grad_out = torch.randn(*rows, problem.width_v).half()
    module.reset_counters()
    out = flash_attn_func(q, k, v, causal=problem.causal, block_mask=mask)
    forward = module.counters_by_kernel()
    module.reset_counters()
    torch.autograd.grad(out, (q, k, v), grad_out)
    return Counted(forward, module.counters_by_kernel())


def load_flash1() -> Any:
    """The emulated module of FlashAttention-1's schedule. ImportError where it is not built."""
    return importlib.import_module("flash_attn2._flash1_emulated")


class Flash1:
    """FlashAttention-1 on float16 tensors (batch, seqlen, heads, 64) without gaps, emulated."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
        batch, seqlen, heads, head_dim = q.shape
        self.out = torch.full_like(q, torch.nan)
        self.lse = torch.full((batch, heads, seqlen), torch.nan)
        self._tensors = {"q": q, "k": k, "v": v, "out": self.out, "lse": self.lse}
        self._problem = {
            "batch": batch,
            "heads": heads,
            "seqlen": seqlen,
            "causal": causal,
            "softmax_scale": head_dim**-0.5,
            **{name: tensor.data_ptr() for name, tensor in self._tensors.items()},
        }

    def forward(self) -> tuple[Tensor, Tensor]:
        """Out and lse."""
        load_flash1().forward(self._problem)
        return self.out, self.lse

    def backward(self, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, after `forward`."""
        q, k, v = (torch.full_like(self._tensors[name], torch.nan) for name in "qkv")
        addresses = [tensor.data_ptr() for tensor in (grad_out, q, k, v)]
        load_flash1().backward(self._problem, *addresses)
        return q, k, v


def count_flash1(problem: Attention) -> Counted:
    """Runs it."""
    module = load_flash1()
    shape = (problem.batch, problem.seqlen, problem.heads, problem.head_dim)
    q, k, v, grad_out = (torch.randn(shape).half() for _ in range(4))
    attention = Flash1(q, k, v, problem.causal)
    module.reset_counters()
    attention.forward()
    forward = module.counters_by_kernel()
    module.reset_counters()
    attention.backward(grad_out)
    return Counted(forward, module.counters_by_kernel())


def count_standard(problem: Attention) -> Counted:
    """Runs it."""
    shape = (problem.batch, problem.seqlen, problem.heads, problem.head_dim)
    q, k, v, grad_out = (torch.randn(shape).half() for _ in range(4))
    attention = Standard(q, k, v, problem.causal)
    attention.forward()
    forward, attention.counters = attention.counters, {}
    attention.backward(grad_out)
    return Counted(forward, attention.counters)


def differences(expected: Pass, counted: Mapping[str, Counters]) -> list[str]:
    """Where the emulator counts something else than a form says; none: they are equal."""
    names = [kernel.name for kernel in expected.kernels]
    if sorted(names) != sorted(counted):
        return [f"kernels {names}, counted {sorted(counted)}"]
    cut = piece_kernels.ORDER in names
    found = []
    for kernel in expected.kernels:
        counters = counted[kernel.name]
        if kernel.name in mask_columns.NAMES:
            figures = _figures_of_lists(kernel, counters)
        elif kernel.name in piece_kernels.NAMES:
            figures = _figures_of_pieces(kernel, counters)
        else:
            figures = _figures(kernel, counters, cut)
        for what, form, count in figures:
            if form != count:
                found.append(f"{kernel.name} {what}: form {form}, counted {count}")
    return found


_Figure = tuple[str, int, int]  # what, by the form, counted


# Single numbers that all threads of a CTA look up, such as the ends of its work: how often they do
# is up to the compiler, and how often rows are rescaled up to the values.
_BOOKKEEPING = 0.2  # at most, of all wavefronts


def _plain(what: str, form: int, counters: Counters) -> list[_Figure]:
    """Wavefronts of plain accesses, which are equal to the form but for bookkeeping."""
    units = ("cp_async", "ldmatrix", "shared_stores", "shared_loads")
    everything = sum(counters[f"{unit}.wavefronts"] for unit in units)
    counted = int(counters[f"shared_{what}.wavefronts"])
    excess = counted - form
    if 0 <= excess <= _BOOKKEEPING * everything:
        return []
    return [(what, form, counted)]


def _figures(kernel: Kernel, counters: Counters, cut: bool) -> list[_Figure]:
    """Where lists are cut, nvcc stores some of what a piece of a backward pass leaves, and reads
    some of its work, member by member.
    """
    figures = [
        ("ctas", kernel.ctas, int(counters["ctas"])),
        ("mma", kernel.mma, int(counters["mma"])),
        ("cp_async", kernel.shared.cp_async, int(counters["cp_async.wavefronts"])),
        ("ldmatrix", kernel.shared.ldmatrix, int(counters["ldmatrix.wavefronts"])),
        *_plain("stores", kernel.shared.stores, counters),
        *_plain("loads", kernel.shared.loads, counters),
    ]
    for what, form, counted in traffic(kernel, counters):
        by_member = cut and kernel.name == "BwdKernel" and what.endswith(" workspace")
        if not by_member or not form.asked <= counted.asked <= 2 * form.asked:
            figures.append((what, form.asked, counted.asked))
        figures.append((f"{what}, once", form.distinct, counted.distinct))
    return figures


def _figures_of_lists(kernel: Kernel, counters: Counters) -> list[_Figure]:
    """Of kernels that derive lists. Each lane adds up the counts of the columns before its own: how
    many look at one together is up to the compiler.
    """
    figures = [("ctas", kernel.ctas, int(counters["ctas"]))]
    for what, form, counted in traffic(kernel, counters):
        counts = what == "read workspace"
        if not counts or not form.asked <= counted.asked <= 2 * form.asked:
            figures.append((what, form.asked, counted.asked))
        figures.append((f"{what}, once", form.distinct, counted.distinct))
    return figures


def _figures_of_pieces(kernel: Kernel, counters: Counters) -> list[_Figure]:
    """Of kernels that place and add up pieces: what they touch."""
    figures = [("ctas", kernel.ctas, int(counters["ctas"]))]
    for what, form, counted in traffic(kernel, counters):
        figures.append((f"{what}, once", form.distinct, counted.distinct))
    return figures


def traffic(kernel: Kernel, counters: Counters) -> Iterator[tuple[str, Traffic, Traffic]]:
    """By direction and tensor: by the form, and counted."""
    for direction, form in (
        ("read", kernel.reads),
        ("write", kernel.writes),
        ("atomic", kernel.adds),
    ):
        for name, counted in _by_buffer(direction, form, counters).items():
            yield f"{direction} {name}", form.get(name, NOTHING), counted


def _by_buffer(
    direction: str, form: Mapping[str, Traffic], counters: Counters
) -> dict[str, Traffic]:
    """What was counted of each tensor, and of those that the form names."""
    suffix = ".sectors"
    names = {
        name.removeprefix(f"{direction}.").removesuffix(suffix)
        for name in counters
        if name.startswith(f"{direction}.") and name.endswith(suffix) and name.count(".") == 2
    }

    def sectors(name: str, kind: str) -> int:
        return int(counters.get(f"{direction}.{name}.{kind}", 0)) * SECTOR_BYTES

    return {
        name: Traffic(sectors(name, "sectors"), sectors(name, "distinct_sectors"))
        for name in sorted(names | set(form))
    }
