"""The flat arguments of the ops, and where each of them stands in a nested `problem`.

The only place that flattens: schemas, arguments of ops and of autograd's functions all come from
these tables, and types and defaults from the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from operator import attrgetter, itemgetter
from types import NoneType
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from torch import Tensor
from torch.compiler import is_compiling

from flash_attn2._impl.problem import BiasGradient, Gradient, Problem, Values

_Struct = TypeVar("_Struct", bound=tuple[Any, ...])

_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    int | None: "SymInt?",
    float: "float",
    float | None: "float?",
    bool: "bool",
}


class Signature(Generic[_Struct]):
    """Of one op: names of arguments, by their order, and their paths in a struct."""

    def __init__(
        self,
        struct: type[_Struct],
        paths: dict[str, str],
        required: Collection[str] = (),
        written: Collection[str] = (),
    ) -> None:
        """`required` are those that may not be None, whatever their field says; `written` are
        tensors that the op changes."""
        self.names = tuple(paths)
        self.paths = tuple(paths.values())
        fields = {name: _field(struct, path) for name, path in paths.items()}
        marks = iter("abcd")
        declared = []
        for name, (hint, default) in fields.items():
            kind = _TYPES[hint]
            if name in required:
                kind = kind.rstrip("?")
            if name in written:
                kind = kind.replace("Tensor", f"Tensor({next(marks)}!)")
            declared.append(f"{kind} {name}" + (f"={default}" if name in _DEFAULTED else ""))
        self.declaration = ", ".join(declared)
        self.defaults = tuple(default for _, default in fields.values())
        self._split_paths = tuple(tuple(path.split(".")) for path in self.paths)
        self._flatten = attrgetter(*self.paths)
        is_tensor = [hint in (Tensor, Tensor | None) for hint, _ in fields.values()]
        tensors = [i for i, tensor in enumerate(is_tensor) if tensor]
        numbers = [i for i, tensor in enumerate(is_tensor) if not tensor]
        self.tensors: Callable[[_Struct], tuple[Tensor | None, ...]] = attrgetter(
            *(self.paths[i] for i in tensors)
        )
        # Of flat arguments: those that are tensors or None, the others, and all of them again from
        # the former followed by the latter.
        self.pick_tensors: Callable[[Values], tuple[Tensor | None, ...]] = itemgetter(*tensors)
        self.pick_numbers: Callable[[Values], Values] = itemgetter(*numbers)
        self.join: Callable[[Values], Values] = itemgetter(
            *((tensors + numbers).index(i) for i in range(len(paths)))
        )
        self._constants, self._steps = _construction(struct, self.paths)

    def flatten(self, struct: _Struct) -> Values:
        """The arguments that make up `struct`."""
        if is_compiling():  # which cannot look into an attrgetter
            return tuple(_at(struct, path) for path in self._split_paths)
        return self._flatten(struct)

    def completed(self, values: Sequence[Any]) -> Values:
        """With the trailing ones that have their defaults, which the dispatcher leaves out."""
        return *values, *self.defaults[len(values) :]

    def unflatten(self, values: Sequence[Any]) -> _Struct:
        """The struct of these arguments, which may lack what `completed` adds."""
        parts = [*values, *self.defaults[len(values) :], *self._constants]
        for make, pick in self._steps:
            parts.append(make(pick(parts)))
        struct: _Struct = parts[-1]
        return struct


def _at(struct: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        struct = getattr(struct, name)
    return struct


def _struct_of(hint: Any) -> Any:
    """The struct that a field holds, or may hold; None for tensors and numbers."""
    kinds = [x for x in (get_args(hint) or (hint,)) if x is not NoneType]
    return kinds[0] if hasattr(kinds[0], "_fields") else None


def _field(struct: Any, path: str) -> tuple[Any, Any]:
    """Type and default of the field at the end of a path."""
    *outer, name = path.split(".")
    for step in outer:
        struct = _struct_of(get_type_hints(struct)[step])
    return get_type_hints(struct)[name], struct._field_defaults.get(name)


def _construction(
    struct: Any, paths: tuple[str, ...]
) -> tuple[list[Any], list[tuple[Callable[..., Any], Callable[..., Any]]]]:
    """Constants, and steps that make a struct, its inner ones first, of the values at `paths`.

    Values, constants and what steps have made stand in one list; a step picks from it and appends.
    """
    constants: list[Any] = []
    made: list[tuple[Any, list[tuple[str, int]]]] = []

    def parts(struct: Any, prefix: str) -> Iterator[tuple[str, int]]:
        for name, hint in get_type_hints(struct).items():
            path, inner = prefix + name, _struct_of(hint)
            if path in paths:
                yield "value", paths.index(path)
            elif inner is not None and any(x.startswith(f"{path}.") for x in paths):
                yield "made", make(inner, f"{path}.")
            else:
                constants.append(struct._field_defaults[name])
                yield "constant", len(constants) - 1

    def make(struct: Any, prefix: str) -> int:
        picked = list(parts(struct, prefix))
        made.append((struct, picked))
        return len(made) - 1

    make(struct, "")
    begin = {"value": 0, "constant": len(paths), "made": len(paths) + len(constants)}
    # tuple.__new__ since the constructors of named tuples are written in Python.
    return constants, [
        (partial(tuple.__new__, struct), itemgetter(*(begin[kind] + i for kind, i in picked)))
        for struct, picked in made
    ]


_QKV = {"q": "q", "k": "k", "v": "v"}
_RESULTS = {"out": "out", "lse": "lse", "rng_state": "options.dropout.rng_state"}
_VARLEN = {
    "cu_seqlens_q": "seqs_q.cu_seqlens",
    "cu_seqlens_k": "seqs_k.cu_seqlens",
    "seqused_k": "seqs_k.seqused",
    "max_seqlen_q": "seqs_q.max_seqlen",
    "max_seqlen_k": "seqs_k.max_seqlen",
}
_SCORES = {
    "softmax_scale": "options.softmax_scale",
    "window_left": "options.window.left",
    "window_right": "options.window.right",
    "softcap": "options.score_mod.softcap",
    "alibi_slopes": "options.score_mod.alibi_slopes",
    "sink": "options.sink",
}
_TRAINING = {"dropout_p": "options.dropout.drop_prob", "deterministic": "options.deterministic"}
_OPTIONS = _SCORES | _TRAINING
_ADDED = {"seqused_q": "seqs_q.seqused"}  # since the first release; what comes new comes last
_BLOCK_MASK = {
    "block_mask_offsets": "options.block_mask.row_offsets",
    "block_mask_cols": "options.block_mask.cols",
    "block_mask_tiles": "options.block_mask.tiles",
    "block_mask_bits": "options.block_mask.bits",
}
_BIASES = {
    "bias": "options.score_mod.bias",
    "relative_bias": "options.score_mod.relative_bias",
}
_SHARD = {
    "batch_start": "batch_start",
    "head_start": "head_start",
    "num_heads_total": "num_heads_total",
}
_DENSE_ADDED = _ADDED | _BLOCK_MASK | _BIASES | _SHARD
_VARLEN_ADDED = _ADDED | _SHARD
_GIVEN = {"given_rng_state": "options.dropout.rng_state"}  # of a forward pass: not to be drawn
_SCALES = {"k_descale": "quantised.k_descale", "v_descale": "quantised.v_descale"}
_CACHE_ADDED = _SCALES
_PAGES_ADDED = {"of_varlen": "pages.of_varlen"}
_WANTED = {"of_bias": "of_bias", "of_relative_bias": "of_relative_bias"}
# At the end of every schema.
_DEFAULTED = _OPTIONS | _DENSE_ADDED | _WANTED | _GIVEN | _CACHE_ADDED | _PAGES_ADDED
_CACHES = {"q": "q", "k_cache": "k", "v_cache": "v"}
_NEW = {
    "k": "append.new_k",
    "v": "append.new_v",
    "rotary_cos": "append.rotary.cos",
    "rotary_sin": "append.rotary.sin",
    "rotary_interleaved": "append.rotary.interleaved",
    "q_advances": "append.q_advances",
}
_CACHE = {
    "cache_seqlens": "seqs_k.seqused",
    "cache_seqlen": "seqs_k.max_seqlen",
    "cache_batch_idx": "pages.batch_idx",
    "cache_leftpad": "seqs_k.leftpad",
    "block_table": "pages.block_table",
    "cu_seqlens_q": "seqs_q.cu_seqlens",
    "max_seqlen_q": "seqs_q.max_seqlen",
    "cu_seqlens_k_new": "seqs_k.cu_appended",
    "seqlen_new": "seqs_k.appended",
    "num_splits": "num_splits",
}
_BOUNDS = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")


def _gradient_paths(lengths: dict[str, str], added: dict[str, str]) -> dict[str, str]:
    """Of a backward op: gradients and results stand around q, k and v."""
    of_forward = _QKV | _RESULTS | lengths | _OPTIONS | added
    paths = {name: f"forward.{path}" for name, path in of_forward.items()}
    return {"grad_out": "grad_out", "grad_lse": "grad_lse"} | paths


def _gradient(
    lengths: dict[str, str], added: dict[str, str], required: Collection[str] = ()
) -> Signature[Gradient]:
    return Signature(Gradient, _gradient_paths(lengths, added), {"out", "lse", *required})


FORWARD = Signature(Problem, _QKV | _OPTIONS | _DENSE_ADDED | _GIVEN)
BACKWARD = _gradient({}, _DENSE_ADDED)
BIAS_BACKWARD = Signature(BiasGradient, _gradient_paths({}, _DENSE_ADDED) | _WANTED, {"out", "lse"})
VARLEN_FORWARD = Signature(Problem, _QKV | _VARLEN | _OPTIONS | _VARLEN_ADDED | _GIVEN, _BOUNDS)
VARLEN_BACKWARD = _gradient(_VARLEN, _VARLEN_ADDED, _BOUNDS)
KVCACHE_FORWARD = Signature(
    Problem, _CACHES | _CACHE | _SCORES | _CACHE_ADDED | _PAGES_ADDED, _CACHES
)
KVCACHE_APPEND_FORWARD = Signature(
    Problem,
    _CACHES | _NEW | _CACHE | _SCORES | _CACHE_ADDED,
    _CACHES,
    ("k_cache", "v_cache", *_SCALES),
)
