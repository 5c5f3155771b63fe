"""What is measured, most telling cases first: time may end before they do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flash_attn2.bench.cases import DTYPES, Case
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.sparse.cases import SparseCase


@dataclass(frozen=True)
class Sizes:
    """The FlashAttention-2 paper's protocol: so many tokens in all, whatever the length."""

    dtype: str
    tokens: int
    width: int  # heads times head dim
    head_dims: tuple[int, ...]
    seqlens: tuple[int, ...]
    grouped_head_dims: tuple[int, ...]  # with a quarter of the key heads, and one
    documents: tuple[int, ...]  # lengths of packed sequences
    decoding: tuple[tuple[int, int], ...]  # sequences, and keys of each
    decode_heads: tuple[int, int, int]  # query heads, key heads, head dim
    cold_bytes: int | None  # see Decoding
    patterns: tuple[str, ...]  # of block masks
    sparse_seqlens: tuple[int, ...]
    sparse_heads: int
    flex_blocks: tuple[int, ...]  # that FlexAttention is compiled for


PAPER = Sizes(
    dtype="float16",
    tokens=16384,
    width=2048,
    head_dims=(128, 64, 256, 96, 192, 32),
    seqlens=(4096, 16384, 1024, 8192, 2048, 512),
    grouped_head_dims=(128, 64),
    documents=(4096, 3100, 2048, 1900, 1500, 1024, 900, 700, 512, 300, 200, 104),
    # Flash-Decoding's table, then by length.
    decoding=((256, 256), (8, 8192), (1, 131072), (1, 65536), (16, 8192), (64, 2048), (1, 4096)),
    decode_heads=(16, 2, 128),
    cold_bytes=None,
    patterns=("documents", "bigbird", "prefix-lm", "random-10"),
    sparse_seqlens=(16384,),
    sparse_heads=12,
    flex_blocks=(128,),
)
TOY = replace(
    PAPER,
    tokens=32,
    width=64,
    head_dims=(64,),
    seqlens=(32,),
    grouped_head_dims=(64,),
    documents=(9, 7),
    decoding=((1, 64),),
    decode_heads=(2, 1, 64),
    cold_bytes=0,
    patterns=("documents",),
    sparse_seqlens=(64,),
    sparse_heads=1,
    flex_blocks=(),
)


def sweep(sizes: Sizes) -> Iterator[Case]:
    """Head dims by lengths, causal or not."""
    for seqlen in sizes.seqlens:
        for head_dim in sizes.head_dims:
            for causal in (False, True):
                heads = max(sizes.width // head_dim, 1)
                yield Case(
                    name=f"d{head_dim}/s{seqlen}/{mask(causal)}/{DTYPES[sizes.dtype]}",
                    group="head_dim",
                    dtype=sizes.dtype,
                    num_heads=heads,
                    num_heads_kv=heads,
                    head_dim=head_dim,
                    seqlens=(seqlen,) * max(sizes.tokens // seqlen, 1),
                    packed=False,
                    causal=causal,
                )


def grouped_and_packed(sizes: Sizes) -> Iterator[Case]:
    """Query heads that share keys, and sequences of all lengths in one batch."""
    seqlen = sizes.seqlens[0]
    dtype = DTYPES[sizes.dtype]
    for head_dim in sizes.grouped_head_dims:
        heads = max(sizes.width // head_dim, 2)
        base = Case(
            "",
            "model",
            sizes.dtype,
            heads,
            heads,
            head_dim,
            (seqlen,) * max(sizes.tokens // seqlen, 1),
            packed=False,
            causal=True,
        )
        name = f"packed/d{head_dim}/causal/{dtype}"
        yield replace(base, name=name, packed=True, seqlens=sizes.documents)
        for heads_kv in sorted({max(heads // 4, 1), 1}, reverse=True):
            name = f"grouped/d{head_dim}/h{heads}-{heads_kv}/s{seqlen}/causal/{dtype}"
            yield replace(base, name=name, num_heads_kv=heads_kv)


def decoding(sizes: Sizes) -> Iterator[DecodeCase]:
    """A full cache, in one piece and in pages."""
    heads, heads_kv, head_dim = sizes.decode_heads
    dtype = DTYPES[sizes.dtype]
    for page_size in (0, 64):
        for batch, seqlen in sizes.decoding:
            pages = f"/p{page_size}" if page_size else ""
            yield DecodeCase(
                f"decode/b{batch}/s{seqlen}{pages}/{dtype}",
                "page_size" if page_size else "kv_length",
                sizes.dtype,
                batch,
                seqlen,
                heads,
                heads_kv,
                head_dim,
                page_size,
            )


def sparse(sizes: Sizes) -> Iterator[SparseCase]:
    """Block masks, forward and both passes."""
    for seqlen in sizes.sparse_seqlens:
        for pattern in sizes.patterns:
            for group in ("fwd", "fwd+bwd"):
                name = f"{pattern}/s{seqlen}/{DTYPES[sizes.dtype]}/{group}"
                yield SparseCase(name, group, sizes.dtype, pattern, seqlen, sizes.sparse_heads, 64)


def mask(causal: bool) -> str:
    return "causal" if causal else "full"
