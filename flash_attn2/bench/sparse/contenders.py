"""What is compared: flash_attn2 with the mask and without, SDPA, and compiled FlexAttention."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask as FlexMask
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

import flash_attn2
from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.sparse.cases import SparseCase
from flash_attn2.bench.sparse.patterns import PATTERNS, Sparsity, block_states
from flash_attn2.bench.suite import UnavailableError
from flash_attn2.masks import BlockMask

DENSE = "without a mask"  # flash_attn2
FLEX = "flex_attention"  # compiled

FLEX_BLOCKS = (64, 128, 256)
_DENSE_MASK = 1 + 4  # bytes a pair: of booleans, and of what SDPA makes of them


@dataclass(frozen=True)
class SparseProblem:
    """q, k, v and the gradient of the result, (1, seqlen, num_heads, head_dim), and the mask."""

    case: SparseCase
    sparsity: Sparsity
    mask: BlockMask
    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor | None  # if there is a backward pass

    @staticmethod
    def create(case: SparseCase, device: str) -> SparseProblem:
        generator = torch.Generator(device).manual_seed(0)
        shape = (1, case.seqlen, case.num_heads, case.head_dim)

        def tensor() -> Tensor:
            empty = torch.empty(shape, dtype=case.torch_dtype, device=device)
            return empty.normal_(generator=generator)

        sparsity = PATTERNS[case.pattern](case.seqlen, device)
        mask = sparsity.pattern.build(case.seqlen, device=device)
        q, k, v = tensor(), tensor(), tensor()
        return SparseProblem(
            case, sparsity, mask, q, k, v, tensor() if case.mode.gradients else None
        )

    @property
    def needed(self) -> float:
        """The share of blocks of 64 x 64 pairs in which something is visible."""
        blocks = -(-self.case.seqlen // 64)
        return self.mask.cols.numel() / blocks**2


@dataclass(frozen=True)
class SparseCall:
    """`attend` takes q, k and v in a layout of its own; `rows` gives what it returns the layout of
    the problem."""

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    inputs: tuple[Tensor, Tensor, Tensor]
    heads_first: bool = False

    def rows(self, tensor: Tensor) -> Tensor:
        return tensor.transpose(1, 2) if self.heads_first else tensor

    def result(self) -> Tensor:
        with torch.no_grad():
            return self.rows(self.attend(*self.inputs))

    def gradients(self, grad_out: Tensor) -> list[Tensor]:
        """Of q, k and v, in the layout of the problem."""
        return [self.rows(x) for x in self._differentiate(self.rows(grad_out))]

    def timed(self, grad_out: Tensor | None) -> Callable[[], Any]:
        if grad_out is None:
            return lambda: self.attend(*self.inputs)
        grad = self.rows(grad_out).contiguous()
        return lambda: self._differentiate(grad)

    def _differentiate(self, grad_result: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.attend(*self.inputs), self.inputs, grad_result)


def _inputs(problem: SparseProblem, heads_first: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    def arranged(tensor: Tensor) -> Tensor:
        found = tensor.transpose(1, 2).contiguous() if heads_first else tensor.clone()
        return found.requires_grad_(problem.grad_out is not None)

    return arranged(problem.q), arranged(problem.k), arranged(problem.v)


# The ways in which a contender can run a problem; each prepares what it needs.
Variants = Mapping[str, Callable[[], SparseCall]]


def _flash_attn2(problem: SparseProblem, block_mask: BlockMask | None) -> Variants:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn2.flash_attn_func(q, k, v, block_mask=block_mask)
        assert isinstance(out, Tensor)
        return out

    return {"": lambda: SparseCall(attend, _inputs(problem))}


def _sdpa(problem: SparseProblem, limit: float) -> Variants:
    size = _DENSE_MASK * problem.case.seqlen**2
    if size > limit:
        raise UnavailableError(f"needs {size / 2**30:.1f} GiB")
    visible = problem.mask.to_dense()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=visible)

    return {"": lambda: SparseCall(attend, _inputs(problem, True), True)}


def _flex(problem: SparseProblem, blocks: Sequence[int]) -> Variants:
    if problem.grad_out is not None and problem.q.device.type == "cpu":
        raise UnavailableError("no backward pass on CPUs")
    if not blocks:
        raise UnavailableError("left out")
    sizes = [size for size in blocks if problem.case.seqlen % size == 0]
    if not sizes:
        raise UnavailableError("needs whole blocks")
    return {f"by {size}": functools.partial(_flex_call, problem, size) for size in sizes}


def _flex_call(problem: SparseProblem, size: int) -> SparseCall:
    mask = flex_mask(problem.mask, problem.sparsity, size, problem.q.device)
    torch.compiler.reset()  # or it runs uncompiled after eight shapes
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = compiled(q, k, v, block_mask=mask)
        return out

    return SparseCall(attend, _inputs(problem, True), True)


def flex_mask(mask: BlockMask, sparsity: Sparsity, size: int, device: torch.device) -> FlexMask:
    """The mask in blocks of size x size pairs, from the lists: `create_block_mask` would look at
    every pair, which takes minutes."""
    factor = size // 64
    listed, full = (
        x.view(x.shape[0] // factor, factor, x.shape[1] // factor, factor)
        for x in block_states(mask)
    )
    some, all_of_it = listed.any(3).any(1), full.all(3).all(1)
    lists = [_lists(x, device) for x in (some & ~all_of_it, all_of_it)]
    return FlexMask.from_kv_blocks(
        *lists[0], *lists[1], BLOCK_SIZE=size, mask_mod=sparsity.mask_mod
    )


def _lists(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of each row, and which, those first."""
    counts = blocks.sum(1, dtype=torch.int32)
    order = torch.argsort(blocks.int(), dim=1, descending=True, stable=True).int()
    return counts[None, None].to(device), order[None, None].contiguous().to(device)


def contenders(
    limit: float, flex_blocks: Sequence[int] = FLEX_BLOCKS
) -> Mapping[str, Callable[[SparseProblem], Variants]]:
    """By name; each gives its ways to run a problem, or raises UnavailableError. SDPA does where
    its mask takes more than `limit` bytes, FlexAttention without any `flex_blocks`."""
    return {
        FLASH_ATTN2: lambda problem: _flash_attn2(problem, problem.mask),
        DENSE: lambda problem: _flash_attn2(problem, None),
        SDPA: lambda problem: _sdpa(problem, limit),
        FLEX: lambda problem: _flex(problem, flex_blocks),
    }
