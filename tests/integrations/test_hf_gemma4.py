"""Gemma 4: global layers with heads of 512 columns, the others with heads of 256, and GQA."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hf_models import WIDTHS, Model, counted, difference, gradients, token_ids
from support import require_backend
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("registered")

CONFIG = {
    **WIDTHS,
    **{"head_dim": 256, "global_head_dim": 512, "num_key_value_heads": 2, "sliding_window": 8},
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 0,
}
# Where keys are the values, global layers may have other heads of theirs.
KEYS_ARE_VALUES = {**CONFIG, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
LAYERS = 2


def results(model: nn.Module, ids: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    logits = model(ids, use_cache=False, **options).logits
    return logits.detach(), list(gradients(model, logits))


@pytest.mark.parametrize("backend", ["cpu", "sm80-emulated"])
@pytest.mark.parametrize("config", [CONFIG, KEYS_ARE_VALUES], ids=["apart", "k is v"])
def test_forward_and_backward(config: dict[str, Any], backend: str) -> None:
    """In bfloat16, with at most twice (gradients: three times) the errors of eager attention."""
    require_backend(backend)
    ours, eager = Model("Gemma4ForCausalLM", "Gemma4TextConfig", config).pair()
    widths = [layer.self_attn.head_dim for layer in eager.model.layers]  # type: ignore[union-attr]
    assert widths == [256, 512]
    exact, ids = copy.deepcopy(eager).double(), token_ids(1)
    with counted(backend) as calls:
        logits, grads = results(ours.bfloat16(), ids)
        assert calls.take() == 2 * LAYERS
    low_logits, low_grads = results(eager.bfloat16(), ids)
    want_logits, want_grads = results(exact, ids)
    assert difference(logits, want_logits) <= 2 * difference(low_logits, want_logits) + 1e-5
    used = [i for i, want in enumerate(want_grads) if want.any()]
    assert len(used) > 10
    for i in used:
        got, low, want = grads[i], low_grads[i], want_grads[i]
        assert difference(got, want) <= 3 * difference(low, want) + 1e-5
