"""Corpus and cases: what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flash_attn2.bench import cases
from flash_attn2.bench.cases import Widths
from flash_attn2.bench.corpus import Corpus, read_corpus
from flash_attn2.bench.modes import BACKWARD, TRAINING


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read_corpus()


def test_corpus_counts_tokens_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "one.py").write_text("x = 1\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("import this\n")
    # "x", " =", " 1", "\n"
    assert read_corpus("token", tmp_path) == Corpus("token", (4,), 6)
    assert read_corpus("byte", tmp_path) == Corpus("byte", (6,), 6)


def test_corpus_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no Python source files"):
        read_corpus("byte", tmp_path)
    with pytest.raises(ValueError, match="unit must be one of"):
        read_corpus("word", tmp_path)


def test_standard_library_is_a_corpus(corpus: Corpus) -> None:
    assert len(corpus.lengths) > 100
    assert sum(corpus.lengths) < corpus.num_bytes
    assert read_corpus().lengths == corpus.lengths


def test_packing_fills_the_rows_exactly() -> None:
    corpus = Corpus("token", (5, 20, 3, 9), 0)
    assert corpus.packed(16, max_length=8) == (5, 8, 3)
    assert corpus.packed(18, max_length=8) == (5, 8, 3, 2)
    assert corpus.closest(10) == 9
    with pytest.raises(ValueError, match="13 tokens too short"):
        corpus.packed(50, max_length=100)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window_left", [-1, 0, 3, 6, 7, 100])
def test_visible_pairs(window_left: int, causal: bool) -> None:
    seqlen = 7
    count = sum(
        (window_left < 0 or col >= row - window_left) and (not causal or col <= row)
        for row in range(seqlen)
        for col in range(seqlen)
    )
    assert cases.visible_pairs(seqlen, window_left, causal) == count


def test_flops_are_those_of_the_papers() -> None:
    case = cases.Case("", "seqlen", "float32", 16, 16, 64, (512,) * 4, packed=False, causal=False)
    full = 4 * 512**2 * 64 * 16 * 4
    assert case.flops == full
    assert replace(case, causal=True).flops == full / 2
    packed = replace(case, causal=True, packed=True, seqlens=(3, 1))
    assert packed.flops == 4 * (6 + 1) * 64 * 16
    assert BACKWARD.flops_of(case) == 2.5 * full
    # Of 192/128: scores, dQ and dK by the columns of keys, dP, dV and O by those of values.
    pair = replace(case, head_dim=192, head_dim_v=128)
    assert pair.flops == full / 64 / 2 * (192 + 128)
    assert TRAINING.flops_of(pair) == full / 64 / 2 * (4 * 192 + 3 * 128)


@pytest.mark.parametrize("profile", cases.PROFILES)
def test_profiles_make_valid_cases(profile: str, corpus: Corpus) -> None:
    built = cases.build_cases(cases.PROFILES[profile], corpus)
    names = [case.name for case in built]
    assert len(set(names)) == len(names)
    assert {case.group for case in built} == {"head_dim", "seqlen", "model"}
    for case in built:
        assert case.num_heads % case.num_heads_kv == 0
        assert 1 <= case.head_dim <= 512
        assert min(case.seqlens) > 0
        assert case.packed or len(set(case.seqlens)) == 1
        # A window that hides nothing would measure plain causal attention.
        assert case.window_left < max(case.seqlens) - 1


def test_a_selection_reaches_both_sweeps(corpus: Corpus) -> None:
    profile = cases.PROFILES["cpu"].select(
        (256, 512), (Widths(64, 64), Widths(192, 128)), ("float16",)
    )
    built = cases.build_cases(profile, corpus)
    assert {case.dtype for case in built} == {"float16"}
    for group in ("head_dim", "seqlen"):
        sweep = [case for case in built if case.group == group]
        shapes = {(case.seqlens, str(case.widths)) for case in sweep}
        assert shapes == {((n,), d) for n in (256, 512) for d in ("64", "192/128")}
        assert {case.name.split("/s")[0] for case in sweep} == {f"{group}/d64", f"{group}/d192/128"}
        assert len(sweep) == 2 * len(shapes)  # causal or not
    assert cases.PROFILES["cpu"].select(None, None, None) == cases.PROFILES["cpu"]


def test_training_adds_dropout(corpus: Corpus) -> None:
    profile = cases.PROFILES["cpu-demo"]
    forward = cases.build_cases(profile, corpus)
    added = [c for c in cases.build_cases(profile, corpus, training=True) if c not in forward]
    assert [case.name for case in added] == ["gpt2/dropout/bf16"]
    assert added[0].dropout_p == 0.1
    assert len(added[0].seqlens) == 1


def test_tensor_parallel_share_keeps_the_group() -> None:
    shard = cases.GEMMA_2_9B_LOCAL.shard(8)
    assert (shard.name, shard.num_heads, shard.num_heads_kv) == ("gemma-2-9b/local/tp8", 2, 1)
    assert cases.LLAMA_3_8B.shard(1) == cases.LLAMA_3_8B
