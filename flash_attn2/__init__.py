"""Exact, IO-aware attention for PyTorch, on CUDA and on the CPU."""

from typing import TYPE_CHECKING

from flash_attn2 import ops as ops  # defines torch.ops.flash_attn2
from flash_attn2._impl import flops as _flops
from flash_attn2._impl.build_info import build_info
from flash_attn2._impl.version import __version__
from flash_attn2.merging import merge_attention
from flash_attn2.padding import pad_input, unpad_input
from flash_attn2.probs import attention_probs, varlen_attention_probs
from flash_attn2.rotary import apply_rotary_emb

if TYPE_CHECKING:  # the same functions, with what each choice of results returns
    from flash_attn2._impl.typed_dense import (
        flash_attn_func,
        flash_attn_kvpacked_func,
        flash_attn_qkvpacked_func,
    )
    from flash_attn2._impl.typed_kvcache import flash_attn_with_kvcache
    from flash_attn2._impl.typed_varlen import (
        flash_attn_varlen_func,
        flash_attn_varlen_kvpacked_func,
        flash_attn_varlen_qkvpacked_func,
    )
else:
    from flash_attn2.functional import (
        flash_attn_func,
        flash_attn_kvpacked_func,
        flash_attn_qkvpacked_func,
        flash_attn_varlen_func,
        flash_attn_varlen_kvpacked_func,
        flash_attn_varlen_qkvpacked_func,
    )
    from flash_attn2.kvcache import flash_attn_with_kvcache

_flops.register()

__all__ = [
    "__version__",
    "apply_rotary_emb",
    "attention_probs",
    "build_info",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "merge_attention",
    "pad_input",
    "unpad_input",
    "varlen_attention_probs",
]
