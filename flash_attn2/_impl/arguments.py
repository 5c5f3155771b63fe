"""Python types of arguments: what passes for a number, a truth value or a tensor, and what is
said where something does not.
"""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from flash_attn2._impl.tensors import in_memory, require_strided

_STRIDED = torch.strided
_Function = TypeVar("_Function", bound=Callable[..., Any])

_MASKS = "causal, window_size, the varlen functions, or block_mask of flash_attn_func"

# What other attention functions call these things.
_OTHER_NAMES = {
    "attention_mask": _MASKS,
    "attn_bias": "bias, alibi_slopes, causal or window_size",
    "attn_mask": _MASKS,
    "cu_seqlens": "cu_seqlens_q and cu_seqlens_k",
    "dropout": "dropout_p",
    "enable_gqa": "k and v with fewer heads, without an option",
    "is_causal": "causal",
    "key": "k",
    "learnable_sink": "sink",
    "logits_soft_cap": "softcap",
    "mask": _MASKS,
    "max_seqlen": "max_seqlen_q and max_seqlen_k",
    "num_key_value_heads": "num_heads_kv",
    "num_kv_heads": "num_heads_kv",
    "p": "dropout_p",
    "p_dropout": "dropout_p",
    "page_table": "block_table",
    "query": "q",
    "return_softmax_lse": "return_lse",
    "s_aux": "sink",
    "scale": "softmax_scale",
    "scaling": "softmax_scale",
    "sinks": "sink",
    "sliding_window": "window_size",
    "sm_scale": "softmax_scale",
    "softmax_cap": "softcap",
    "value": "v",
}

_DENSE_ONLY = ("block_mask", "bias", "relative_bias")
_WHERE = (
    ": flash_attn_func takes it, of dense tensors; packed sequences are one sequence there, with "
    "a mask by flash_attn2.masks.documents(cu_seqlens)"
)


def named_only(function: _Function) -> _Function:
    """For functions whose last parameter is `**unknown`: documents them without it.

    They call `refuse_keywords`, since Python's own error suggests nothing. (A wrapper would cost a
    tiny call more than its checks.)
    """
    signature = inspect.signature(function)
    *named, _ = signature.parameters.values()
    function.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    return function


def refuse_keywords(function: Callable[..., Any], unknown: Iterable[str]) -> None:
    """TypeError for keywords that `function` has not, with the name that was probably meant."""
    known = list(inspect.signature(function).parameters)
    name = next(iter(unknown))
    text = f"{function.__name__} has no argument {name!r}"
    if name in _DENSE_ONLY:
        text += _WHERE
    elif name in _OTHER_NAMES and _OTHER_NAMES[name].split()[0].strip(",") in known:
        text += f": use {_OTHER_NAMES[name]}"
    elif close := difflib.get_close_matches(name, known, n=1, cutoff=0.7):
        text += f": use {close[0]}"
    raise TypeError(text)


def require_tensor(name: str, value: Any) -> None:
    """TypeError unless `value` is a tensor, and neither nested nor sparse."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {_described(value)}")
    if value.layout is not _STRIDED or value.is_nested:
        require_strided(name, value)


def require_values(name: str, value: Tensor) -> Tensor:
    """The tensor, as one that can be read. ValueError where there is nothing to be read."""
    if type(value) is not Tensor or torch.compiler.is_compiling():
        return value
    if value.is_meta:
        raise ValueError(f"{name} must have values, got a tensor on the device meta")
    return in_memory(name, value) if value.is_cpu else value


def require_tensors(names: tuple[str, ...], *values: Any) -> None:
    """`require_tensor` of each; those whose names begin with `?` may be None."""
    for name, value in zip(names, values, strict=True):
        # What `require_tensor` finds out, without a call for it.
        if type(value) is Tensor and value.layout is _STRIDED and not value.is_nested:
            continue
        if value is not None or not name.startswith("?"):
            require_tensor(name.lstrip("?"), value)


def require_bool(name: str, value: Any) -> None:
    """TypeError unless `value` is True or False, or 1 or 0: the string "False" counts as true."""
    if isinstance(value, (bool, torch.SymBool)) or _is_numpy_bool(value):
        return
    if type(value) is not int or value not in (0, 1):
        raise TypeError(f"{name} must be a bool, got {_described(value)}")


def as_int(name: str, value: Any) -> int:
    """An integer, numpy's and tensors without dimensions included (of which a GPU's is waited for).

    TypeError for anything else, bool included.
    """
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value  # type: ignore[return-value]
    if isinstance(value, Tensor):
        require_tensor(name, value)
        if value.ndim != 0 or value.is_floating_point() or value.dtype == torch.bool:
            raise TypeError(
                f"{name} must be an int or an integer tensor without dimensions, got a tensor of "
                f"{value.dtype} and shape {tuple(value.shape)}"
            )
        return int(require_values(name, value))
    try:
        if isinstance(value, bool) or _is_numpy_bool(value):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {_described(value)}") from None


def as_bound(name: str, value: Any, known: int) -> int:
    """An upper bound as `as_int` takes it; `known`, a larger one, where reading it from a tensor
    would wait in a CUDA graph's capture or break a graph of torch.compile."""
    if isinstance(value, Tensor) and value.ndim == 0 and not _readable(value):
        return known
    return as_int(name, value)


def as_number(name: str, value: Any) -> float:
    """A real number. TypeError for anything else, bool included."""
    if type(value) is float or isinstance(value, torch.SymFloat):
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {_described(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number within the range of a float") from None


def _is_numpy_bool(value: Any) -> bool:
    kind = type(value)
    return kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_")


def traced() -> bool:
    """Whether make_fx records what is done to tensors, which must not be asked for values."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def _readable(value: Tensor) -> bool:
    if torch.compiler.is_compiling() or type(value) is not Tensor or value.is_meta or traced():
        return False
    return not (value.is_cuda and torch.cuda.is_current_stream_capturing())


def _described(value: Any) -> str:
    """Its type, and of what is short, itself."""
    text = repr(value) if isinstance(value, (bool, int, float, str, type(None))) else ""
    kind = type(value).__name__
    return f"{kind} {text}" if 0 < len(text) < 40 and value is not None else kind
