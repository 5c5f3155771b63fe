"""Rows beside other runtimes, none of which is needed here: what is measured, and what is said."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cpu_markdown
import cpu_rows
import cpu_table
import peer_rows
import peer_suite
import peers
import pytest
import torch
from cpu_rows import Goal
from peer_rows import PeerRow
from peers.interface import Attention, Prepared

from flash_attn2.bench import beside, record
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.decode import contenders as decode_contenders
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.decode.contenders import SDPA_PACKED
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import UnavailableError
from flash_attn2.bench.timing import Budget
from flash_attn2.reference import attention_reference
from tools import test_integrations
from tools.docs import performance
from tools.environments import ROOT

BUDGET = Budget(0.0, min_rounds=2, max_rounds=2)
CASE = Case("small", "", "float32", 4, 2, 32, (40, 40), packed=False, causal=True)
FORWARD = PeerRow("peers, forward fp32", CASE, Goal(1.1, 1.2), threads=(1,))
DECODE = PeerRow(
    "peers, decoding bf16",
    DecodeCase("few", "", "bfloat16", 2, 48, 4, 2, 32),
    Goal(1.0),
    threads=(1,),
)
Ways = Callable[[str, Attention], peers.Variants]


@pytest.fixture(autouse=True)
def _few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_contenders, "_COLD", {"cpu": 2**16})


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_pins_are_those_of_the_extra() -> None:
    extra = test_integrations.peers((ROOT / "pyproject.toml").read_text())
    pinned = [f"{one}=={pin}" for pins in peers.PINS.values() for one, pin in pins.items()]
    assert pinned == extra


@pytest.mark.parametrize("quick", [False, True])
def test_rows(quick: bool) -> None:
    rows = [*cpu_rows.rows(quick), *peer_rows.rows(quick)]
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    forward, decode = peer_rows.rows(quick)[0], peer_rows.rows(quick)[-1]
    assert forward.contenders == (SDPA, *peers.NAMES)
    assert decode.contenders == (SDPA, SDPA_PACKED, *peers.NAMES)
    assert isinstance(forward.case, Case)
    assert isinstance(decode.case, DecodeCase)
    assert forward.case.seqlens == ((32,) if quick else (512,))
    assert decode.case.seqlen_k == (256 if quick else 4096)


def right(attention: Attention, factor: float = 1.0) -> Prepared:
    k, v = attention.layers[0]
    out, *_ = attention_reference(attention.q, k, v, causal=attention.causal)
    return Prepared(lambda: None, lambda: out * factor, "exact")


def ways(per_peer: dict[str, Callable[[Attention], peers.Variants]]) -> Ways:
    return lambda name, attention: per_peer[name](attention)


def refuse(attention: Attention) -> peers.Variants:
    raise UnavailableError("no such thing")


def fail() -> Prepared:
    raise OSError("broken")


@pytest.mark.parametrize("row", [FORWARD, DECODE], ids=lambda row: row.title)
def test_each_peer_is_measured_or_the_record_says_why_not(
    row: PeerRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        peers.ONNXRUNTIME: lambda attention: {"a": fail, "b": lambda: right(attention)},
        peers.OPENVINO: refuse,
        peers.JAX: lambda attention: {"": fail},
        peers.GGML: lambda attention: {"": lambda: right(attention, factor=-1.0)},
    }
    monkeypatch.setattr(peers, "variants", ways(found))
    outcome = peer_suite.measure(row, BUDGET)
    contenders = outcome["contenders"]
    assert list(contenders) == [FLASH_ATTN2, *row.contenders]
    assert outcome["missing"] == sorted([peers.JAX, peers.GGML])
    assert contenders[peers.ONNXRUNTIME]["variant"] == "b"
    assert contenders[peers.ONNXRUNTIME]["precision"] == "exact"
    ratio = contenders[peers.ONNXRUNTIME]["seconds"] / contenders[FLASH_ATTN2]["seconds"]
    assert contenders[peers.ONNXRUNTIME]["ratio"]["value"] == pytest.approx(ratio)
    assert contenders[peers.OPENVINO] == {"unavailable": "no such thing"}
    assert contenders[peers.JAX] == {"unavailable": "OSError: broken"}
    assert "times SDPA's" in contenders[peers.GGML]["unavailable"]
    assert (outcome["must"], outcome["aim"]) == (row.goal.must, row.goal.aim)


def test_the_fastest_way_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(attention: Attention) -> peers.Variants:
        much = torch.randn(300, 300)
        slow = replace(right(attention), run=lambda: much.mm(much))
        return {"slow": lambda: slow, "fast": lambda: right(attention)}

    monkeypatch.setattr(peers, "variants", ways(dict.fromkeys(peers.NAMES, both)))
    contenders = peer_suite.measure(FORWARD, BUDGET)["contenders"]
    assert {contenders[name]["variant"] for name in peers.NAMES} == {"fast"}


def test_own_results_that_are_wrong_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "variants", ways(dict.fromkeys(peers.NAMES, refuse)))
    monkeypatch.setattr(peer_suite, "_WORSE", {torch.float32: 0.0})
    with pytest.raises(RuntimeError, match=r"flash_attn2's error is .* times SDPA's"):
        peer_suite.measure(FORWARD, BUDGET)


def test_another_release_is_not_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"onnxruntime": "1.32.0", "onnx": "1.0"}
    monkeypatch.setattr(peers, "_installed", here.get)
    assert peers.wrong_releases(peers.ONNXRUNTIME) == ["onnx 1.23.2"]
    outcome = peer_suite.measure(FORWARD, BUDGET)
    assert outcome["missing"] == sorted(peers.NAMES)
    reason = outcome["contenders"][peers.ONNXRUNTIME]["unavailable"]
    assert reason == "NotInstalledError: not installed: onnx 1.23.2"
    assert peers.releases()[peers.OPENVINO] == {
        "openvino": (peers.PINS["OpenVINO"]["openvino"], None)
    }


def a_record(**changes: Any) -> dict[str, Any]:
    """Two rows, with the fields that matter."""

    def peer(seconds: float) -> dict[str, Any]:
        ratio = {"value": seconds, "low": seconds, "high": seconds}
        return {"samples": {"0": seconds}, "seconds": seconds, "ratio": ratio}

    def row(name: str, **seconds: float) -> dict[str, Any]:
        own = {"samples": {"0": 1.0}, "seconds": 1.0}
        contenders = {FLASH_ATTN2: own, **{one: peer(value) for one, value in seconds.items()}}
        contenders["JAX"] = {"unavailable": "no float16 on CPUs"}
        return {
            "section": "peers",
            "title": "peers, forward fp16",
            "case": {"name": name},
            "contenders": contenders,
            "must": 1.5,
            "aim": None,
            "missing": [],
        }

    return {
        "complete": True,
        "machine": {"cpu": "A CPU", "threads": 2},
        "build": {"cpu": {"isa": "baseline"}},
        "versions": {"torch": "2", "flash_attn2": "0"},
        "options": {"quick": False, "peers": {"ggml": {"ggml-python": ["1.0", "1.0"]}}},
        "results": [row("one", SDPA=3.0, ggml=1.2), row("two", SDPA=2.0, ggml=1.75)],
        **changes,
    }


def test_a_whole_record_shows_its_lowest_ratio() -> None:
    whole = a_record()
    assert beside.faults(whole) == []
    assert list(beside.summary(whole)) == [
        "forward fp16: 1.20 times as fast as the fastest peer (lowest of 2 cases, ggml)."
    ]
    text = cpu_markdown.tables(whole)
    assert "| case | time | SDPA | ggml | JAX | must | aim | lowest |" in text
    assert "| one | 1 s | 3.00 | 1.20 |  | 1.50 |  | 1.20 (below) |" in text
    assert "| two | 1 s | 2.00 | 1.75 |  | 1.50 |  | 1.75 |" in text
    assert "- JAX: no float16 on CPUs (2 rows)" in text
    assert cpu_markdown.one_line(whole["results"][0]) == "1 s, 3.00x SDPA, 1.20x ggml"


def without_a_peer() -> dict[str, Any]:
    changed = a_record()
    row = changed["results"][1]
    row["contenders"]["ggml"] = {"unavailable": "NotInstalledError: not installed"}
    row["missing"] = ["ggml"]
    return changed


def with_a_failed_row() -> dict[str, Any]:
    changed = a_record()
    failed = {"section": "peers", "title": "", "case": {"name": "bad"}, "failed": "it died"}
    changed["results"].append(failed)
    return changed


OPTIONS = a_record()["options"]
FAULTS = {
    "it was cut short": a_record(complete=False),
    "its problems are tiny": a_record(options=OPTIONS | {"quick": True}),
    "no row has peers": a_record(results=[]),
    "it has 2 of 21 rows": a_record(options=OPTIONS | {"peer_rows": 21}),
    "ggml was not there (ggml-python 1.0)": a_record(
        options=OPTIONS | {"peers": {"ggml": {"ggml-python": ["1.0", None]}}}
    ),
    "ggml is missing in 1 of 2 rows (NotInstalledError: not installed)": without_a_peer(),
    "bad failed": with_a_failed_row(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_record_that_is_not_whole_says_so_and_updates_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = copy.deepcopy(FAULTS[fault])
    assert beside.faults(wrong) == [fault]
    assert f"Not beside all peers: {fault}." in list(beside.summary(wrong))
    if wrong["results"]:
        assert f"- Not beside all peers: {fault}." in cpu_markdown.tables(wrong)
    monkeypatch.setattr(performance, "RECORDS", tmp_path)
    (tmp_path / "a-peers.json").write_text(json.dumps(wrong))
    assert performance.peer_pages(tmp_path) == []
    assert not (tmp_path / "a-peers.md").exists()
    assert f"a-peers.json is not shown: {fault}" in capsys.readouterr().err


def test_a_page_of_a_whole_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance, "RECORDS", tmp_path)
    (tmp_path / "a-peers.json").write_text(json.dumps(a_record()))
    (summary,) = performance.peer_pages(tmp_path)
    assert summary.startswith("## [Beside other runtimes: A CPU](a-peers.md)")
    assert "1.20 times as fast as the fastest peer" in summary
    page = (tmp_path / "a-peers.md").read_text()
    assert "| two | 1 s | 2.00 | 1.75 |" in page
    assert "ggml-python 1.0" in page


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its record has the peers that are here, and says which are not."""
    path = tmp_path / "peers.json"
    select = ["--rows", "^peers, forward fp32, full: b1 h8 s512", "--quick", "--seconds", "0.01"]
    assert cpu_table.main([*select, "--output", str(path)]) == 0
    written = record.read_record(path)
    assert written["options"]["peers"].keys() == set(peers.NAMES)
    (row,) = written["results"]
    absent = [name for name in peers.NAMES if peers.wrong_releases(name)]
    assert set(row["missing"]) >= set(absent)
    shown = capsys.readouterr().out
    assert "Not beside all peers: its problems are tiny" in shown
    assert all(f"{name} was not there" in shown for name in absent)
