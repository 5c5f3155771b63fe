"""What type checkers are told: a client passes mypy, and declared overloads are the functions."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flash_attn2

ROOT = Path(__file__).parents[2]
STUBS = sorted((ROOT / "flash_attn2" / "_impl").glob("typed_*.pyi"))


def options_of(tree: ast.Module) -> dict[str, list[str]]:
    """Keywords of each TypedDict."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {
        node.name: [
            x.target.id
            for x in node.body
            if isinstance(x, ast.AnnAssign) and isinstance(x.target, ast.Name)
        ]
        for node in classes
    }


def defaults(arguments: ast.arguments) -> dict[str, object]:
    """Of all arguments that have one."""
    positional = arguments.posonlyargs + arguments.args
    last = positional[len(positional) - len(arguments.defaults) :]
    pairs = [*zip(last, arguments.defaults, strict=True)]
    by_name = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    pairs += [(name, value) for name, value in by_name if value is not None]
    return {name.arg: ast.literal_eval(value) for name, value in pairs}


def overloads() -> Iterator[tuple[ast.FunctionDef, list[str]]]:
    """Each, and the keywords that it takes through a TypedDict."""
    for stub in STUBS:
        tree = ast.parse(stub.read_text())
        keywords = options_of(tree)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                assert node.args.kwarg is not None
                unpacked = node.args.kwarg.annotation
                assert isinstance(unpacked, ast.Subscript)
                assert isinstance(unpacked.slice, ast.Name)
                yield node, keywords[unpacked.slice.id]


OVERLOADS = [*overloads()]
FLAGS = {"return_lse", "return_attn_probs", "return_softmax_lse"}


def test_all_functions_with_a_choice_of_results_have_overloads() -> None:
    public = [getattr(flash_attn2, name) for name in flash_attn2.__all__]
    chosen = {
        x.__name__
        for x in public
        if inspect.isfunction(x) and FLAGS & set(inspect.signature(x).parameters)
    }
    assert {node.name for node, _ in OVERLOADS} == chosen


@pytest.mark.parametrize(
    ("node", "more"), OVERLOADS, ids=[f"{node.name}-{node.lineno}" for node, _ in OVERLOADS]
)
def test_overloads_are_the_functions(node: ast.FunctionDef, more: list[str]) -> None:
    """The same arguments in the same places with the same defaults, but for those that choose."""
    signature = inspect.signature(getattr(flash_attn2, node.name)).parameters
    positional = [x.name for x in signature.values() if x.kind is x.POSITIONAL_OR_KEYWORD]
    here = [x.arg for x in node.args.args]
    assert here == positional[: len(here)]
    assert set(positional[len(here) :]) <= {*FLAGS, "block_table"}
    assert {*here, *(x.arg for x in node.args.kwonlyargs), *more} == set(signature)
    declared = defaults(node.args)
    assert declared == {name: signature[name].default for name in declared}
    required = {x for x in {*here, *(x.arg for x in node.args.kwonlyargs)} if x not in declared}
    assert required - FLAGS == {x for x, y in signature.items() if y.default is y.empty}


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy")
def test_a_client_passes_mypy() -> None:
    command = [sys.executable, "-m", "mypy", "tests/typing/client.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
