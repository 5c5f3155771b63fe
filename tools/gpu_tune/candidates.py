"""Tiles that are worth a try, by kernel: fields after the head dims, as the headers have them."""

from __future__ import annotations

from collections.abc import Mapping

# Forward: queries, keys of a step, row warps, column warps, Q in registers, CTAs of a
# multiprocessor.
# Backward: keys, queries of a step, key warps, query warps, queries at once, K and V in registers,
# buffers of Q and dO, CTAs of a multiprocessor.
TILES: Mapping[str, Mapping[str, str]] = {
    "fwd_hd32_plain": {
        "128x64, 3 CTAs": "128, 64, 4, 1, true, 3",
        "128x128": "128, 128, 4, 1, true, 2",
    },
    "fwd_hd64_plain": {
        "128x32, 3 CTAs": "128, 32, 4, 1, false, 3",
        "64x64, 3 CTAs": "64, 64, 4, 1, true, 3",
        "128x128": "128, 128, 4, 1, false, 1",
    },
    "fwd_hd96_plain": {"128x32": "128, 32, 4, 1, false, 2", "64x64": "64, 64, 4, 1, true, 3"},
    "fwd_hd128_plain": {
        "128x32": "128, 32, 4, 1, false, 2",
        "128x48": "128, 48, 4, 1, false, 2",
        "64x64, Q in registers": "64, 64, 4, 1, true, 2",
    },
    "fwd_hd192_plain": {"128x64": "128, 64, 4, 2, false, 1", "64x64": "64, 64, 4, 1, false, 1"},
    "fwd_hd256_plain": {"128x32": "128, 32, 4, 2, false, 1", "64x32": "64, 32, 4, 1, false, 1"},
    "bwd_hd32_plain": {"128x64, 1 buffer": "128, 64, 4, 1, 32, true, true, 1, 2"},
    "bwd_hd64_plain": {"128x64, 1 buffer": "128, 64, 4, 1, 32, false, false, 1, 2"},
    "bwd_hd96_plain": {"128x64": "128, 64, 4, 2, 16, false, false, 1, 1"},
    "bwd_hd128_plain": {"64x64": "64, 64, 2, 2, 32, false, false, 1, 1"},
    "bwd_hd192_plain": {
        "64x64": "64, 64, 2, 4, 16, false, false, 1, 1",
        "32x32": "32, 32, 2, 2, 16, false, false, 1, 1",
    },
    "bwd_hd256_plain": {"32x32": "32, 32, 2, 2, 16, false, false, 1, 1"},
}
