"""`nn.LatentAttention` with the parameters of transformers' DeepSeek V3."""

from __future__ import annotations

import torch
from hf_models import DECODERS
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

from flash_attn2.nn import LatentAttention, RotaryEmbedding


def test_parameters_and_results() -> None:
    config = DeepseekV3Config(**DECODERS["DeepSeek V3"].config, attn_implementation="eager")
    theirs = deepseek.DeepseekV3Attention(config, 0).eval()
    rotary = deepseek.DeepseekV3RotaryEmbedding(config)
    dim = config.qk_rope_head_dim
    mine = LatentAttention(
        config.hidden_size,
        config.num_attention_heads,
        kv_lora_rank=config.kv_lora_rank,
        q_lora_rank=config.q_lora_rank,
        qk_nope_head_dim=config.qk_nope_head_dim,
        qk_rope_head_dim=dim,
        v_head_dim=config.v_head_dim,
        causal=True,
        rotary=RotaryEmbedding(dim, interleaved=True),
    )
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 13, config.hidden_size)
    positions = torch.arange(13)[None]
    mask = torch.full((13, 13), -torch.inf).triu(1)[None, None]
    expected, _ = theirs(x, position_embeddings=rotary(x, positions), attention_mask=mask)
    torch.testing.assert_close(mine(x), expected)
