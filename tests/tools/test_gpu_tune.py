"""tools/gpu_tune: tiles in trees of their own, and the whole with the emulator for the GPU."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import support

from tools.gpu_report.build import BuildError
from tools.gpu_tune import __main__ as tune
from tools.gpu_tune import trees
from tools.gpu_tune.candidates import TILES
from tools.gpu_tune.trees import Kernel, TileError


def test_whole_tuner_emulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    support.require_backend("sm80-emulated")
    output = tmp_path / "tiles.json"
    arguments = ["fwd_hd64_plain", "--device", "emulated", "--rounds", "2"]
    arguments += ["--folder", str(tmp_path), "--output", str(output)]
    assert tune.main([*arguments, "--tile", "mine=32, 32, 2, 1, true, 2"]) == 0
    text = capsys.readouterr().out
    assert "times mean nothing" in text
    assert "TFLOP/s" not in text
    tiles = {one["name"]: one for one in json.loads(output.read_text())["tiles"]}
    assert list(tiles) == ["as it is", *TILES["fwd_hd64_plain"], "mine"]
    assert all(len(one["seconds"]) == 2 and not one["fault"] for one in tiles.values())
    assert tiles["as it is"]["words"].startswith("64x128 keys and queries, 128 threads")
    assert tiles["mine"]["words"] == "32x32 keys and queries, 64 threads, 2 CTAs"


@pytest.mark.parametrize("name", TILES)
def test_candidates_are_tiles(name: str) -> None:
    kernel = Kernel.of(name)
    header = (tune.ROOT / "csrc" / kernel.header).read_text()
    for tile in TILES[name].values():
        line = f"return {kernel.initializer(tile)};\n"
        assert trees.with_tile(header, kernel, tile).count(line) == header.count(line) + 1


def test_only_the_named_kernel_gets_a_tile(tmp_path: Path) -> None:
    kernel = Kernel.of("bwd_hd128_dropout")
    trees.make(kernel, "64, 32, 2, 2, 16, false, false, 1, 1", tmp_path / "tree")
    (tmp_path / "scratch").mkdir()

    def described(name: str, tree: Path) -> str:
        return trees.describe(Kernel.of(name), tree, tmp_path / "scratch")

    assert described("bwd_hd128_dropout", tmp_path / "tree").startswith("64x32 keys")
    for other in ("bwd_hd128_plain", "bwd_hd128_dropout_small", "bwd_hd64_dropout"):
        assert described(other, tmp_path / "tree") == described(other, tune.ROOT)


@pytest.mark.parametrize(
    ("kernel", "tile", "message"),
    [
        ("fwd_hd64", "", "no kernel such as"),
        ("split_hd64_plain_few", "", "no kernel such as"),
        ("fwd_hd64_plain", "128, 64", "has 6 fields, got '128, 64'"),
        ("fwd_hd64_plain", "128, 64, 4, 1, yes, 2", "'yes' in .* is no number, true or false"),
        ("bwd_hd64_plain", "128, 64, 4, 1, true, 2", "has 9 fields"),
    ],
)
def test_what_is_no_tile(kernel: str, tile: str, message: str) -> None:
    with pytest.raises(TileError, match=message):
        Kernel.of(kernel).initializer(tile)


def test_a_header_without_the_function() -> None:
    with pytest.raises(TileError, match=r"no fwd_tile in sm80/tiles\.h"):
        trees.with_tile("", Kernel.of("fwd_hd64_plain"), "128, 64, 4, 1, true, 2")


def test_options_that_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["fwd_hd64_dropout"]) == 2
    assert "only plain kernels" in capsys.readouterr().err
    assert tune.main(["fwd_hd64_plain", "--tile", "128"]) == 2
    assert "is not NAME=FIELDS" in capsys.readouterr().err


def test_tiles_are_timed_with_the_kernels_that_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASH_ATTN2_CUDA_FAMILY", "sm90")
    environments = []
    monkeypatch.setattr(tune.subprocess, "Popen", lambda *_, env, **__: environments.append(env))
    kernel = Kernel.of("fwd_hd64_plain")
    given = argparse.Namespace(device="cuda", seqlen=64, mask="full")
    tune.start(tune.Entry("one", None, tmp_path), kernel, given)
    assert environments[0]["FLASH_ATTN2_CUDA_FAMILY"] == "sm80"


def test_a_tile_that_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> None:
        raise BuildError("static assertion failed")

    monkeypatch.setattr(tune, "build", build)
    monkeypatch.setattr(tune, "architecture", lambda: "90")
    kernel = Kernel.of("fwd_hd64_plain")
    entry = tune.Entry("odd", "128, 64, 4, 1, true, 2", tmp_path / "tree")
    tune.prepare(entry, kernel, argparse.Namespace(device="cuda", cutlass=None))
    assert entry.fault == "static assertion failed"
    assert "odd                      static assertion failed" in tune.table(kernel, [entry], "cuda")
