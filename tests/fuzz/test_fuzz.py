"""A fixed part of what `make fuzz` runs for as long as one likes; and whether it finds faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import support
import torch

import flash_attn2
from fuzz import check, worker
from fuzz.biases import Biases  # noqa: F401 (read by eval)
from fuzz.layout import PLAIN, VALUES, Layout, Spec
from fuzz.masks import Mask  # noqa: F401 (read by eval)
from fuzz.problem import CacheUse, Options, Problem, drawn  # noqa: F401 (read by eval)
from fuzz.script import script
from fuzz.shrink import shrunk, smallest

SEED = 11
# Blocks of so many problems.
BLOCKS = {"cpu": (10, 30), "sm80-emulated": (4, 6), "sm90-emulated": (3, 6)}
CASES = [(backend, block) for backend, (blocks, _) in BLOCKS.items() for block in range(blocks)]


@pytest.fixture(scope="module")
def workers() -> Iterator[dict[str, worker.Worker]]:
    started = {backend: worker.Worker(backend) for backend in BLOCKS}
    yield started
    for each in started.values():
        each.stop()


@pytest.mark.parametrize(("backend", "block"), CASES)
def test_problems(backend: str, block: int, workers: dict[str, worker.Worker]) -> None:
    support.require_backend(backend)
    _, count = BLOCKS[backend]
    for number in range(block * count, (block + 1) * count):
        problem = drawn(SEED, number, backend)
        if message := workers[backend].failure(problem):
            pytest.fail(f"{message}\n{problem!r}\n{smallest(workers[backend], problem, message)}")


SMALL = Problem("dense", "float32", (5, 5), (7, 7), (2, 2), 16, more="lse")
OF_EACH_KIND = [
    next(p for p in (drawn(0, n) for n in range(1000)) if wanted(p))
    for wanted in (
        lambda p: p.kind == "dense" and p.path == "gradient" and p.more,
        lambda p: p.kind == "dense" and p.packing == "qkv" and p.options.dropout_p > 0,
        lambda p: p.mask.as_partial > 0 and p.path == "gradient" and p.seqlens_q and not p.hostile,
        lambda p: p.biases.rank and p.biases.relative and p.path == "gradient" and p.seqlens_q,
        lambda p: p.kind == "varlen" and p.path == "gradient" and p.packing == "kv" and p.more,
        lambda p: p.kind == "varlen" and p.packing == "qkv" and p.path == "profiler",
        lambda p: p.kind == "paged" and p.used and p.seqlens_q,
        lambda p: p.kind == "cache" and p.cache.rotary and p.cache.packed and p.path == "mode",
        lambda p: p.kind == "cache" and p.cache.leftpad and p.cache.batch_idx,
        lambda p: p.kind == "cache" and p.cache.shared and p.cache.new_v and p.seqlens_q,
        lambda p: p.cache.shared and p.cache.codes and p.cache.new and not p.hostile,
        lambda p: p.kind == "paged" and p.cache.shared and p.seqlens_q and not p.hostile,
    )
]


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("problem", OF_EACH_KIND, ids=lambda p: p.kind)
def test_script_stands_alone(
    problem: Problem, guarded: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = replace(problem, values="normal", dtype="float32")
    with support.cpu_tensors_on("cpu"):
        exec(script(problem, guarded), {})
    lines = [line.split(" is off by ") for line in capsys.readouterr().out.splitlines()]
    found = {name: float(number) for name, number in lines}
    assert "out" in found
    assert ("lse" in found) == bool(problem.more)
    assert any("gradient" in name for name in found) == (problem.path == "gradient")
    assert all(off < 1e-4 for off in found.values())


def wrong(monkeypatch: pytest.MonkeyPatch, spoil: str) -> None:
    """From now on flash_attn_func is wrong in one respect."""
    right = flash_attn2.flash_attn_func

    def spoilt(q: torch.Tensor, *args: object, **kwargs: object) -> object:
        result = right(q, *args, **kwargs)
        out, lse, *_ = result if isinstance(result, tuple) else (result, None)
        if spoil == "out":
            out.view(-1)[-1] += 1e-3
        elif spoil == "nan":
            out.view(-1)[-1] = torch.nan
        elif spoil == "lse":
            lse.view(-1)[0] += 1e-3
        elif spoil == "input":
            q[0, 0, 0, 0] += 1
        elif spoil == "gradient":
            out = out + 1e-3 * (out - out.detach())
            return (out, *result[1:])
        return result

    monkeypatch.setattr(flash_attn2, "flash_attn_func", spoilt)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("out", "^out is off by"),
        ("nan", "^out has NaN in other places"),
        ("lse", "^lse is"),
        ("input", "^q was changed"),
        ("gradient", "^gradient of .* is off by"),
    ],
)
def test_wrong_results_are_found(spoil: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = replace(SMALL, path="gradient" if spoil == "gradient" else "direct")
    with support.cpu_tensors_on("cpu"):
        check.check(problem)
        wrong(monkeypatch, spoil)
        with pytest.raises(check.WrongResultError, match=message):
            check.check(problem)


GUARDED_ACCESS = """
import ctypes, itertools, os, resource
import torch
from fuzz.memory import guarded
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for behind, write, inside in itertools.product((False, True), repeat=3):
    if os.fork() == 0:
        x = guarded(3, torch.float32, behind)
        at = (2 if inside else 3) if behind else (0 if inside else -1)
        pointer = ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_float))
        if write:
            pointer[at] = 1.0
        os._exit(0 if write or pointer[at] != 1 else 1)
    _, status = os.wait()
    print(behind, write, inside, "survives" if status == 0 else f"signal {os.WTERMSIG(status)}")
"""


def test_guard_pages_stop_a_process() -> None:
    """Which it survives as long as it stays within the tensor."""
    path = os.pathsep.join([str(worker.TESTS), str(worker.TESTS.parent)])
    result = subprocess.run(
        [sys.executable, "-c", GUARDED_ACCESS],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 8
    for line in lines:
        assert line.endswith("True survives" if " True s" in line else f"signal {signal.SIGSEGV}")


def test_crash_has_a_name(workers: dict[str, worker.Worker]) -> None:
    each = workers["cpu"]
    assert each.failure(SMALL) == ""
    assert each.process is not None
    each.process.kill()
    assert each.failure(SMALL) == "crashes: SIGKILL"
    assert each.failure(SMALL) == ""


def test_shrinks_to_what_matters() -> None:
    problem = Problem(
        "varlen",
        "bfloat16",
        (40, 3, 9),
        (50, 3, 200),
        (3, 2),
        100,
        path="gradient",
        layouts=(Layout((-2, -3, -1)), PLAIN, PLAIN, PLAIN),
        values="wide",
        used=(4, 3, 150),
        options=Options(causal=True, softcap=5.0, sink=True),
    )

    def fails(p: Problem) -> bool:
        return (
            p.head_dim > 70 and p.options.softcap > 0 and max(p.used or p.seqlens_k or (0,)) > 100
        )

    assert shrunk(problem, fails) == Problem(
        "varlen",
        "float32",
        (0,),
        (101,),
        (1, 1),
        71,
        options=Options(softcap=5.0),
    )


@pytest.mark.parametrize("values", sorted(VALUES))
def test_layouts_hold_what_they_should(values: str) -> None:
    """Whatever the strides, visible elements are filled, and those around them NaN."""
    for layout in (PLAIN, Layout((-2, -3, -1), (3, 5, 16), offset=5), Layout((), (), (-2,))):
        spec = Spec("x", (2, 3, 4, 5), torch.float64, values, layout)
        x = spec.build(behind=True)
        assert x.shape == spec.size
        assert not x.isnan().any()
        whole = x.as_strided((spec.count,), (1,), 0)
        distinct = {
            sum(i * s for i, s in zip(index, x.stride(), strict=True)) + layout.offset
            for index in torch.ones(spec.size).nonzero().tolist()
        }
        assert int((~whole.isnan()).sum()) == len(distinct)


def test_problems_are_the_same_every_time() -> None:
    assert drawn(3, 14) == drawn(3, 14)
    assert drawn(3, 14) != drawn(4, 14)
    for number in range(50):
        problem = drawn(3, number)
        assert eval(repr(problem)) == problem
