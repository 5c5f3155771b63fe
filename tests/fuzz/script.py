"""A problem -> a program that needs nothing but flash_attn2."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch

from . import memory
from .call import Call, Integers, Numbers, described
from .check import WRITTEN, more_of
from .codes import SCALE, CodeSpec, ScaleSpec
from .layout import PLAIN, Columns, Spec
from .masks import MaskSpec, random_block_mask
from .problem import Problem

_OBSERVERS = {
    "mode": "torch.utils.flop_counter.FlopCounterMode(display=False)",
    "profiler": "torch.profiler.profile()",
}


def script(problem: Problem, guarded: bool) -> str:
    """The call of a problem, and how far its results are from the reference's.

    Without guard pages the program is shorter, and no access out of bounds crashes it.
    """
    call = described(problem)
    lines = [
        "import torch",
        "import torch.utils.flop_counter",
        "import flash_attn2",
        "from flash_attn2 import reference",
        "from flash_attn2._impl import launch",
        "",
        *(_guarded(problem) if guarded else _poisoned()),
        "arguments, rng_state = {}, None",
    ]
    for name, value in call.arguments.items():
        if isinstance(value, MaskSpec):
            lines += _block_mask(value, guarded)
        else:
            lines += _argument(name, value)
    if call.differentiated:
        lines += [
            f"names = {call.differentiated}",
            "leaves = {x: arguments[x].detach().requires_grad_() for x in names}",
            "arguments |= leaves",
        ]
    lines += _results(problem, call)
    lines += _expected(problem, call)
    if call.grad_out is not None:
        lines += _gradients(problem, call)
    lines += [
        "for name, (x, want) in results.items():",
        "    off = (x.double() - want).abs().masked_fill(x == want, 0)",
        "    off = off.nan_to_num(nan=torch.inf)",
        '    print(name, "is off by", off.max().item() if off.numel() else 0.0)',
    ]
    return "\n".join(lines)


def _poisoned() -> list[str]:
    return [
        "def memory(count, dtype):",
        "    nothing = torch.nan if dtype.is_floating_point else 255",
        "    return torch.full((count,), nothing, dtype=dtype)",
        "",
    ]


def _guarded(problem: Problem) -> list[str]:
    """Memory between guard pages, where an access out of bounds crashes."""
    functions = "\n\n".join(map(inspect.getsource, (memory.guarded, memory.poison)))
    return [
        "import ctypes, mmap",
        "from torch import Tensor",
        "_PAGE, _libc = mmap.PAGESIZE, ctypes.CDLL(None)",
        "_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)",
        "",
        functions,
        "",
        "def memory(count, dtype):",
        f"    return guarded(count, dtype, behind={problem.behind})",
        "",
    ]


def _block_mask(spec: MaskSpec, guarded: bool) -> list[str]:
    _, _, *lengths = spec.size
    lines = [
        "from flash_attn2.masks import BlockMask",
        inspect.getsource(random_block_mask),
        f"mask = random_block_mask{spec.arguments}",
    ]
    if guarded:
        lines += [
            "tensors = mask.row_offsets, mask.cols, mask.tiles, mask.bits",
            "tensors = [memory(x.numel(), x.dtype).view(x.shape).copy_(x) for x in tensors]",
            f"mask = BlockMask(*{tuple(lengths)}, *tensors)",
        ]
    return [*lines, 'arguments["block_mask"] = mask']


def _argument(name: str, value: Any) -> list[str]:
    target = f'arguments["{name}"]'
    if isinstance(value, Spec):
        return tensor_lines(target, value)
    if isinstance(value, CodeSpec):
        return _codes(target, value)
    if isinstance(value, ScaleSpec):
        return _scales(target, value)
    if isinstance(value, Columns):
        return [_view(target, "arguments", value)]
    if isinstance(value, Integers):
        tensor = f"torch.tensor({value.values}, dtype=torch.int32)"
        return [f"{target} = {tensor}.view({value.size})"]
    if isinstance(value, Numbers):
        values = repr(value.values).replace("-inf", "-torch.inf")
        return [f"{target} = torch.tensor({values})"]
    return [f"{target} = {value!r}"]


def _view(target: str, arguments: str, view: Columns) -> str:
    columns = ":" if view.width is None else f":{view.width}"
    return f'{target} = {arguments}["{view.of}"][..., {columns}]'


def _codes(target: str, codes: CodeSpec) -> list[str]:
    spec, code = codes.numbers, f"torch.{codes.code}"
    scales = SCALE[codes.code]
    of_rows = f"reference.row_scales(numbers, {code})[..., None]"
    place = f"as_strided({spec.size}, {spec.strides}, {spec.layout.offset})"
    return [
        *tensor_lines("numbers", replace(spec, layout=PLAIN)),
        f"scales = {of_rows if codes.unit == 'row' else f'torch.tensor({scales})'}",
        f"x = memory({spec.count}, torch.uint8)",
        f"x = x.{place}" if spec.count else f"x = x.view({spec.size})",
        f"x.copy_(reference.quantised(numbers, scales, {code}).view(torch.uint8))",
        f"{target} = x.view({code})",
    ]


def _scales(target: str, scales: ScaleSpec) -> list[str]:
    """After the codes, whose numbers are still there."""
    codes = scales.codes
    if codes.unit == "row":
        return [f"{target} = reference.row_scales(numbers, torch.{codes.code})"]
    num_pages, _, heads, _ = codes.numbers.size
    size = (scales.batch, heads) if codes.unit == "sequence" else (num_pages, 1, heads)
    return [
        f"torch.manual_seed({codes.numbers.seed + 20})",
        f"{target} = {SCALE[codes.code]} * (0.5 + torch.rand({size}))",
    ]


def tensor_lines(target: str, spec: Spec) -> list[str]:
    """Statements that make the tensor of a specification."""
    place = f"as_strided({spec.size}, {spec.strides}, {spec.layout.offset})"
    lines = [f"x = memory({spec.count}, {spec.dtype}).{place}"]
    if spec.count == 0:
        return [f"{target} = torch.empty({spec.size}, dtype={spec.dtype})"]
    expression = spec.expression.replace("size", str(spec.size))
    expression = expression.replace("tiny", str(torch.finfo(spec.dtype).tiny))
    if "size" in spec.expression.replace("(size)", ""):
        lines.append(f"size = {spec.size}")
        expression = spec.expression
    lines += [f"torch.manual_seed({spec.seed})", f"values = ({expression}).to(x.dtype)"]
    once = ", ".join(":1" if stride == 0 else ":" for stride in spec.strides)
    filled = (
        [once]
        if spec.filled is None
        else [", ".join(f"{begin}:{end}" for begin, end in ranges) for ranges in spec.filled]
    )
    lines += [f"x[{where}] = values[{where}]" for where in filled]
    return [*lines, f"{target} = x"]


def _results(problem: Problem, call: Call) -> list[str]:
    function = f"flash_attn2.{call.function}"
    lines = []
    if problem.path == "compiled":
        lines.append(f'function = torch.compile({function}, backend="aot_eager")')
        function = "function"
    more = ""
    if problem.more:
        more = f", {more_of(problem)}=True"
    before = [f"before = {{name: arguments[name].clone() for name in {_caches(call)}}}"]
    lines = [*(before if _caches(call) else []), *lines, f"torch.manual_seed({problem.seed})"]
    result = f"result = {function}(**arguments{more})"
    if problem.path in _OBSERVERS:
        lines += [f"with {_OBSERVERS[problem.path]}:", f"    {result}"]
    else:
        lines.append(result)
    if _caches(call):
        lines.append("arguments |= before")
    lines.append(f"out, lse = {'result[:2]' if problem.more else 'result, None'}")
    return lines


def _caches(call: Call) -> tuple[str, ...]:
    return tuple(name for name in WRITTEN if name in call.arguments)


def _expected(problem: Problem, call: Call) -> list[str]:
    lines = [
        'given = {x: y for x, y in arguments.items() if x not in ("deterministic", "num_splits")}',
    ]
    if problem.cache.shared and problem.kind == "cache":
        lines += _values_in_keys(call)
    if problem.kind == "cache":
        lines += [
            'given.pop("max_seqlen_q", None)',
            "want, want_lse, *_ = reference.kvcache_attention_reference("
            "**given, dtype=torch.float64)",
        ]
    elif problem.kind == "paged":
        lines += [
            'for name in ("max_seqlen_q", "max_seqlen_k"): given.pop(name)',
            'lengths = given.pop("cu_seqlens_k").diff()',
            'given["cache_seqlens"] = given.pop("seqused_k", lengths)',
            'given["k_cache"], given["v_cache"] = given.pop("k"), given.pop("v")',
            "want, want_lse, *_ = reference.kvcache_attention_reference("
            "**given, dtype=torch.float64)",
        ]
    else:
        lines += _expected_of_tensors(problem)
    lines.append('results = {"out": (out, want)}')
    if problem.more:
        lines.append('results["lse"] = (lse, want_lse)')
    return lines


def _values_in_keys(call: Call) -> list[str]:
    """What was copied has its views again, and new values are in the new keys."""
    views = {name: x for name, x in call.arguments.items() if isinstance(x, Columns)}
    again = [_view(f'given["{x}"]', "given", views[x]) for x in _caches(call) if x in views]
    return ['given.pop("v", None)', *again]


def _expected_of_tensors(problem: Problem) -> list[str]:
    tensors = {"": ("q", "k", "v"), "kv": ("q", "kv"), "qkv": ("qkv",)}[problem.packing]
    lines = [f"given |= {{x: given[x].double() for x in {tensors}}}"]
    if problem.options.dropout_p:
        lines += [
            f"torch.manual_seed({problem.seed})",
            'given["rng_state"] = launch.draw_rng_state(torch.device("cpu"))',
        ]
    if problem.packing == "kv":
        lines.append('given["k"], given["v"] = given.pop("kv").unbind(-3)')
    if problem.packing == "qkv":
        lines.append('given["q"], given["k"], given["v"] = given.pop("qkv").unbind(-3)')
    if problem.kind == "dense":
        return [*lines, "want, want_lse, _ = reference.attention_reference(**given)"]
    if problem.packing == "qkv":
        lines += [
            'given["cu_seqlens_q"] = given["cu_seqlens_k"] = given.pop("cu_seqlens")',
            'given["max_seqlen_q"] = given["max_seqlen_k"] = given.pop("max_seqlen")',
        ]
    names = (
        "cu_seqlens_q",
        "cu_seqlens_k",
        "seqused_k",
        "max_seqlen_q",
        "max_seqlen_k",
        "seqused_q",
    )
    return [
        *lines,
        f"packing = reference.Packing(*(given.pop(x, None) for x in {names}))",
        "want, want_lse, _ = reference.varlen_attention_reference(packing=packing, **given)",
    ]


def _gradients(problem: Problem, call: Call) -> list[str]:
    assert call.grad_out is not None
    lines = [*tensor_lines("grad_out", call.grad_out)]
    outputs, wanted, grads = "[out]", "[want]", "[grad_out]"
    if problem.more:
        outputs, wanted, grads = "[out, lse]", "[want, want_lse]", "[grad_out, grad_lse]"
        lines += [f"torch.manual_seed({problem.seed + 10})", "grad_lse = torch.randn(lse.shape)"]
        if call.end is not None:
            lines.append(f"grad_lse[..., {call.end}:] = torch.nan")
    return [
        *lines,
        "def grads(outputs, incoming):",
        "    incoming = [g.to(x.dtype) for g, x in zip(incoming, outputs)]",
        "    return torch.autograd.grad(outputs, list(leaves.values()), incoming)",
        "",
        f"pairs = zip(grads({outputs}, {grads}), grads({wanted}, {grads}))",
        'results |= {f"gradient of {name}": pair for name, pair in zip(leaves, pairs)}',
    ]
