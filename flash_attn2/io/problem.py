"""The attention that is looked at, and the device that it would run on."""

from __future__ import annotations

from dataclasses import dataclass

ELEMENT_BYTES = 2  # float16 and bfloat16
FLOAT_BYTES = 4
MAX_SEQLEN, MAX_PAIRS = 2**20, 2**14
MAX_HEAD_DIM = 512


def check(name: str, value: int, multiple: int, least: int, most: int) -> None:
    if not least <= value <= most or value % multiple:
        of = "" if multiple == 1 else f"a multiple of {multiple} "
        raise ValueError(f"{name} must be {of}from {least} to {most}, got {value}")


class Widths:
    """What has heads, whose values may have another width; None: that of the keys."""

    head_dim: int
    head_dim_v: int | None

    @property
    def width_v(self) -> int:
        """Of values and the output."""
        return self.head_dim if self.head_dim_v is None else self.head_dim_v

    @property
    def widths(self) -> str:
        of_values = "" if self.width_v == self.head_dim else f"/{self.width_v}"
        return f"{self.head_dim}{of_values}"


@dataclass(frozen=True)
class Device:
    """What plans know of a GPU (`csrc/host/device.h`)."""

    name: str
    arch: int
    sm_count: int
    smem_per_block: int
    l2_bytes: int


_KIB, _MIB = 2**10, 2**20
DEVICES = {
    device.name: device
    for device in (
        Device("a100", 80, 108, 163 * _KIB, 40 * _MIB),
        Device("rtx3090", 86, 82, 99 * _KIB, 6 * _MIB),
        Device("h100", 90, 132, 227 * _KIB, 50 * _MIB),
    )
}
A100 = DEVICES["a100"]


@dataclass(frozen=True)
class Attention(Widths):
    """Self-attention in half precision, (batch, seqlen, heads, head_dim) without gaps.

    Values may have another width, `head_dim_v`; None: that of the keys. Rows of tensors and of
    scores fill sectors. Raises ValueError.
    """

    seqlen: int
    batch: int = 1
    heads: int = 16
    head_dim: int = 64
    causal: bool = False
    device: Device = A100
    head_dim_v: int | None = None

    def __post_init__(self) -> None:
        check("seqlen", self.seqlen, 16, 256, MAX_SEQLEN)
        check("head_dim", self.head_dim, 16, 16, MAX_HEAD_DIM)
        check("head_dim_v", self.width_v, 16, 16, MAX_HEAD_DIM)
        check("batch", self.batch, 1, 1, MAX_PAIRS)
        check("heads", self.heads, 1, 1, MAX_PAIRS)
        if self.pairs > MAX_PAIRS:
            raise ValueError(f"batch * heads must be at most {MAX_PAIRS}, got {self.pairs}")

    def __str__(self) -> str:
        mask = ", causal" if self.causal else ""
        return (
            f"{self.batch} x {self.heads} heads of {self.widths}, {self.seqlen} tokens{mask}, "
            f"{self.device.name}"
        )

    @property
    def pairs(self) -> int:
        """Of batch and head."""
        return self.batch * self.heads

    @property
    def rows(self) -> int:
        return self.pairs * self.seqlen

    @property
    def key_bytes(self) -> int:
        """Of q, k, and each of their gradients."""
        return self.rows * self.head_dim * ELEMENT_BYTES

    @property
    def value_bytes(self) -> int:
        """Of v, the output, and each of their gradients."""
        return self.rows * self.width_v * ELEMENT_BYTES

    @property
    def lse_bytes(self) -> int:
        return self.rows * FLOAT_BYTES

    @property
    def square_bytes(self) -> int:
        """Of one matrix of scores or probabilities."""
        return self.rows * self.seqlen * ELEMENT_BYTES
