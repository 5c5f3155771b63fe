"""PyTorch modules over the attention functions: `Attention`, `LatentAttention`, `RotaryEmbedding`.

They take dense tensors (batch, seqlen, ...) and packed ones (total, ...), whose sequences lie one
after another at the rows that `cu_seqlens`, int32 (batch + 1,), names. `unpad_input` and
`pad_input` lead from a padded batch to packed tensors and back.
"""

from flash_attn2._impl.rotary import RotaryEmbedding
from flash_attn2.nn.attention import Attention
from flash_attn2.nn.latent_attention import LatentAttention
from flash_attn2.nn.slopes import alibi_slopes

__all__ = ["Attention", "LatentAttention", "RotaryEmbedding", "alibi_slopes"]
