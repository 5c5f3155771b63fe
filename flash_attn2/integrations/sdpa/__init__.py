"""PyTorch's scaled_dot_product_attention on the kernels of this package.

    from flash_attn2.integrations import sdpa

    sdpa.activate()    # torch.nn.functional.scaled_dot_product_attention from now on
    sdpa.deactivate()  # and no longer

`scaled_dot_product_attention` is a function of this package with the arguments of PyTorch's, for
calls by name. `docs/pytorch.md` says what each of the two covers.
"""

from __future__ import annotations

from flash_attn2.integrations.sdpa.function import scaled_dot_product_attention
from flash_attn2.integrations.sdpa.registration import NAME, activate, deactivate

__all__ = ["NAME", "activate", "deactivate", "scaled_dot_product_attention"]
