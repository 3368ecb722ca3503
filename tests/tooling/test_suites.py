"""`convt bench kernelbench` and `roofline` without a GPU: PyTorch's settings, and what is kept whatever happens."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

import convt
from convt import cli, timing
from convt.bench import devices, protocol, record, rivals, roofline
from convt.testing import kernelbench, resized, zoo

CEILINGS = roofline.Ceilings(copy=1e10, rates={"ieee": 1e11})


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    monkeypatch.setattr(roofline, "ceilings", lambda device, precisions: CEILINGS)


def bench(*arguments, suite="kernelbench"):
    return cli.main(
        [
            "bench",
            str(suite),
            "--device",
            "cpu",
            "--quick",
            "--sizes",
            "tiny",
            "--backend",
            "native",
            *map(str, arguments),
        ]
    )


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# PyTorch's settings


def test_settings_are_screened_and_the_search_has_its_own_thread(monkeypatch):
    problem = kernelbench.shrunk(kernelbench.PROBLEMS["71"])
    operands = rivals.Operands(problem, torch.float32, "cpu", "forward")
    seen = []

    def spied(*arguments):
        switches = torch.backends.cudnn.benchmark, convt.settings._torch_precision()
        last = arguments[0].is_contiguous(memory_format=torch.channels_last)
        seen.append((last, *switches, threading.current_thread() is threading.main_thread()))
        return F.conv_transpose2d(*arguments)

    monkeypatch.setattr(rivals, "torch_function", lambda rank: spied)
    for limit in ("_SEARCH_BELOW", "_SEARCH_ONCE_ABOVE"):  # however busy the machine is
        monkeypatch.setattr(rivals, limit, 1e9)
    before = torch.backends.cudnn.benchmark, convt.settings._torch_precision()
    candidates = rivals.screen(operands, "ieee", device="cpu", benchmark=True)
    assert (torch.backends.cudnn.benchmark, convt.settings._torch_precision()) == before
    assert set(seen) == {
        (last, benchmark, "ieee", not benchmark) for last in (False, True) for benchmark in (False, True)
    }
    names = [candidate.setting for candidate in candidates]
    assert names == ["contiguous", "channels_last", "contiguous benchmark", "channels_last benchmark"]
    assert all(candidate.us > 0 for candidate in candidates)
    assert [candidate.first_call_s is not None for candidate in candidates] == [False, False, True, True]
    assert rivals.best(candidates) in candidates


def test_settings_that_fail_are_told_and_searches_are_not_begun_where_they_would_last(monkeypatch):
    problem = kernelbench.shrunk(kernelbench.PROBLEMS["71"])
    operands = rivals.Operands(problem, torch.float32, "cpu", "forward")

    def failing(input, *arguments):
        if input.is_contiguous(memory_format=torch.channels_last):
            raise RuntimeError("no engine\nfor this")
        return F.conv_transpose2d(input, *arguments)

    monkeypatch.setattr(rivals, "torch_function", lambda rank: failing)
    monkeypatch.setattr(rivals, "_SEARCH_BELOW", 1e-9)
    candidates = rivals.screen(operands, "tf32", device="cpu", benchmark=True)
    assert [candidate.setting for candidate in candidates] == ["contiguous", "channels_last"]
    assert candidates[1].error == "RuntimeError: no engine for this"
    assert rivals.best(candidates) == candidates[0]
    assert rivals.best(candidates[1:]) is None
    monkeypatch.setattr(rivals, "_SEARCH_BELOW", 10.0)
    monkeypatch.setattr(rivals, "_SEARCH_ONCE_ABOVE", -1.0)
    assert len(rivals.screen(operands, "tf32", device="cpu", benchmark=True)) == 2


def test_switches_hold_outside_of_what_is_timed():
    order = []

    @contextmanager
    def around():
        order.append("on")
        yield
        order.append("off")

    timings = timing.interleaved(
        [timing.Apart(lambda: order.append("a") or time.sleep(1e-3), around), lambda: order.append("b")],
        seconds=1e-9,
        least_turns=2,
    )
    assert [timing.turns for timing in timings] == [2, 2]
    assert order[:4] == ["on", "a", "off", "b"]
    assert order.count("on") == order.count("off") == order.count("a") == 3


def test_operands_in_both_layouts_are_the_same_values():
    problem = kernelbench.shrunk(kernelbench.PROBLEMS["77"])
    operands = rivals.Operands(problem, torch.float32, "cpu", "forward_backward")
    for one, other in zip(operands.at("contiguous"), operands.at("channels_last"), strict=True):
        assert torch.equal(one, other)
        assert other.is_contiguous(memory_format=torch.channels_last_3d)
    output, grad_input, grad_weight = operands.torch_call("channels_last")()
    sizes = problem.output_size, problem.input_size, problem.weight_size
    assert (output.shape, grad_input.shape, grad_weight.shape) == sizes


# a whole run


def test_run_writes_every_line_and_resumes(tmp_path, capsys):
    out = tmp_path / "lines.jsonl"
    arguments = (
        "--filter", "75", "79", "--precision", "ieee", "bf16", "--layout", "contiguous", "channels_last",
        "--direction", "forward", "forward_backward", "--out", out,
    )  # fmt: skip
    assert bench(*arguments) == 0
    lines = lines_of(out)
    # 79 is one-dimensional: no channels_last.
    assert len(lines) == len({tuple(line[name] for name in record.SETTINGS) for line in lines}) == 12
    for line in lines:
        assert line.keys() == {field.name for field in dataclasses.fields(record.Line)}
        assert line["ok"] is True and line["error"] is None and line["sizes"] == "tiny"
        assert line["suite"] == "kernelbench" and line["torch"] == torch.__version__ and line["device"]
        assert 0 < line["us_p20"] <= line["us"] <= line["us_p80"] and line["turns"] >= 3
        assert 0 < line["eager_us_p20"] <= line["eager_us"] <= line["eager_us_p80"]
        assert line["best_us"] > 0 and line["best_setting"] and line["candidates"]
        assert line["roofline_us"] > 0 and line["tflops"] > 0 and line["gbs"] > 0
        assert 0 <= line["max_error"] < 1e-2 and 0 <= line["eager_max_error"] < 1e-2
        assert line["rounding"] is line["eager_rounding"] is None, "a CPU rounds nothing"
    printed = capsys.readouterr().out
    assert "geometric means" in printed and "75 forward_backward bf16 channels_last" in printed

    # Without its last two lines, and cut off in the third last one, it is completed.
    out.write_text("\n".join(out.read_text().splitlines()[:10])[:-40])
    assert bench(*arguments, "--resume") == 0
    assert len(out.read_text().splitlines()) == 10 + 3
    assert len(record.read(out)) == 12
    assert bench(*arguments, "--resume") == 0
    assert len(out.read_text().splitlines()) == 13, "nothing was left to do"
    assert "12 of" not in capsys.readouterr().err


def test_forward_and_backward_are_judged_and_timed_apart_too(tmp_path, capsys):
    out = tmp_path / "lines.jsonl"
    words = ("--only", "dla-34/dw64-k8s4@32", "unet-carvana/128to64@320x479", "hifigan-train/up3-64to32-k4s2@4096")
    both = ("--direction", "forward", "forward_backward", "--precision", "ieee", "bf16", "--train")
    assert bench(*words, *both, "--out", out, suite="zoo") == 0
    lines = lines_of(out)
    assert len(lines) == 3 * 4 and {line["suite"] for line in lines} == {"zoo"}
    for line in lines:
        assert line["ok"] is True and line["problem"] in zoo.LAYERS
        assert line["name"].endswith(" bias") == zoo.LAYERS[line["problem"]].bias
        results = ["forward", "grad_input", "grad_weight"]
        parts = ("forward_us", "backward_us", "eager_forward_us", "eager_backward_us")
        if line["direction"] == "forward":
            assert list(line["errors"]) == results[:1] and all(line[name] is None for name in parts)
            continue
        results += ["grad_bias"] * line["name"].endswith(" bias")
        assert list(line["errors"]) == results and line["max_error"] == max(line["errors"].values())
        assert [told["operator"] for told in line["plans"]] == results[:3]
        assert all(told["backend"] in ("native", "aten") and told["reason"] for told in line["plans"])
        assert all(line[name] > 0 for name in parts)
        # Medians of parts and of the whole are of different turns.
        assert 0.3 * line["us"] < line["forward_us"] + line["backward_us"] < 3 * line["us"]
    printed = capsys.readouterr().out
    assert "zoo" not in printed.split(" forward_backward bf16")[0] or "unet-carvana/128to64@320x479" in printed
    assert cli.main(["bench", "table", str(out), "--kind", "training"]) == 2, "shrunk layers make no table"


def test_interrupted_run_keeps_what_is_done(tmp_path, capsys, monkeypatch):
    real, done = protocol.measure, []

    def interrupted(case, *arguments, **keywords):
        if done:
            raise KeyboardInterrupt
        done.append(case)
        return real(case, *arguments, **keywords)

    monkeypatch.setattr(protocol, "measure", interrupted)
    out = tmp_path / "lines.jsonl"
    assert bench("--filter", "71", "81", "79", "--out", out) == 130
    assert [line["problem"] for line in lines_of(out)] == ["71"]
    printed = capsys.readouterr().out
    assert "Interrupted after 1 of 3 lines." in printed and "71 forward ieee contiguous: " in printed


def test_run_stops_after_its_time(tmp_path, capsys):
    out = tmp_path / "lines.jsonl"
    assert bench("--filter", "71", "81", "--out", out, "--stop-after", "1e-9") == 0
    assert not out.exists()
    assert "2 lines to do" in capsys.readouterr().out


def test_a_rival_that_fails_leaves_the_other(tmp_path, capsys, monkeypatch):
    out = tmp_path / "lines.jsonl"

    def fails(*arguments):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 48.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(convt, "conv_transpose2d", fails)
        assert bench("--filter", "81", "--out", out) == 1
    with monkeypatch.context() as patch:
        patch.setattr(rivals, "torch_function", lambda rank: fails)
        assert bench("--filter", "71", "--out", out) == 0
    assert bench("--filter", "79", "--out", out, "--rivals", "none") == 0
    ours_failed, theirs_failed, alone = lines_of(out)
    assert ours_failed["ok"] is False and ours_failed["us"] is None and ours_failed["eager_us"] > 0
    assert "48.00 GiB" in ours_failed["error"] and ours_failed["eager_error"] is None
    assert theirs_failed["ok"] is True and theirs_failed["us"] > 0 and theirs_failed["error"] is None
    assert theirs_failed["eager_us"] is theirs_failed["best_us"] is None and "48.00 GiB" in theirs_failed["eager_error"]
    assert alone["ok"] is True and alone["eager_us"] is alone["best_us"] is alone["candidates"] is None
    assert "81 forward ieee contiguous: convt: OutOfMemoryError: CUDA out of memory" in capsys.readouterr().out


def test_a_wrong_result_is_called_wrong(tmp_path, capsys, monkeypatch):
    right = convt.conv_transpose1d
    monkeypatch.setattr(convt, "conv_transpose1d", lambda *arguments: right(*arguments) * (1 + 1e-4))
    out = tmp_path / "lines.jsonl"
    assert bench("--filter", "79", "--out", out) == 1
    (line,) = lines_of(out)
    assert line["ok"] is False and line["us"] > 0 and "differs from the definition" in line["error"]
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--filter", "56"], ["--resume"], ["--config", "simt"], ["--config", "dgrad=simt"]],
)
def test_bad_arguments_are_explained(arguments, capsys):
    assert bench(*arguments) == 2
    assert arguments[0].lstrip("-") in capsys.readouterr().err


def test_not_a_number_is_no_json(tmp_path):
    out = tmp_path / "lines.jsonl"
    (line,) = protocol.Case("79", kernelbench.PROBLEMS["79"], "forward", "ieee", "contiguous").lines(
        protocol.Options("cpu")
    )
    record.append(out, dataclasses.replace(line, max_error=float("nan"), eager_rounding_rms={"fp32": float("inf")}))
    (read,) = lines_of(out)
    assert read["max_error"] is None and read["eager_rounding_rms"] == {"fp32": None}


# a file of problems, torch.compile, sizes


def test_a_json_file_is_a_suite(tmp_path, capsys):
    file, out = tmp_path / "mine.json", tmp_path / "lines.jsonl"
    problems = [
        {"name": "up", "input": [2, 4, 9, 8], "weight": [4, 3, 3, 2], "stride": [2, 1], "padding": 1, "bias": True},
        {"input": [1, 4, 40], "weight": [4, 1, 3], "groups": 4, "dilation": 2, "output_padding": 1, "stride": 2},
    ]
    file.write_text(json.dumps(problems))
    assert bench("--out", out, suite=file) == 0
    lines = lines_of(out)
    names = ["up", "1d k3 s2 op1 d2 depthwise 4 40 b1"]
    assert [line["problem"] for line in lines] == names and {line["suite"] for line in lines} == {"mine"}
    assert lines[0]["name"] == "2d k3x2 s2x1 p1 4->3 9x8 b2 bias" and all(line["ok"] for line in lines)
    assert bench("--only", "up", "--direction", "both", "--out", out, suite=file) == 0
    assert lines_of(out)[-1]["direction"] == "forward_backward"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("{}", "a list of at least one"),
        ("[]", "a list of at least one"),
        ("[1]", "entry 0"),
        ('[{"input": [1, 2, 3]}]', "weight must be a shape"),
        ('[{"input": [1, 2, 3], "weight": [2, 2, 3, 3]}]', "the same number of axes"),
        ('[{"input": [1, 2, 3], "weight": [2, 2, 3], "strides": 2}]', "unknown key 'strides'"),
        ('[{"input": [1, 2, 3], "weight": [2, 2, 3], "stride": [2, 2]}]', "stride must be an integer or 1 of them"),
        ('[{"input": [1, 2, 3], "weight": [3, 2, 3]}]', "entry 0"),
        ('[{"input": [1, 2, 3], "weight": [2, 2, 3], "bias": 1}]', "bias true or false"),
        ('[{"input": [1, 2, 3], "weight": [2, 2, 3], "name": "a"}, '
         '{"input": [1, 2, 4], "weight": [2, 2, 3], "name": "a"}]', "another one of the name 'a'"),
    ],
)  # fmt: skip
def test_a_bad_file_of_problems_is_explained(text, words, tmp_path, capsys):
    file = tmp_path / "mine.json"
    file.write_text(text)
    assert bench(suite=file) == 2
    assert words in capsys.readouterr().err
    assert bench(suite=tmp_path / "absent.json") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_torch_compile_is_a_rival_or_says_why_not(tmp_path, monkeypatch):
    out = tmp_path / "lines.jsonl"
    compiled = []

    def compile(function, **options):
        compiled.append(options)
        if len(compiled) > 1:
            raise RuntimeError("no C++ compiler")
        return function

    monkeypatch.setattr(torch, "compile", compile)
    assert bench("--filter", "79", "--rivals", "all", "--direction", "both", "--out", out) == 0
    first, second = lines_of(out)
    assert compiled == 2 * [{"fullgraph": True, "dynamic": False}]
    assert 0 < first["compile_us_p20"] <= first["compile_us"] and first["compile_first_call_s"] > 0
    assert first["compile_error"] is None and second["compile_us"] is second["compile_first_call_s"] is None
    assert second["compile_error"] == "RuntimeError: no C++ compiler" and second["ok"] is True
    assert second["us"] > 0 and second["best_us"] > 0


@pytest.mark.parametrize("name", kernelbench.PROBLEMS)
def test_reduced_layers_keep_everything_but_images_and_pixels(name):
    problem = kernelbench.PROBLEMS[name]
    small = resized(problem, "reduced")
    assert small.geometry == problem.geometry and small.weight_size == problem.weight_size
    assert 1e6 < small.macs <= 2**28 and small.batch <= problem.batch
    assert all(i <= j for i, j in zip(small.input, problem.input, strict=True))
    assert resized(small, "reduced") == small and resized(problem, "full") == problem


def test_peak_of_a_cpu_is_what_the_allocator_handed_out():
    source = torch.zeros(1000)
    held = []

    def call():
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = torch.empty(500_000, dtype=torch.uint8)
        del first
        third = source + 1
        held.append(third)
        return second

    peak = devices.Cpu().peak_bytes(call)
    assert 1_500_000 <= peak < 1_510_000


def test_asking_for_the_peak_prints_nothing():
    """In a process of its own: the profiler asks once what it may say."""
    code = "import torch\nfrom convt.bench import devices\ndevices.Cpu().peak_bytes(lambda: torch.empty(9))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (told.stdout, told.stderr) == ("", "")
