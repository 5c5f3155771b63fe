"""One vocabulary: structs of Python and C++, the ops' schemas, and who may know whose names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_cases import CacheCase
from support import Target, cumulative, lengths
from torch import Tensor

import flash_attn2
from flash_attn2 import flash_attn_with_kvcache, masks
from flash_attn2._impl import backends, forms, problem
from flash_attn2._impl.lower import lower
from flash_attn2._impl.problem import Dropout, Options, Problem, ScoreMod, SeqLens, Window
from flash_attn2._impl.schema import Signature

PACKAGE = Path(flash_attn2.__file__).parent
CSRC = PACKAGE.parent / "csrc"
PARAMS = (CSRC / "core/params.h").read_text() + (CSRC / "host/forward_call.h").read_text()

SCORES = (
    "float? softmax_scale=None, SymInt window_left=-1, SymInt window_right=-1, float softcap=0., "
    "Tensor? alibi_slopes=None, Tensor? sink=None"
)
TRAINING = f"{SCORES}, float dropout_p=0., bool deterministic=False"
VARLEN = (
    "Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor? seqused_k, SymInt max_seqlen_q, "
    "SymInt max_seqlen_k"
)
GRADIENT = (
    "Tensor? grad_out, Tensor? grad_lse, Tensor q, Tensor? k, Tensor? v, Tensor out, Tensor lse, "
    "Tensor? rng_state"
)
CACHE = (
    "Tensor? cache_seqlens, SymInt? cache_seqlen, Tensor? cache_batch_idx, Tensor? cache_leftpad, "
    "Tensor? block_table, Tensor? cu_seqlens_q, SymInt? max_seqlen_q, Tensor? cu_seqlens_k_new, "
    "SymInt seqlen_new, SymInt num_splits"
)
ADDED = "Tensor? seqused_q=None"
SHARD = "SymInt batch_start=0, SymInt head_start=0, SymInt? num_heads_total=None"
GIVEN = "Tensor? given_rng_state=None"
DENSE_ADDED = (
    f"{ADDED}, Tensor? block_mask_offsets=None, Tensor? block_mask_cols=None, "
    "Tensor? block_mask_tiles=None, Tensor? block_mask_bits=None, Tensor? bias=None, "
    f"Tensor? relative_bias=None, {SHARD}"
)
SCALES = "Tensor? k_descale=None, Tensor? v_descale=None"
WRITTEN_SCALES = "Tensor(c!)? k_descale=None, Tensor(d!)? v_descale=None"
RESULTS = "(Tensor out, Tensor lse, Tensor rng_state)"
GRADIENTS = "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_sink)"
# Exported programs hold calls by these: only new arguments may follow at the end, with defaults,
# and what had to be given may become optional.
SCHEMAS = {
    "forward": f"(Tensor q, Tensor? k, Tensor? v, {TRAINING}, {DENSE_ADDED}, {GIVEN}) -> {RESULTS}",
    "backward": f"({GRADIENT}, {TRAINING}, {DENSE_ADDED}) -> {GRADIENTS}",
    "bias_backward": f"({GRADIENT}, {TRAINING}, {DENSE_ADDED}, bool of_bias=False, "
    "bool of_relative_bias=False) -> (Tensor grad_bias, Tensor grad_relative_bias)",
    "varlen_forward": f"(Tensor q, Tensor? k, Tensor? v, {VARLEN}, {TRAINING}, {ADDED}, {SHARD}, "
    f"{GIVEN}) -> {RESULTS}",
    "varlen_backward": f"({GRADIENT}, {VARLEN}, {TRAINING}, {ADDED}, {SHARD}) -> {GRADIENTS}",
    "kvcache_forward": f"(Tensor q, Tensor k_cache, Tensor v_cache, {CACHE}, {SCORES}, {SCALES}, "
    "bool of_varlen=False) -> (Tensor out, Tensor lse)",
    "kvcache_append_forward": "(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, "
    "Tensor? v, Tensor? rotary_cos, Tensor? rotary_sin, bool rotary_interleaved, bool q_advances, "
    f"{CACHE}, {SCORES}, {WRITTEN_SCALES}) -> (Tensor out, Tensor lse)",
    "kvcache_no_gradient": "(Tensor grad_out, SymInt[] shape) -> Tensor",
}


@pytest.mark.parametrize("op", SCHEMAS)
def test_schemas(op: str) -> None:
    schema = str(getattr(torch.ops.flash_attn2, op).default._schema)
    assert schema == f"flash_attn2::{op}{SCHEMAS[op]}"


def cpp_fields(struct: str) -> set[str]:
    """Names of the members of a struct in params.h or forward_call.h, and of its base."""
    pattern = rf"^struct {struct}(?: : (\w+))? \{{\n(.*?)^\}};"
    found = re.search(pattern, PARAMS, re.DOTALL | re.MULTILINE)
    assert found is not None, struct
    base, body = found.groups()
    names = re.findall(r"^  [\w:]+(?: const)?\*? (\w+)(?: = [^;]+)?;", body, re.MULTILINE)
    return set(names) | (cpp_fields(base) if base else set())


# Those that C++ has no name for: of a cache, batch_idx is a block_table there, and of_varlen says
# which entry point it is.
OWN = {"PagedKV": {"batch_idx", "of_varlen"}}


@pytest.mark.parametrize(
    "name", ["SeqLens", "PagedKV", "Window", "BlockMask", "ScoreMod", "Dropout", "Rotary"]
)
def test_structs_have_the_fields_of_cpp(name: str) -> None:
    ours = set(getattr(problem, name)._fields)
    assert len(cpp_fields(name)) >= 2
    assert ours - OWN.get(name, set()) <= cpp_fields(name)


def test_problems_have_the_fields_of_cpp() -> None:
    assert set(Problem._fields) - {"options", "append"} <= cpp_fields("FwdParams")
    assert set(Options._fields) - {"deterministic"} <= cpp_fields("FwdParams")
    assert set(problem.Append._fields) <= cpp_fields("AppendParams")
    assert {*problem.Gradient._fields, "deterministic"} <= cpp_fields("BwdParams")
    of_biases = {f"grad{x.removeprefix('of')}" for x in problem.BiasGradient._fields[3:]}
    assert {*problem.BiasGradient._fields[:3]} | of_biases <= cpp_fields("BiasBwdParams")


def test_limits_are_those_of_cpp() -> None:
    assert "kMaxSeqlen = (1 << 29) - 1" in PARAMS
    assert f"kBlock = {problem.BLOCK};" in PARAMS
    assert problem.MAX_SEQLEN == (1 << 29) - 1


STRUCTS = {
    "seqs_q": "SeqLens",
    "seqs_k": "SeqLens",
    "seqs_new": "SeqLens",
    "pages": "PagedKV",
    "window": "Window",
    "block_mask": "BlockMask",
    "score_mod": "ScoreMod",
    "dropout": "Dropout",
    "rotary": "Rotary",
    "bias": "Bias",
    "relative_bias": "Bias",
    "grad_bias": "Bias",
    "grad_relative_bias": "Bias",
    "append": "AppendParams",
    "forward": "FwdParams",
}


def assert_named_as_in_cpp(fields: dict[str, Any], struct: str) -> set[str]:
    """The names of inner dictionaries."""
    known = cpp_fields(struct)
    seen = set()
    for name, value in fields.items():
        assert name in known | {"append"}, (struct, name)
        if isinstance(value, dict):
            seen |= {name} | assert_named_as_in_cpp(value, STRUCTS[name])
    return seen


def test_what_native_modules_get_is_named_as_in_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[dict[str, Any]] = []

    def record(_: Any, entry_point: Any, fields: dict[str, Any], device: torch.device) -> None:
        problems.append(fields)

    monkeypatch.setattr(backends.Backend, "run", record)
    target = Target("cpu", torch.float32)
    case = CacheCase(page_size=16, new="neox", leftpad=True, modifier="alibi")
    flash_attn_with_kvcache(**case.arguments(target))
    case = CacheCase(page_size=16, new="neox", packed=True, modifier="softcap")
    flash_attn_with_kvcache(**case.arguments(target))
    q = torch.randn(2, 3, 4, 8, requires_grad=True)
    sink = torch.zeros(4)
    mask = masks.BlockMask.from_dense(torch.ones(3, 3, dtype=torch.bool))
    flash_attn2.flash_attn_func(q, q, q, block_mask=mask)
    flash_attn2.flash_attn_func(q, q, q, 0.5, sink=sink, causal=True).sum().backward()
    biases: Any = {"bias": torch.zeros(3), "relative_bias": torch.zeros(4, 5)}
    leaves = [x.requires_grad_() for x in biases.values()]
    out: Any = flash_attn2.flash_attn_func(q, q, q, **biases)
    torch.autograd.grad(out.sum(), leaves)
    cu, rows = cumulative(2, 1), q[0]
    flash_attn2.flash_attn_varlen_func(rows, rows, rows, cu, cu, 2, 2, seqused_k=lengths(1, 1))
    seen = set()
    for fields in problems:
        struct = "FwdCall"
        if "forward" in fields:
            struct = "BwdParams" if "grad_q" in fields else "BiasBwdParams"
        seen |= assert_named_as_in_cpp(fields, struct)
    assert seen == set(STRUCTS)


def test_native_modules_refuse_other_names() -> None:
    """At every depth, before they touch memory."""
    q, lse = torch.zeros(1, 2, 1, 8), torch.zeros(1, 1, 2)
    forward = backends.load("cpu").module.forward

    def fields() -> dict[str, Any]:
        options = Options(None, Window(1, 1), ScoreMod(1.0), None, Dropout(0.0))
        return lower(Problem(q, q, q, options=options), "float32", q, lse, None, 8)

    forward(fields(), 1, None)
    for change in (
        lambda x: x.update(seqlens=1),
        lambda x: x["seqs_q"].update(seqlen=1),
        lambda x: x["window"].update(middle=1),
        lambda x: x.update(score_mod=3),
        lambda x: x.update(q=(1, 2)),
        lambda x: x["seqs_k"].pop("max_seqlen"),
        lambda x: x.update(pages={"block_table": 0}),
    ):
        wrong = fields()
        change(wrong)
        with pytest.raises(TypeError, match=r"field|expected"):
            forward(wrong, 1, None)


SIGNATURES: list[Signature[Any]] = [form.signature for form in forms.FORMS]
SIGNATURES += [
    form.backward_signature for form in (*forms.FORMS, forms.BIASES) if form.backward_signature
]


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda x: f"{len(x.names)}_arguments")
def test_flat_arguments_and_structs(signature: Signature[Any]) -> None:
    values = tuple(object() for _ in signature.names)
    struct = signature.unflatten(values)
    assert signature.flatten(struct) == values
    # Named tuples, all the way down.
    assert type(struct)._fields == type(struct)(*struct)._fields
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flash_attn2._impl.schema.is_compiling", lambda: True)
        assert signature.flatten(struct) == values
    short = values[: signature.names.index("softmax_scale")]
    filled = signature.flatten(signature.unflatten(short))
    assert filled[: len(short)] == short
    assert filled[len(short) :] == signature.completed(short)[len(short) :]
    assert dict(zip(signature.names, filled, strict=True))["window_left"] == -1


def test_tensors_of_a_problem() -> None:
    q, cu, slopes, sink = (torch.zeros(1) for _ in range(4))
    options = Options(score_mod=ScoreMod(0.0, slopes), sink=sink)
    p = Problem(q, q, q, SeqLens(cu), SeqLens(cu, None, 3), options)
    expected: tuple[Tensor | None, ...] = (q, q, q, cu, cu, None, slopes, sink, None, None)
    tensors = forms.VARLEN.signature.tensors(p)
    assert len(tensors) == len(expected)
    assert all(x is y for x, y in zip(tensors, expected, strict=True))


# Modules.

MODULES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = {
    *("__init__", "__main__", "functional", "inference", "kvcache", "merging", "ops"),
    *("padding", "probs", "reference", "rotary"),
}


def test_what_is_not_public_is_in_one_place() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == PUBLIC
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages == {
        *("_impl", "bench", "compat", "distributed", "integrations", "io", "masks", "nn"),
    }


def private_uses(tree: ast.Module) -> Iterator[str]:
    """Names with an underscore that are taken from a module of this package."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flash_attn2"):
            for alias in node.names:
                modules.add(alias.asname or alias.name)
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
        ):
            yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", MODULES, ids=lambda x: str(x.relative_to(PACKAGE)))
def test_no_module_uses_private_names_of_another(path: Path) -> None:
    assert list(private_uses(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "text",
    [
        "from flash_attn2._impl.checks import _check",
        "from flash_attn2._impl import checks\nchecks._check()",
        "from flash_attn2._impl import checks as c\nprint(c._x)",
    ],
)
def test_private_uses_are_found(text: str) -> None:
    assert len(list(private_uses(ast.parse(text)))) == 1
