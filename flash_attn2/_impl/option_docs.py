"""What the options of the attention functions mean: the part that their docstrings share."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

_TEXTS = {
    "max_seqlen_q": (
        "int, or an integer tensor without dimensions: at least the longest sequence of "
        "queries; None: looked up on the CPU, the number of rows on a GPU"
    ),
    "max_seqlen_k": "likewise of keys",
    "max_seqlen": (
        "int, or an integer tensor without dimensions: at least the longest sequence; None: "
        "looked up on the CPU, the number of rows on a GPU"
    ),
    "dropout_p": (
        "probability of dropping a softmax entry, from 0 to 1 - 2^-10; applied whenever above "
        "0, in steps of 2^-16"
    ),
    "softmax_scale": (
        "factor on the scores, 0 or from 2^-100 to 2^100; None: 1 / sqrt(head_dim), of q (which is "
        "not what absorbed MLA means: there it is that of the heads before absorption)"
    ),
    "causal": (
        "a query sees keys up to its own position, aligned to the bottom-right corner: query "
        "i sees key j iff j <= i + seqlen_k - seqlen_q"
    ),
    "window_size": (
        "(left, right): query i sees keys from i + seqlen_k - seqlen_q - left to i + seqlen_k "
        "- seqlen_q + right inclusive; -1: no bound; `causal` sets right to 0"
    ),
    "softcap": (
        "cap > 0: scores become cap * tanh(score / cap) (Gemma 2); from 2^-100 to 2^100, and "
        "within a factor 2^120 of softmax_scale; 0: none"
    ),
    "alibi_slopes": (
        "float32 (num_heads,) or (batch, num_heads): the bias is -slope * |i + seqlen_k - "
        "seqlen_q - j| (Press et al. 2021); None: none"
    ),
    "deterministic": (
        "the gradients are bitwise the same in every run, as out always is: dQ is summed in a "
        "fixed order instead of as blocks of keys finish (CUDA), and the work is cut up "
        "independently of the number of threads (CPU). It costs some speed and next to no "
        "memory. torch.use_deterministic_algorithms(True) asks for it too"
    ),
    "return_attn_probs": (
        "return (out, lse, probs), as flash-attn does: without dropout probs is empty "
        "(`attention_probs` computes the matrix); with it, the softmax in q's dtype, (batch, "
        "num_heads, seqlen_q, seqlen_k), negative where an entry was dropped, not scaled by 1 "
        "/ (1 - dropout_p), in quadratic memory and without gradient"
    ),
    "block_table": (
        "int32 (batch, pages): k and v are pages of a cache, (num_pages, page_size, "
        "num_heads_kv, head_dim or head_dim_v); None: packed rows"
    ),
    "sink": (
        "float32 (num_heads,): a logit per head that joins the softmax denominator only; None: none"
    ),
    "seqused_q": (
        "int32 (batch,): of each sequence only so many queries count, the first ones; masks "
        "and ALiBi align to the last of them. The rows after them may hold anything: their "
        "out is 0, their lse -inf (with a sink too), their gradients 0; None: all"
    ),
    "seqused_k": (
        "int32 (batch,): of each sequence only so many keys count, the first ones; None: all"
    ),
    "return_lse": (
        "return (out, lse): the natural-log normaliser of each row in float32, (batch, "
        "num_heads, seqlen_q), packed (num_heads, total_q). With return_attn_probs too, the "
        "triple"
    ),
    "out": (
        "memory for the result, of its shape and dtype, where no gradient is asked for; None: "
        "new memory"
    ),
    "block_mask": (
        "a `flash_attn2.masks.BlockMask` of these lengths: which keys each query sees, by "
        "blocks of 64 queries and 64 keys; blocks that it does not list are not computed. "
        "Packed sequences are one sequence there, with a mask by `masks.documents`. Its batch "
        "is 1 or that of q, its heads are 1, num_heads_kv or num_heads. It goes with "
        "everything but causal and window_size, which are said in the mask (`masks.causal() & "
        "...`), and seqused_q; None: none"
    ),
    "bias": (
        "added to the scores: of q's dtype or float32, and any shape of 1 to 4 dimensions "
        "that broadcasts to (batch, num_heads, seqlen_q, seqlen_k), with any strides. It is "
        "read where it lies, never copied or expanded. -inf hides a key; +inf and NaN give "
        "NaN; None: none"
    ),
    "relative_bias": (
        "added likewise, by the distance of key and query: float32 (num_heads or 1, seqlen_q "
        "+ seqlen_k - 1), of which entry j - i + seqlen_q - 1 is added to the score of query "
        "i and key j (T5, KERPLE); float64 is taken with q in float64; None: none"
    ),
}


def with_options(function: _Function) -> _Function:
    """Appends to its docstring what each of its options means, and the default."""
    if function.__doc__ is None:  # python -OO
        return function
    lines = [inspect.cleandoc(function.__doc__), "", "Options:", ""]
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not parameter.empty:
            text = f"{parameter.name} = {parameter.default}: {_TEXTS[parameter.name]}"
            lines += textwrap.wrap(text, 92, initial_indent="    ", subsequent_indent=" " * 8)
    lines += ["", "Masks, gradients, dtypes and errors: see `flash_attn2.functional`."]
    function.__doc__ = "\n".join(lines)
    return function
