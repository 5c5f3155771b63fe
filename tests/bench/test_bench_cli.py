"""The command: options, table, JSON and plots."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from flash_attn2.__main__ import main
from flash_attn2.bench import accuracy, memory, report, runner, timing
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import FLASH_ATTN2, SDPA, STANDARD
from flash_attn2.bench.modes import FORWARD
from flash_attn2.bench.record import describe_machine


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
        (["--head-dims", "64,257"], "257 is not between 1 and 256"),
        (["--head-dims", "x"], "'x' is not a list of integers"),
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
    for words in ("seqlen/d64/s128/causal/fp32", "stable-diffusion/16x16", "geometric mean"):
        assert words in shown
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["complete"]
    assert len(record["results"]) == 4
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
    script = Path(__file__).parents[2] / "benchmarks" / "gqa_memory.py"
    runpy.run_path(str(script), run_name="__main__")
    header, _, line = capsys.readouterr().out.splitlines()
    assert header == "| query heads / key-value heads | results | flash_attn2 | SDPA | standard |"
    assert line.startswith("| 1 / 1 | 8.0 KiB | ")
    assert "n/a" not in line


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = iter([_result(1e-3)])

    def run(self: runner.Runner, case: Case) -> runner.Result:
        for result in results:
            return result
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.Runner, "run", run)
    command = ["bench", "--demo", "--device", "cpu", "--no-plots", "--output", str(tmp_path)]
    assert main(command) == 130
    assert "Interrupted: 1 of" in capsys.readouterr().out
    record = json.loads((tmp_path / "results.json").read_text())
    assert not record["complete"]
    assert len(record["results"]) == 1
    assert main(command) == 130
    assert "before the first case" in capsys.readouterr().out


def _result(error: float) -> runner.Result:
    case = Case("gemma", "model", "bfloat16", 2, 1, 256, (64,), False, True, softcap=50.0)

    def measurement(seconds: float) -> runner.Measurement:
        return runner.Measurement("", {0: seconds, 1: 3 * seconds}, seconds, 1e9, None, error)

    return runner.Result(
        case,
        case.flops,
        {FLASH_ATTN2: measurement(0.5), STANDARD: measurement(0.25)},
        {SDPA: "no softcap"},
        {STANDARD: timing.Ratio(0.5, 0.4, 0.6)},
        accuracy.Errors(
            {FLASH_ATTN2: {"out": error}, STANDARD: {"out": error}}, {"out": 1e-3}, checked=0.5
        ),
    )


def test_table_says_what_is_missing_or_slow() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    report.print_tables(console, [_result(1e-3)], FORWARD)
    text = console.export_text()
    assert "no softcap" in text
    assert "0.50x 0.40-0.60" in text
    assert "Slower than standard in: gemma" in text
    assert "as fast as SDPA" not in text
    assert "Noise: in 1 of 1 cases" in text
    assert "on a sample of the heads and rows in 1 cases" in text


def test_an_error_out_of_tolerance_is_reported() -> None:
    assert report.out_of_tolerance([_result(1e-3), _result(3e-3)]) == ["gemma"]


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
    ("value", "text"), [(2.0, "2.00 s"), (0.0123, "12.30 ms"), (4.2e-5, "42 µs")]
)
def test_times(value: float, text: str) -> None:
    assert report.format_time(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2048, "2.0 KiB"), (300 * 2**20, "300 MiB"), (3 * 2**30, "3.00 GiB")]
)
def test_sizes(value: int, text: str) -> None:
    assert report.format_bytes(value) == text
