"""What stands for the modules of flash-attn, and what to use for what does not."""

from __future__ import annotations

VERSION = "2.8.3"  # of which flash-attn these are the names and signatures
VERSION_3 = "3.0.0"
TOP_LEVEL = ("flash_attn", "flash_attn_interface", "flash_attn_3")

_HERE = "flash_attn2.compat.modules"
# Modules by name, with the module whose public names they have; "": none of their own.
OFFERED = {
    "flash_attn": f"{_HERE}.functions",
    "flash_attn.bert_padding": f"{_HERE}.bert_padding",
    "flash_attn.flash_attn_interface": f"{_HERE}.interface",
    "flash_attn.layers": "",
    "flash_attn.layers.rotary": f"{_HERE}.rotary",
    "flash_attn_interface": f"{_HERE}.interface_3",
    "flash_attn_3": "",
    "flash_attn_3.flash_attn_interface": f"{_HERE}.interface_3",
}

# Distribution, version, top-level modules.
DISTRIBUTIONS = (
    ("flash_attn", VERSION, ("flash_attn",)),
    ("flash_attn_3", VERSION_3, ("flash_attn_3", "flash_attn_interface")),
)

# By the beginnings of names; the longest that fits counts.
_INSTEAD = {
    "flash_attn_2_cuda": "torch.ops.flash_attn2, or flash_attn.flash_attn_interface",
    "flash_attn.losses": "torch.nn.functional.cross_entropy",
    "flash_attn.ops": "the modules of torch.nn, which torch.compile fuses",
    "flash_attn.ops.rms_norm": "torch.nn.RMSNorm",
    "flash_attn.ops.layer_norm": "torch.nn.LayerNorm",
    "flash_attn.ops.fused_dense": "torch.nn.Linear",
    "flash_attn.ops.activations": "torch.nn.functional",
    "flash_attn.ops.triton.rotary": "flash_attn2.apply_rotary_emb",
    "flash_attn.ops.triton.layer_norm": "torch.nn.LayerNorm and torch.nn.RMSNorm",
    "flash_attn.ops.triton.cross_entropy": "torch.nn.functional.cross_entropy",
    "flash_attn.modules": "torch.nn, with flash_attn2.nn.Attention for attention",
    "flash_attn.modules.mha": "flash_attn2.nn.Attention",
    "flash_attn.models": "transformers with flash_attn2.integrations.transformers",
    "flash_attn.utils": "torch and transformers; flash_attn2.inference for generation",
    "flash_attn.utils.generation": "flash_attn2.inference.PagedKVCache",
    "flash_attn.utils.benchmark": "torch.utils.benchmark, or python -m flash_attn2 bench",
    "flash_attn.cute": "flash_attn and flash_attn_interface, of FlashAttention-2 and -3",
    "flash_attn.flash_attn_triton": "flash_attn2.flash_attn_func, whose bias= it was for",
    "flash_attn.flash_blocksparse_attention": "flash_attn2.masks",
    "flash_attn.flash_attn_interface.Flash": "the functions, which autograd differentiates",
    "flash_attn_3._C": "flash_attn_interface",
}


def instead_of(name: str) -> str:
    """What to say of something that is not offered."""
    fitting = [known for known in _INSTEAD if name.startswith(known)]
    if fitting:
        return f"flash_attn2.compat has no {name}: use {_INSTEAD[max(fitting, key=len)]}"
    module = name.rpartition(".")[0]
    return f"flash_attn2.compat has no {name}: see dir({module}) for what it offers"
