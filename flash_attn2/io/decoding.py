"""Decoding over a KV cache: the attention that is looked at, and the least that it must move."""

from __future__ import annotations

from dataclasses import dataclass

from flash_attn2.io.problem import (
    A100,
    ELEMENT_BYTES,
    FLOAT_BYTES,
    MAX_PAIRS,
    MAX_SEQLEN,
    Device,
    Widths,
    check,
)

MAX_WIDTH, MAX_WIDTH_V = 576, 512
SCALE_UNITS = ("sequence", "row")
CODE_BYTES = 1


@dataclass(frozen=True)
class Decoding(Widths):
    """One query of each sequence over a dense cache (batch, seqlen_k, heads_kv, head_dim).

    Queries and results are in half precision, and so is the cache, unless `scales` says that it
    holds codes of 8 bits: with a scale for each sequence and head, or for each row (token) and
    head. `shared`: values are the leading columns of the keys, in the same memory. Rows of tensors
    fill sectors. Raises ValueError.
    """

    seqlen_k: int
    batch: int = 1
    heads: int = 32
    heads_kv: int = 8
    head_dim: int = 128
    head_dim_v: int | None = None
    scales: str | None = None
    shared: bool = False
    device: Device = A100

    def __post_init__(self) -> None:
        check("seqlen_k", self.seqlen_k, 16, 256, MAX_SEQLEN)
        check("head_dim", self.head_dim, 32, 32, MAX_WIDTH)
        check("head_dim_v", self.width_v, 32, 32, MAX_WIDTH_V)
        check("batch", self.batch, 1, 1, MAX_PAIRS)
        check("heads_kv", self.heads_kv, 1, 1, MAX_PAIRS)
        check("heads", self.heads, self.heads_kv, self.heads_kv, MAX_PAIRS)
        if self.scales not in (None, *SCALE_UNITS):
            raise ValueError(f"scales must be one of {', '.join(SCALE_UNITS)}, got {self.scales}")
        if self.shared and self.width_v > self.head_dim:
            raise ValueError(
                f"head_dim_v must be at most head_dim where keys hold the values, got {self.widths}"
            )

    def __str__(self) -> str:
        return f"{self.batch} x {self.cache}, {self.seqlen_k} keys, {self.device.name}"

    @property
    def cache(self) -> str:
        """What the cache holds, in words."""
        kind = "16 bits" if self.scales is None else f"8 bits, a scale a {self.scales}"
        values = ", values in keys" if self.shared else ""
        return f"{self.heads} heads on {self.heads_kv} of {self.widths}, {kind}{values}"

    @property
    def group(self) -> int:
        return self.heads // self.heads_kv

    @property
    def entry_bytes(self) -> int:
        """Of an entry of the cache."""
        return ELEMENT_BYTES if self.scales is None else CODE_BYTES

    @property
    def query_bytes(self) -> int:
        return self.batch * self.heads * self.head_dim * ELEMENT_BYTES

    @property
    def out_bytes(self) -> int:
        return self.batch * self.heads * self.width_v * ELEMENT_BYTES

    @property
    def cached_rows(self) -> int:
        """Of all sequences and heads."""
        return self.batch * self.seqlen_k * self.heads_kv

    @property
    def key_bytes(self) -> int:
        return self.cached_rows * self.head_dim * self.entry_bytes

    @property
    def value_bytes(self) -> int:
        """Of the values as rows of their own, wherever they lie."""
        return self.cached_rows * self.width_v * self.entry_bytes

    @property
    def scale_bytes(self) -> int:
        """Of the scales of keys, and of those of values."""
        if self.scales is None:
            return 0
        rows = self.cached_rows if self.scales == "row" else self.batch * self.heads_kv
        return rows * FLOAT_BYTES

    @property
    def least_bytes(self) -> int:
        """Queries, results with lse, and all of the cache and its scales once."""
        cached = self.key_bytes + (0 if self.shared else self.value_bytes) + 2 * self.scale_bytes
        results = self.out_bytes + self.batch * self.heads * FLOAT_BYTES
        return self.query_bytes + results + cached
