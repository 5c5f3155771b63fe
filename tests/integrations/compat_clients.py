"""Programs that import flash-attn, on `flash_attn2.compat`; each in a process of its own.

python compat_clients.py ring_flash_attn
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flash_attn2 import compat, flash_attn_func


def counted() -> list[int]:
    """A count of calls of the functions that clients import from now on."""
    count = [0]

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            return function(*args, **kwargs)

        return call

    for module in map(importlib.import_module, ("flash_attn", "flash_attn_interface")):
        for name in module.__all__:
            setattr(module, name, counting(getattr(module, name)))
    return count


# ring-flash-attn: pieces of a sequence in two processes as the whole in one.


def shard(name: str, x: Tensor, rank: int, world: int) -> Tensor:
    if name.startswith("zigzag"):
        pieces = x.chunk(2 * world, 1)
        return torch.cat([pieces[rank], pieces[2 * world - 1 - rank]], 1)
    if name.startswith("stripe"):
        return x.unflatten(1, (-1, world))[:, :, rank].contiguous()
    return x.chunk(world, 1)[rank].contiguous()


def ring_process(rank: int, world: int, port: int) -> None:
    compat.install()
    # Its adapter to transformers asks for a function that newer releases lack.
    adapters = types.ModuleType("ring_flash_attn.adapters")
    vars(adapters).update(substitute_hf_flash_attn=None, update_ring_flash_attn_params=None)
    sys.modules[adapters.__name__] = adapters
    import ring_flash_attn

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    # Of float32, its backward passes add to a tensor that they also take for a buffer.
    whole = [torch.randn(1, 16, heads, 16).bfloat16() for heads in (4, 2, 2)]
    dout = torch.randn(1, 16, 4, 16).bfloat16()
    for name in ("ring_flash_attn", "zigzag_ring_flash_attn", "stripe_flash_attn"):
        leaves = [x.clone().requires_grad_() for x in whole]
        expected: Any = flash_attn_func(*leaves, causal=True)
        expected.backward(dout)
        mine = [shard(name, x, rank, world).requires_grad_() for x in whole]
        out = getattr(ring_flash_attn, f"{name}_func")(*mine, causal=True)
        out.backward(shard(name, dout, rank, world))
        close = {"rtol": 0.02, "atol": 0.03}
        torch.testing.assert_close(out, shard(name, expected, rank, world), **close)
        for piece, leaf in zip(mine, leaves, strict=True):
            assert leaf.grad is not None
            torch.testing.assert_close(piece.grad, shard(name, leaf.grad, rank, world), **close)
    torch.distributed.destroy_process_group()


def run_ring_flash_attn() -> None:
    port = 20000 + os.getpid() % 20000
    torch.multiprocessing.spawn(ring_process, (2, port), nprocs=2)


# diffusers: its backends "flash", "flash_varlen" and FlashAttention-3's, with masks.


def run_diffusers() -> None:
    compat.install()
    count = counted()
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    q, k, v = (torch.randn(2, 9, 4, 16) for _ in "qkv")
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    for name, masks in (
        ("flash", (None,)),
        ("flash_varlen", (None, mask)),
        ("_flash_varlen_3", (None, mask)),
    ):
        for given in masks:
            before = count[0]
            options = {"attn_mask": given, "backend": AttentionBackendName(name)}
            out = dispatch_attention_fn(q, k, v, **options)
            four = None if given is None else given[:, None, None]
            native = {"attn_mask": four, "backend": AttentionBackendName.NATIVE}
            torch.testing.assert_close(out, dispatch_attention_fn(q, k, v, **native))
            assert count[0] > before, name


# transformers: "flash_attention_2" and "flash_attention_3". It asks for a GPU; here it is told that
# there is one.


def run_transformers() -> None:
    compat.install()
    from transformers import utils
    from transformers.utils import import_utils

    utils.is_torch_cuda_available = import_utils.is_torch_cuda_available = lambda: True
    import transformers as hf

    config = hf.LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=99,
    )
    make = hf.AutoModelForCausalLM.from_config
    torch.manual_seed(0)
    eager = make(config, attn_implementation="eager").bfloat16()
    ids, mask = torch.randint(0, 99, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    mask[0, :5] = 0
    exact = eager.float()(ids, attention_mask=mask).logits[mask.bool()]
    low = eager.bfloat16()(ids, attention_mask=mask).logits[mask.bool()]
    bound = 1.5 * (low - exact).abs().max()
    count = counted()
    for name in ("flash_attention_2", "flash_attention_3"):
        model = make(config, attn_implementation=name, dtype=torch.bfloat16)
        model.load_state_dict(eager.state_dict())
        before = count[0]
        logits = model(ids, attention_mask=mask).logits[mask.bool()]
        assert count[0] == before + 2, name
        assert (logits - exact).abs().max() <= bound
        loss = model(ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters())


if __name__ == "__main__":
    clients: dict[str, Callable[[], None]] = {
        "ring_flash_attn": run_ring_flash_attn,
        "diffusers": run_diffusers,
        "transformers": run_transformers,
    }
    clients[sys.argv[1]]()
