"""The rule that picks native code or ATen, held to the measurements it was read off."""

import json
import math
from pathlib import Path

import pytest
import torch

from convt import heuristics
from convt.bench import record
from convt.testing import SUITES, kernelbench, zoo

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "cpu_sweep.jsonl"
GPU_RESULTS = RESULTS.with_name("h200_kernelbench.jsonl")


@pytest.fixture(scope="module")
def measured():
    """Per operator, the ratios native code reached (torch's time over its own) and what the rule picks."""
    layers = {layer.name: layer for layer in SUITES["sweep"]}
    found = {"forward": [], "grad_input": [], "grad_weight": []}
    for line in record.read(RESULTS):
        layer = layers[line.problem]
        pick = heuristics.choose(layer.problem, line.direction, layer.dtype, layer.layout == "channels_last")
        found[line.direction].append((line.eager_us / line.us, pick, line.problem))
    return found


@pytest.mark.parametrize("operator", ("forward", "grad_input", "grad_weight"))
def test_native_is_picked_where_it_won(measured, operator):
    assert len(measured[operator]) >= 370
    losses = [(ratio, name) for ratio, pick, name in measured[operator] if pick == "native" and ratio < 0.95]
    # Lines of a tenth of a second scatter by some per cent, a few by more.
    assert len(losses) <= 3 and all(ratio > 0.7 for ratio, _ in losses), losses


@pytest.mark.parametrize(("operator", "gain"), (("forward", 1.6), ("grad_input", 1.3), ("grad_weight", 1.3)))
def test_the_rule_gains_what_the_documentation_says(measured, operator, gain):
    ratios = [ratio if pick == "native" else 1.0 for ratio, pick, _ in measured[operator]]
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) >= gain


def test_no_line_of_the_sweep_was_wrong():
    assert all(json.loads(text)["ok"] for text in RESULTS.read_text().splitlines())


def test_the_gpu_rule_loses_little_to_pytorch_on_any_measured_layer():
    lines = [json.loads(text) for text in GPU_RESULTS.read_text().splitlines()]
    # Eager multiplies in TF32 where it may: under ieee it is no rival.
    forward = [line for line in lines if line["direction"] == "forward" and line["precision"] != "ieee"]
    assert len(forward) >= 34
    gained, losses = 0, []
    for line in forward:
        dtype = torch.float32 if line["precision"] == "tf32" else torch.bfloat16
        problem = kernelbench.PROBLEMS[line["problem"]]
        pick = heuristics.choose_cuda(problem, "forward", dtype, line["layout"] == "channels_last")
        ratio = line["eager_us"] / line["us"]
        gained += pick == "native" and ratio > 1.05
        if ratio < 0.65 if pick == "native" else ratio > 1.3:
            losses.append((line["problem"], line["precision"], line["layout"], pick, round(ratio, 2)))
    assert not losses
    assert gained >= 28


@pytest.fixture(scope="module")
def steps():
    """Of training steps on a GPU with the backends that the rule picks: ratios to eager by suite and precision."""
    found = {}
    files = (GPU_RESULTS.with_name(f"h200_{suite}_training.jsonl") for suite in ("kernelbench", "zoo"))
    for text in "".join(file.read_text() for file in files).splitlines():
        line = json.loads(text)
        assert line["ok"] and line["backend"] == "auto", line["problem"]
        ratios = found.setdefault((line["suite"], line["precision"]), {})
        ours = any(plan["backend"] == "native" for plan in line["plans"])
        ratios[line["problem"]] = line["eager_us"] / line["us"], ours
    return found


@pytest.mark.parametrize(
    ("suite", "precision", "lines", "gain"),
    [
        ("kernelbench", "tf32", 17, 3.0),
        ("kernelbench", "bf16", 17, 2.15),
        ("zoo", "tf32", 64, 1.6),
        ("zoo", "bf16", 64, 1.6),
    ],
)
def test_training_steps_gain_what_the_documentation_says(steps, suite, precision, lines, gain):
    ratios = steps[suite, precision]
    assert len(ratios) == lines
    assert math.exp(sum(math.log(ratio) for ratio, _ in ratios.values()) / lines) >= gain
    # What is PyTorch's altogether is the same call in both columns.
    slow = {name: ratio for name, (ratio, ours) in ratios.items() if ours and ratio < 0.95}
    assert not slow


@pytest.mark.parametrize(("layout", "gain"), (("contiguous", 2.07), ("channels_last", 1.85)))
def test_the_gpu_rule_knows_what_adding_a_bias_takes_pytorch(layout, gain):
    """Forwards of layers with a bias: eager's as measured in training steps, native ones add it on the way out."""
    native = {}
    for text in GPU_RESULTS.with_name("h200_operators.jsonl").read_text().splitlines():
        line = json.loads(text)
        native[line["problem"], line["precision"], line["layout"]] = line["forward"]["us"]
    ratios = []
    for text in GPU_RESULTS.with_name("h200_zoo_training_native.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["layout"] != layout:
            continue
        entry, dtype = zoo.LAYERS[line["problem"]], torch.bfloat16 if line["precision"] == "bf16" else torch.float32
        if entry.bias and line["eager_forward_us"] is not None:
            ratio = line["eager_forward_us"] / native[line["problem"], line["precision"], layout]
            pick = heuristics.choose_cuda(entry.problem, "forward", dtype, layout == "channels_last", bias=True)
            ratios.append(ratio if pick == "native" else 1.0)
    assert len(ratios) >= 32 and math.exp(sum(map(math.log, ratios)) / len(ratios)) == pytest.approx(gain, abs=0.015)
    assert sum(ratio < 0.95 for ratio in ratios) <= 4 and min(ratios) >= 0.85, sorted(ratios)[:5]


@pytest.mark.parametrize(
    ("suite", "precision", "gain"),
    [
        ("kernelbench", "tf32", 2.99), ("kernelbench", "bf16", 2.01), ("kernelbench", "ieee", 2.93),
        ("zoo", "tf32", 1.63), ("zoo", "bf16", 1.60), ("zoo", "ieee", 1.44),
    ],
)  # fmt: skip
def test_the_gpu_rule_gains_what_the_documentation_says(suite, precision, gain):
    """Of the kernels alone: forward and both gradients, each where the rule puts it."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    problems = kernelbench.PROBLEMS if suite == "kernelbench" else {n: entry.problem for n, entry in zoo.LAYERS.items()}
    ratios = []
    for text in GPU_RESULTS.with_name("h200_operators.jsonl").read_text().splitlines():
        line = json.loads(text)
        if (line["suite"], line["precision"], line["layout"]) != (suite, precision, "contiguous"):
            continue
        eager = picked = 0.0
        for operator in ("forward", "grad_input", "grad_weight"):
            pick = heuristics.choose_cuda(problems[line["problem"]], operator, dtype, False, precision)
            eager += line[operator]["eager_us"]
            picked += line[operator]["us" if pick == "native" else "eager_us"]
        ratios.append(eager / picked)
    assert len(ratios) == (17 if suite == "kernelbench" else 64)
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) == pytest.approx(gain, abs=0.015)
    # One layer of 110 microseconds in all: 30 of them in PyTorch's weight gradient, 64 in another run.
    assert min(ratios) >= 0.8 and sum(ratio < 0.88 for ratio in ratios) <= 1
