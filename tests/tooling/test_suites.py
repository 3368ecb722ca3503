"""`convt bench kernelbench` and `roofline` without a GPU: PyTorch's settings, and what is kept whatever happens."""

import dataclasses
import json
import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

import convt
from convt import cli, operators, plan, timing
from convt.bench import devices, machine, protocol, record, rivals, roofline, suite
from convt.bench.watchdog import Watchdog
from convt.problem import operand
from convt.testing import kernelbench, zoo

CEILINGS = roofline.Ceilings(copy=1e10, rates={"ieee": 1e11})


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    monkeypatch.setattr(roofline, "ceilings", lambda device, precisions: CEILINGS)


def bench(*arguments, suite="kernelbench"):
    return cli.main(
        ["bench", suite, "--device", "cpu", "--quick", "--sizes", "tiny", "--backend", "native", *map(str, arguments)]
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


# a GPU that is only pretended


class Made:
    kernel, config, predicted_us, workspace_bytes = "implicit_gemm", "64x256x16", 12.5, 256


@pytest.fixture
def pretended(monkeypatch):
    """The run believes in a GPU; tensors stay on the CPU. `lost` is what synchronising says."""
    real, state = rivals.Operands, {"lost": False, "forced": [], "now": {}}

    def synchronize():
        if state["lost"]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def turns(calls, *, device, **options):
        assert device == "cuda"
        return interleaved(calls, device="cpu", **options)

    def planned(operator, problem, dtype, device, last, requested, strides, precision, kernel):
        assert len(strides[0]) == len(strides[3]) == problem.rank + 2 and device == torch.device("cuda", 0)
        state["forced"].append(kernel if kernel is None else (operator, kernel))
        return plan.Plan("native", "pretended"), Made

    def located(tensor):
        size, strides, dtype, _, layout = operand(tensor)
        return size, strides, dtype, torch.device("cuda", 0), layout

    def switches(operator, tensor):
        return "native", "ieee", state["now"].get(operator)

    interleaved = timing.interleaved
    monkeypatch.setattr(rivals, "Operands", lambda problem, dtype, device, *rest: real(problem, dtype, "cpu", *rest))
    for module in (rivals, protocol):
        monkeypatch.setattr(module, "interleaved", turns)
    monkeypatch.setattr(devices.Cuda, "is_native_possible", lambda device: True)
    monkeypatch.setattr(devices.Cuda, "poison", lambda device, sizes, dtype: None)
    monkeypatch.setattr(machine, "device_name", lambda device: "pretended")
    monkeypatch.setattr(machine, "driver", lambda: "580.1")
    monkeypatch.setattr(operators, "plan_of_call", planned)
    monkeypatch.setattr(operators, "_switches", switches)
    monkeypatch.setattr(protocol, "operand", located)
    monkeypatch.setattr(plan, "forced_kernel", partial(Forced, state["now"]))
    calls = operators._forward_call, operators._grad_input_call, operators._grad_weight_call
    for call in calls:
        call.cache_clear()
    for name, function in {
        "is_available": lambda: True,
        "synchronize": synchronize,
        "current_device": lambda: 0,
        "set_device": lambda index: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1000,
        "max_memory_allocated": lambda: 5000,
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(suite, "_PATIENCE", {"convt": 60.0, "turns": 60.0, "torch": 60.0})
    rivals.search_thread.cache_clear()
    yield state
    rivals.search_thread.cache_clear()
    for call in calls:
        call.cache_clear()


class Forced:
    """convt.plan.forced_kernel without kernels: one of them refuses, one takes the GPU with it."""

    def __init__(self, now, name, operators=plan.OPERATORS):
        if name not in ("simt", "64x256x16", "refuses", "kills"):
            raise ValueError(f"forced_kernel: {name!r}")
        self.now, self.name, self.operators = now, name, operators

    def __enter__(self):
        if self.name == "refuses":
            raise ValueError("refuses: needs 32 channels")
        if self.name == "kills":
            torch.cuda.lose()
        self.now.update(dict.fromkeys(self.operators, self.name))

    def __exit__(self, *_):
        self.now.clear()


def cases(*configs, precisions=("tf32",), layouts=("contiguous",), problems=("81",)):
    return suite.cases(problems, precisions=precisions, layouts=layouts, configs=configs, sizes="tiny")


OPTIONS = protocol.Options(device="cuda", sizes="tiny", quick=True, seconds=0.01, rivals="settings")


def test_on_a_gpu_every_configuration_has_its_line(pretended, tmp_path):
    out = tmp_path / "lines.jsonl"
    work = cases("auto", "64x256x16", "refuses", layouts=("contiguous", "channels_last"))
    screened = []
    real = rivals.screen

    def screen(*arguments, **keywords):
        screened.append(arguments)
        return real(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals, "screen", screen)
        assert suite.run(work, OPTIONS, out=out, console=Console()) == 0, "a forced configuration may refuse"
    assert len(screened) == 1, "PyTorch's settings are screened once for all layouts"
    lines = lines_of(out)
    assert [line["forced"] for line in lines] == 2 * [None, "64x256x16", "refuses"]
    assert [line["ok"] for line in lines] == 2 * [True, True, False]
    assert pretended["forced"] == 2 * [None, ("forward", "64x256x16")]
    for line in lines:
        assert line["driver"] == "580.1" and line["device"] == "pretended" and line["precision"] == "tf32"
        assert len(line["candidates"]) == 4 and line["benchmark_first_call_s"] > 0
        assert line["eager_us"] > 0 and line["best_us"] <= line["eager_us"] and line["eager_rounding"] == "fp32"
        if line["ok"]:
            assert (line["kernel"], line["config"], line["predicted_us"]) == ("implicit_gemm", "64x256x16", 12.5)
            assert line["peak_bytes"] == line["eager_peak_bytes"] == 4000
        else:
            assert line["us"] is None and line["error"] == "ValueError: refuses: needs 32 channels"
    assert suite.run(work, OPTIONS, out=out, resume=True, console=Console()) == 0
    assert len(lines_of(out)) == 6


def test_of_forward_and_backward_every_operator_has_its_plan(pretended, tmp_path):
    out = tmp_path / "lines.jsonl"
    configs = ("auto", "64x256x16", "grad_weight=simt,forward=64x256x16")
    work = suite.cases(
        ("dla-34/dw64-k8s4@32",), suite="zoo", precisions=("bf16",), directions=("forward_backward",), configs=configs,
        sizes="tiny",
    )  # fmt: skip
    assert suite.run(work, OPTIONS, out=out, console=Console()) == 0
    for line in lines_of(out):
        assert line["kernel"] == "implicit_gemm + implicit_gemm + implicit_gemm" and line["predicted_us"] == 37.5
        assert line["config"] == "64x256x16 + 64x256x16 + 64x256x16"
        assert [told["workspace_bytes"] for told in line["plans"]] == 3 * [256]
        assert line["peak_bytes"] == line["eager_peak_bytes"] == 4000
    forced = [None, None, None]
    forced += [(operator, "64x256x16") for operator in plan.OPERATORS]
    forced += [("grad_weight", "simt")]  # the others' plans are known by now
    assert pretended["forced"] == forced


def test_peak_memory_is_that_of_the_whole_step(monkeypatch):
    """Measured around the second call, when the first one's results are already there."""
    order = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: order.append(name))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: order.append("before") or 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: order.append("peak") or 5500)
    first = protocol._first(
        timing.Parts(lambda: order.append("forward"), lambda _: order.append("backward")), devices.Cuda()
    )
    assert first.peak_bytes == 4500 and first.error is None
    assert order == [
        "forward", "backward", "synchronize", "reset_peak_memory_stats", "before", "forward", "backward", "synchronize",
        "peak",
    ]  # fmt: skip


def test_a_lost_gpu_blames_one_configuration_and_starts_again(pretended, tmp_path, monkeypatch, capsys):
    out = tmp_path / "lines.jsonl"
    monkeypatch.setattr(torch.cuda, "lose", lambda: pretended.update(lost=True), raising=False)
    restarted = []

    def restart(left):
        restarted.append(left)
        raise SystemExit

    work = cases("auto", "kills", "simt", problems=("81", "79"))
    with pytest.raises(SystemExit):
        suite.run(work, OPTIONS, out=out, restart=restart, stop_after=100.0, console=Console())
    assert [(line["problem"], line["forced"], line["ok"]) for line in lines_of(out)] == [("79", "kills", False)]
    assert "illegal memory access" in lines_of(out)[0]["error"]
    assert 1 <= restarted[0] <= 100
    assert "starting again" in capsys.readouterr().err

    pretended["lost"] = False
    assert suite.run(work[:1], OPTIONS, out=out, resume=True, console=Console()) == 0
    assert [line["forced"] for line in lines_of(out)] == ["kills", None, "simt"]
    assert suite.run(work[1:], OPTIONS, out=out, resume=True, console=Console()) == 3
    assert "run again with --resume" in capsys.readouterr().err


def test_a_call_that_never_returns_is_given_up(pretended, tmp_path, monkeypatch):
    out = tmp_path / "lines.jsonl"
    monkeypatch.setattr(suite, "_PATIENCE", {"convt": 0.01, "turns": 60.0, "torch": 60.0})
    returned = threading.Event()
    right = convt.conv_transpose1d

    def hangs(*arguments):
        assert returned.wait(20), "the watchdog never came"
        return right(*arguments)

    monkeypatch.setattr(convt, "conv_transpose1d", hangs)
    ended = []

    def exit(code):
        ended.append(code)
        returned.set()

    monkeypatch.setattr(suite.os, "_exit", exit)
    suite.run(cases("auto", problems=("79",)), OPTIONS, out=out, console=Console())
    assert ended == [3]
    assert lines_of(out)[0]["error"] == "no answer within 0 s: convt auto" and lines_of(out)[0]["ok"] is False


def test_watchdog_leaves_who_is_in_time_alone():
    expired = []
    with Watchdog(expired.append, poll=0.005) as watchdog:
        for _ in range(3):
            watchdog.stage("quick", 5.0)
            time.sleep(0.02)
        watchdog.stage("slow", 0.0)
        time.sleep(0.1)
    assert expired == ["slow"]
