"""Patterns of sequences that are packed into one: queries see the keys of their own document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.problem import MAX_SEQLEN
from flash_attn2.masks.arguments import integers
from flash_attn2.masks.pattern import Build, Leaf

__all__ = ["documents"]


def documents(ids: Tensor | None = None, *, cu_seqlens: Tensor | None = None) -> Documents:
    """Queries see the keys of their own document, given by one of

        ids         integers (seqlen_k,) or (batch, seqlen_k): the document of each key. Those of
                    one document need not lie together. Below 0: of none, neither seeing nor seen
        cu_seqlens  integers (documents + 1,), from 0 on without decreasing: document i is keys
                    cu_seqlens[i] to cu_seqlens[i + 1]. Keys behind the last are of none

    A query is of the document of the key on whose diagonal it stands, i + seqlen_k - seqlen_q, and
    of none where there is no such key. The numbers are read at once, and the tensors not kept.
    TypeError for other types, ValueError for other shapes or values.
    """
    if (ids is None) == (cu_seqlens is None):
        raise TypeError("documents needs either ids or cu_seqlens")
    if cu_seqlens is not None:
        return _of_cu_seqlens(integers("cu_seqlens", cu_seqlens))
    assert ids is not None
    return _of_ids(integers("ids", ids))


@dataclass(frozen=True, eq=False, repr=False)
class Documents(Leaf):
    """Runs of keys of one document, of all sequences one after the other."""

    starts: Tensor
    """int32 (runs,): a run begins here, and ends where the next of its sequence does."""
    labels: Tensor
    """int32 (runs,): which document; -1: none."""
    offsets: Tensor
    """int64 (batch + 1,): the runs of each sequence."""
    shortest: int
    longest: int
    """The least and the largest seqlen_k that it is for."""

    @property
    def batch(self) -> int:
        return self.offsets.numel() - 1

    def lower(self, build: Build) -> dict[str, Any]:
        if not self.shortest <= build.seqlen_k <= self.longest:
            least = "" if self.shortest == self.longest else "at least "
            raise ValueError(
                f"seqlen_k must be {least}{self.shortest}, as documents has it, got "
                f"{build.seqlen_k}"
            )
        return {
            "kind": "documents",
            "starts": build.address(self.starts),
            "ids": build.address(self.labels),
            "offsets": build.address(self.offsets),
            "batch": self.batch,
        }

    def __repr__(self) -> str:
        count = torch.unique(self.labels[self.labels >= 0]).numel()
        batch = f", batch={self.batch}" if self.batch > 1 else ""
        return f"documents({count} in {self.shortest} keys{batch})"


def _of_ids(ids: Tensor) -> Documents:
    if ids.ndim not in (1, 2) or (ids.ndim == 2 and ids.shape[0] == 0):
        raise ValueError(
            f"ids must have shape (seqlen_k,) or (batch, seqlen_k), got {tuple(ids.shape)}"
        )
    ids = ids.view(-1, ids.shape[-1]) if ids.ndim == 2 else ids[None]
    seqlen = _checked_length("ids", ids.shape[1])
    begins = torch.ones_like(ids, dtype=torch.bool)
    torch.ne(ids[:, 1:], ids[:, :-1], out=begins[:, 1:])
    batch, starts = begins.nonzero(as_tuple=True)
    of_runs = ids[batch, starts].clamp(min=-1)
    known, labels = torch.unique(of_runs, return_inverse=True)
    if known.numel() and int(known[0]) < 0:
        labels = labels - 1
    offsets = torch.zeros(ids.shape[0] + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(begins.sum(-1), 0, out=offsets[1:])
    return Documents(starts.int(), labels.int(), offsets, seqlen, seqlen)


def _of_cu_seqlens(cu_seqlens: Tensor) -> Documents:
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 1:
        raise ValueError(
            f"cu_seqlens must have shape (documents + 1,), got {tuple(cu_seqlens.shape)}"
        )
    lengths = cu_seqlens.diff()
    if int(cu_seqlens[0]) != 0 or bool((lengths < 0).any()):
        raise ValueError(f"cu_seqlens must begin with 0 and not decrease, got {cu_seqlens}")
    end = _checked_length("cu_seqlens", int(cu_seqlens[-1]))
    starts = cu_seqlens[:-1][lengths > 0]
    labels = torch.arange(starts.numel() + 1, device="cpu")
    labels[-1] = -1
    return Documents(
        torch.cat([starts, cu_seqlens[-1:]]).int(),
        labels.int(),
        torch.tensor([0, labels.numel()], device="cpu"),
        end,
        MAX_SEQLEN,
    )


def _checked_length(name: str, seqlen: int) -> int:
    if seqlen > MAX_SEQLEN:
        raise ValueError(f"{name} must be of at most {MAX_SEQLEN} keys, got {seqlen}")
    return seqlen
