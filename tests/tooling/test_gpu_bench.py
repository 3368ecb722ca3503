"""`convt bench` of a GPU that is only pretended: every configuration, and what is kept when the GPU is lost."""

import dataclasses
import json
import threading
import time
from functools import partial

import pytest
import torch
from rich.console import Console

import convt
from convt import operators, plan, timing
from convt.bench import devices, machine, protocol, rivals, roofline, suite
from convt.bench.watchdog import Watchdog
from convt.problem import operand

CEILINGS = roofline.Ceilings(copy=1e10, rates={"ieee": 1e11})


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    monkeypatch.setattr(roofline, "ceilings", lambda device, precisions: CEILINGS)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


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
    for limit in ("_SEARCH_BELOW", "_SEARCH_ONCE_ABOVE"):  # however busy the machine is
        monkeypatch.setattr(rivals, limit, 1e9)
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


@pytest.mark.parametrize("refuses", (False, True))
def test_light_calls_are_replayed(pretended, monkeypatch, tmp_path, refuses):
    """All of a case or none: a graph is quicker to launch."""
    recorded, real = [], devices.Cuda.recorded

    def record(device, call):
        recorded.append(call)
        if refuses and len(recorded) == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return dataclasses.replace(call, call=call.run(lambda inner: inner))

    assert real is not devices.Cpu.recorded
    monkeypatch.setattr(devices.Cuda, "recorded", record)
    out = tmp_path / "lines.jsonl"
    for limit, told in ((1e-3, None), (1e9, not refuses)):
        out.unlink(missing_ok=True)
        options = dataclasses.replace(OPTIONS, graph_below=limit)
        assert suite.run(cases("auto"), options, out=out, console=Console()) == 0
        (line,) = lines_of(out)
        assert line["ok"] and line["us"] > 0 and line["eager_us"] > 0 and line["graph"] is told
        assert len(recorded) == (0 if told is None else 2 if refuses else 3), "convt, eager and the best"


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
