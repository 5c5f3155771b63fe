"""Multi-head latent attention, generating over a cache of latents and without a cache.

    python examples/latent_attention.py [tokens to generate]

A small decoder with random weights and the head widths of DeepSeek-V2. Over a cache of latents,
each token attends in the absorbed form; without one, every token attends over all keys anew, in the
expanded form. Both must choose the same tokens.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor, nn

from flash_attn2.inference import PagedKVCache, Step
from flash_attn2.nn import LatentAttention, RotaryEmbedding

VOCABULARY, LAYERS, WIDTH, HEADS, RANK, NOPE, ROPE, DIM_V = 512, 2, 256, 8, 512, 128, 64, 128
PROMPT, PAGE_SIZE = 96, 16


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        rotary = RotaryEmbedding(ROPE, interleaved=True)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.attention = nn.ModuleList(
            LatentAttention(
                WIDTH,
                HEADS,
                kv_lora_rank=RANK,
                qk_nope_head_dim=NOPE,
                qk_rope_head_dim=ROPE,
                v_head_dim=DIM_V,
                causal=True,
                rotary=rotary,
            )
            for _ in range(LAYERS)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(
        self, tokens: Tensor, cache: PagedKVCache | None = None, step: Step | None = None
    ) -> Tensor:
        """Of a whole sequence (1, seqlen); or, with a cache, of the tokens of a step (total,)."""
        x = self.embedding(tokens)
        for i, attention in enumerate(self.attention):
            layer_cache = None if cache is None else cache.layers[i]
            x = x + attention(x, cache=layer_cache, step=step)
        return self.head(x)  # type: ignore[no-any-return]


def with_cache(model: Decoder, prompt: list[int], count: int, cache: PagedKVCache) -> list[int]:
    sequence, text, new = cache.allocate(), list(prompt), list(prompt)
    for _ in range(count):
        step = cache.append([sequence], len(new))
        token = int(model(torch.tensor(new), cache, step)[-1].argmax())
        text.append(token)
        new = [token]
    return text


def without_cache(model: Decoder, prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    return text


@torch.inference_mode()
def main(count: int) -> None:
    torch.manual_seed(0)
    model = Decoder().eval()
    prompt = torch.randint(VOCABULARY, (PROMPT,)).tolist()
    pages = -(-(PROMPT + count) // PAGE_SIZE)
    cache = PagedKVCache(LAYERS, pages, PAGE_SIZE, 1, RANK + ROPE, head_dim_v=RANK, shared_kv=True)
    start = time.perf_counter()
    text = with_cache(model, prompt, count, cache)
    middle = time.perf_counter()
    if text != without_cache(model, prompt, count):
        raise SystemExit("the two forms chose different tokens")
    end = time.perf_counter()
    of_token = cache.usage().bytes_total / (pages * PAGE_SIZE * LAYERS)
    expanded = HEADS * (NOPE + ROPE + DIM_V) * 4
    print(
        f"{count} tokens, the same in both forms: {middle - start:.2f} s over a cache of "
        f"{of_token:.0f} bytes a token and layer (keys and values of {HEADS} heads: {expanded}), "
        f"{end - middle:.2f} s without"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
