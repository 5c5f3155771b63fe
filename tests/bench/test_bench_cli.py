"""The command: options, table, JSON and plots."""

from __future__ import annotations

import io
import json
import runpy
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from flash_attn2.__main__ import main
from flash_attn2.bench import accuracy, memory, plots, report
from flash_attn2.bench.attention import SelfAttention
from flash_attn2.bench.attention_report import AttentionReport
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import SDPA, STANDARD
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.record import Record, describe_machine, read_record
from flash_attn2.bench.suite import Outcome

ROOT = Path(__file__).parents[2]


def test_list_names_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--demo", "--device", "cpu", "--cases", "llama|d64/s128", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "seqlen/d64/s128/causal/fp32",
        "seqlen/d64/s128/causal/bf16",
        "llama-3-8b/document/bf16",
        "llama-3-8b/packed/bf16",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head-dims", "64,577"], "577 is not between 1 and 576 for queries and keys, and 512"),
        (["--head-dims", "64/513"], "64/513 is not between 1 and 576"),
        (["--head-dims", "x"], "'x' is not a list of head dims like 64,192/128"),
        (["--seqlens", "0"], "0 is not between 1 and"),
        (["--dtype", "float64"], "'float64' is not one of float32, bfloat16, float16"),
        (["--cases", "("], "not a regular expression"),
        (["--threads", "0"], "'0' is not a positive integer"),
        (["--seconds", "-1"], "'-1' is not a positive number"),
        (["--seconds", "1", "--repeats", "3"], "not allowed with"),
        (["--mode", "back"], "invalid choice: 'back'"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_bad_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_no_case_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--cases", "nothing"]) == 2
    assert "'nothing' matches none of the" in capsys.readouterr().err


def test_block_masks_are_measured_at_one_width(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--mode", "sparse", "--head-dims", "64,192/128"]) == 2
    assert "--head-dims 192/128: --mode sparse has one width" in capsys.readouterr().err


def test_output_must_be_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["bench", "--output", str(tmp_path / "file")]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda"]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", "--output", str(tmp_path)]) == 2
    assert 'run: pip install "flash_attn2[bench]"' in capsys.readouterr().err


def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "bench --demo --device cpu --dtype float32 --head-dims 32 --seqlens 64,128"
    cases = "head_dim|seqlen|16x16"
    arguments = [*command.split(), "--repeats", "2", "--cases", cases, "--output", str(tmp_path)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for words in ("seqlen/d32/s128/causal/fp32", "stable-diffusion/16x16", "geometric mean"):
        assert words in shown
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["complete"]
    assert len(record["results"]) == 5
    for result in record["results"]:
        for one in result["contenders"].values():
            assert len(one["samples"]) == 2
            assert one["seconds"] > 0
            assert sys.platform != "linux" or one["extra_bytes"] > 0
    for name in ("head_dims.png", "seqlens.png", "models.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_other_modes_write_files_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "bench --demo --device cpu --mode bwd --dtype float32 --seqlens 64 --repeats 1"
    assert main([*command.split(), "--cases", "seqlen", "--output", str(tmp_path)]) == 0
    assert "Backward pass: sequence lengths" in capsys.readouterr().out
    record = json.loads((tmp_path / "results-bwd.json").read_text())
    assert record["options"]["mode"] == "bwd"
    (result,) = record["results"]
    assert result["flops"] == 2.5 * 2 * 64**2 * 64 * 8
    assert result["errors_of_plain_formula"].keys() == {"grad_q", "grad_k", "grad_v"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "results-bwd.json",
        "seqlens-bwd.png",
    ]


@pytest.mark.skipif(not memory.supported(), reason="needs Linux and glibc")
def test_memory_by_heads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--seqlen", "64", "--num-heads", "1", "--head-dim", "16"]
    monkeypatch.setattr(sys, "argv", ["gqa_memory.py", *arguments])
    script = ROOT / "benchmarks" / "gqa_memory.py"
    runpy.run_path(str(script), run_name="__main__")
    header, _, line = capsys.readouterr().out.splitlines()
    assert header == "| query heads / key-value heads | results | flash_attn2 | SDPA | standard |"
    assert line.startswith("| 1 / 1 | 8 KiB | ")
    assert "n/a" not in line


@pytest.mark.parametrize("more", [[], ["--page-size", "16", "--scales", "sequence"]])
def test_caches_of_8_bits(
    more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [
        "--batch",
        "2",
        "--seqlen",
        "40",
        "--heads",
        "2",
        "--heads-kv",
        "1",
        "--head-dim",
        "16",
    ]
    arguments = ["--seconds", "0.1", "--threads", "1", "--cold-mib", "0", *sizes, *more]
    monkeypatch.setattr(sys, "argv", ["kv_codes.py", *arguments])
    runpy.run_path(str(ROOT / "benchmarks" / "kv_codes.py"), run_name="__main__")
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header == "| cache | ms | ratio |"
    names = [line.split(" | ")[0] for line in lines]
    assert names == ["| bfloat16", "| float8_e4m3fn", "| float8_e5m2", "| int8"]


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = iter([_outcome(1e-3)])

    def measure(self: SelfAttention, case: Case) -> Outcome:
        for outcome in outcomes:
            return outcome
        raise KeyboardInterrupt

    monkeypatch.setattr(SelfAttention, "measure", measure)
    command = ["bench", "--demo", "--device", "cpu", "--no-plots", "--output", str(tmp_path)]
    assert main(command) == 130
    shown = capsys.readouterr()
    assert "Interrupted: 1 of" in shown.out
    assert "s] head_dim/d32/s1024/causal/fp32: 500 ms, 0.50x standard\n" in shown.err
    record = json.loads((tmp_path / "results.json").read_text())
    assert not record["complete"]
    assert len(record["results"]) == 1
    assert main(command) == 130
    assert "before the first case" in capsys.readouterr().out


def test_a_terminated_run_keeps_what_it_has(tmp_path: Path) -> None:
    command = "-m flash_attn2 bench --demo --device cpu --seqlens 16 --head-dims 8 --repeats 1"
    options = ["--cases", "d8|llama", "--seqlens", "16", "--output", str(tmp_path), "--no-plots"]
    with subprocess.Popen(
        [sys.executable, *command.split(), *options], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()  # as soon as there is a result
        kept = json.loads((tmp_path / "results.json").read_text())
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert first.startswith("[1/6, ")
    assert len(kept["results"]) >= 1
    assert process.returncode == 128 + signal.SIGTERM
    record = json.loads((tmp_path / "results.json").read_text())
    assert not record["complete"]
    assert 1 <= len(record["results"]) < 6
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_record_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(tmp_path / "results.json", "cpu", {})
    record.write([{"case": 1}], complete=False)

    def full(self: Path, text: str, encoding: str) -> int:
        with self.open("w", encoding=encoding) as file:
            file.write(text[:100])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        record.write([{"case": 1}, {"case": 2}], complete=True)
    assert json.loads(record.path.read_text())["results"] == [{"case": 1}]


def _outcome(error: float) -> Outcome:
    case = Case("gemma", "model", "bfloat16", 2, 1, 256, (64,), False, True, softcap=50.0)

    def contender(seconds: float, **more: Any) -> Outcome:
        times = {"samples": {0: seconds, 1: 3 * seconds}, "seconds": seconds}
        rest = {"flops_per_second": 1e9, "extra_bytes": None, "error": error}
        return {"variant": "", **times, **rest, **more}

    errors = accuracy.Errors(
        {FLASH_ATTN2: {"out": error}, STANDARD: {"out": error}}, {"out": 1e-3}, checked=0.5
    )
    ratio = {"value": 0.5, "low": 0.4, "high": 0.6}
    contenders = {
        FLASH_ATTN2: contender(0.5),
        SDPA: {"unavailable": "no softcap [/]"},
        STANDARD: contender(0.25, ratio=ratio),
    }
    return {
        "case": asdict(case),
        "flops": case.flops,
        **errors.record(),
        "contenders": contenders,
    }


def _report(*outcomes: Outcome) -> AttentionReport:
    return AttentionReport({"results": outcomes, "options": {"mode": "fwd"}})


def test_table_says_what_is_missing_or_slow() -> None:
    shown = _report(_outcome(1e-3))
    console = Console(width=120, record=True, file=io.StringIO())
    for table in shown.tables():
        report.print_table(console, table)
    for line in shown.summary():
        console.print(line)
    text = console.export_text()
    assert "no softcap [/]" in text
    assert "0.50x 0.40-0.60" in text
    assert "Slower than standard in: gemma" in text
    assert "as fast as SDPA" not in text
    assert "Noise: in 1 of 1 cases" in text
    assert "on a sample of the heads and rows in 1 cases" in text
    (table,) = shown.tables()
    assert "| gemma | flash_attn2 | 500 ms | 1 GFLOP/s |  | n/a | 1.0e-03 |" in report.markdown(
        table
    )


def test_an_error_out_of_tolerance_is_reported() -> None:
    assert _report(_outcome(1e-3), _outcome(3e-3)).out_of_tolerance() == ["gemma"]


@pytest.mark.parametrize("name", ["demo", "fwd-bwd-demo", "decode"])
def test_records_of_earlier_releases_are_shown(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "benchmarks" / "results" / f"cpu-amd-epyc-{name}.json"
    assert main(["bench", "--show", str(path), "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for result in json.loads(path.read_text())["results"]:
        assert f" {result['case']['name']} " in shown
    assert any(path.suffix == ".png" for path in tmp_path.iterdir())


def test_plots_say_what_they_show() -> None:
    record = read_record(ROOT / "benchmarks" / "results" / "cpu-amd-epyc-full.json")
    figures = dict(AttentionReport(record).figures())
    # Eight panels side by side would be too many.
    assert list(figures) == ["head_dims", "seqlens-fp32", "seqlens-bf16", "models"]
    for figure in figures.values():
        texts = [text.get_text() for text in figure.texts]
        assert texts[0].startswith("Forward pass: ")
        assert "AMD EPYC, 2 threads, torch 2.13.0+cpu, flash_attn2 0.1.0" in texts[1]
        (legend,) = figure.legends
        assert "SDPA" in [text.get_text() for text in legend.get_texts()]
        first = figure.axes[0]
        assert "better" in first.get_ylabel() + first.get_xlabel()
    bars = figures["head_dims"].axes
    assert {axes.get_ylim() for axes in bars} == {bars[0].get_ylim()}
    ratio = record["results"][0]["contenders"][SDPA]["ratio"]["value"]
    assert bars[0].texts[0].get_text() == f"{ratio:.1f}x"
    about, flops = (figures["head_dims"].texts[i].get_text() for i in (1, 2))
    assert about.startswith("batch 1, 8 heads ")
    assert flops.startswith("FLOP: 4 · head dim for each query and visible key")


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (2e-5, 3e-4, ["20 µs", "50 µs", "100 µs", "200 µs"]),
        (9e-5, 0.9, ["100 µs", "300 µs", "1 ms", "3 ms", "10 ms", "30 ms", "100 ms", "300 ms"]),
        (1e-5, 2e2, ["10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"]),
    ],
)
def test_ticks_of_logarithmic_axes(low: float, high: float, labels: list[str]) -> None:
    axes = Figure().subplots()
    axes.set(yscale="log", ylim=(low, high))
    plots.log_ticks(axes.yaxis, 10, report.format_time)
    assert [report.format_time(tick) for tick in axes.yaxis.get_ticklocs()] == labels


def test_only_records_of_the_command_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.json").write_text("[]")
    table = ROOT / "benchmarks" / "results" / "cpu-amd-epyc-table.json"
    for path in (tmp_path / "no.json", tmp_path / "missing.json", table):
        assert main(["bench", "--show", str(path), "--output", str(tmp_path)]) == 2
        assert "record" in capsys.readouterr().err


def test_gradients_have_thrice_the_error() -> None:
    errors = accuracy.Errors(
        {"good": {"grad_q": 2.9e-3, "grad_k": 0.0}, "bad": {"grad_q": 0.0, "grad_k": 2.9e-4}},
        {"grad_q": 1e-3, "grad_k": 1e-5},
        checked=1.0,
    )
    assert errors.within_tolerance("good")
    assert not errors.within_tolerance("bad")


def test_machine_names_no_host() -> None:
    machine = describe_machine("cpu")
    assert machine["threads"] == torch.get_num_threads()
    assert not any("/" in str(value) for value in machine.values())


@pytest.mark.parametrize(
    ("value", "text"), [(2.0, "2 s"), (0.0123, "12.3 ms"), (4.2e-5, "42 µs"), (0.9996, "1 s")]
)
def test_times(value: float, text: str) -> None:
    assert report.format_time(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2048, "2 KiB"), (1010 * 2**20, "1010 MiB"), (3.25 * 2**30, "3.25 GiB")]
)
def test_sizes(value: int, text: str) -> None:
    assert report.format_bytes(value) == text
