"""The convt command: info, demo and bench, without a terminal, in seconds."""

import json
import subprocess
import sys
import time

import pytest
import torch

import convt
from convt import cli, demo, problems, timing
from convt.bench import machine, overhead, roofline, tables
from convt.testing import SUITES, select_layers


def convt_command(*arguments, **options):
    command = [sys.executable, "-m", "convt.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def tiny(monkeypatch):
    """The five problems with a handful of pixels, on a machine whose roofline is not measured."""
    spatial = {64: (40,), 79: (40,), 71: (9, 8), 81: (7, 6), 68: (5, 4, 6)}
    for number, pixels in spatial.items():
        monkeypatch.setattr(problems.load(number), "reduced", {"batch_size": 2, "spatial": pixels})
    monkeypatch.setattr(machine, "measure_roofline", lambda device: machine.Roofline(copy=1e10, multiply=1e11))


def last_line(capsys):
    return capsys.readouterr().out.splitlines()[-1]


# info


def test_info_json_has_every_fact():
    run = convt_command("info", "--json")
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout)
    assert facts["version"] == convt.__version__
    assert facts["torch"] == torch.__version__
    assert facts["torch_cuda"] == torch.version.cuda
    assert facts["isa"] in facts["isas"]
    assert facts["threads"] >= 1
    assert {"compiler", "cuda", "cuda_architectures", "cpu", "python", "commit"} <= facts.keys()
    assert (facts["no_gpu"] is None) == bool(facts["gpus"]), "either a GPU or the reason why there is none"


def test_info_names_build_isa_and_gpu(capsys):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in (convt.__version__, torch.__version__, "instruction set", "CUDA build", "GPU", "threads"):
        assert word in printed


# demo


def test_demo_solves_all_five_without_a_terminal():
    run = convt_command("demo", "--device", "cpu", "--seconds", "0.05")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "5 of 5 problems match"
    for number in problems.NUMBERS:
        assert any(line.startswith(f"{number} ") for line in run.stdout.splitlines()), run.stdout
    assert "geometric mean" in run.stdout
    assert "Made smaller for this machine" in run.stdout


@pytest.mark.parametrize("backend", ["native", "aten"])
def test_demo_matches_with_either_backend(tiny, capsys, backend):
    assert cli.main(["demo", "--device", "cpu", "--backend", backend, "--seconds", "0.01"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "5 of 5 problems match"
    assert sum(line.split()[-1] == backend for line in printed if line.strip()) == 5, "every row names its plan"


def test_demo_sees_a_wrong_result(tiny, capsys, monkeypatch):
    forward = convt.nn.ConvTranspose3d.forward
    monkeypatch.setattr(convt.nn.ConvTranspose3d, "forward", lambda self, x: forward(self, x) * (1 + 1e-4))
    assert demo.run(device="cpu", seconds=0.01) == 1
    assert last_line(capsys) == "4 of 5 problems match"


def test_demo_sees_one_wrong_element_that_is_not_sampled(tiny, capsys, monkeypatch):
    forward = convt.nn.ConvTranspose1d.forward

    def one_wrong(self, x):
        output = forward(self, x)
        output[0, 1, 17] += 0.25
        return output

    monkeypatch.setattr(convt.nn.ConvTranspose1d, "forward", one_wrong)
    real = demo.sample

    def elsewhere(*arguments):
        truth = real(*arguments)
        keep = (truth.index[:, :3] != torch.tensor([0, 1, 17])).any(1)
        return type(truth)(truth.index[keep], truth.value[keep], truth.magnitude[keep], truth.terms)

    monkeypatch.setattr(demo, "sample", elsewhere)
    assert demo.run(device="cpu", seconds=0.01) == 1
    assert last_line(capsys) == "3 of 5 problems match"


def test_demo_sees_nan(tiny, capsys, monkeypatch):
    monkeypatch.setattr(
        convt.nn.ConvTranspose2d, "forward", lambda self, x: torch.nn.ConvTranspose2d.forward(self, x) * torch.nan
    )
    assert demo.run(device="cpu", seconds=0.01) == 1
    assert last_line(capsys) == "3 of 5 problems match"


def test_demo_interrupted_keeps_what_is_done(tiny, capsys, monkeypatch):
    solve = demo._solve

    def interrupted(number, *arguments):
        if number == problems.NUMBERS[2]:
            raise KeyboardInterrupt
        return solve(number, *arguments)

    monkeypatch.setattr(demo, "_solve", interrupted)
    assert demo.run(device="cpu", seconds=0.01) == 130
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "2 of 5 problems match"
    assert "Interrupted after 2 of 5." in printed


def test_demo_full_cuts_the_batch_where_memory_is_short(monkeypatch):
    source = problems.load(64)
    layer = source.Model(*source.get_init_inputs()).conv1d_transpose
    monkeypatch.setattr(machine, "free_bytes", lambda device: 1 << 40)
    assert demo._sizes(source, layer, True, "cpu") == ({}, "")
    monkeypatch.setattr(machine, "free_bytes", lambda device: 1 << 30)
    sizes, said = demo._sizes(source, layer, True, "cpu")
    assert 1 <= sizes["batch_size"] < 64
    assert f"batch 64 to {sizes['batch_size']}" in said
    assert "1.1 GB free" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_demo_says_that_there_is_no_gpu(capsys):
    assert cli.main(["demo", "--device", "cuda"]) == 2
    assert "'cuda'" in capsys.readouterr().err


# bench


@pytest.fixture
def two_layers(monkeypatch):
    chosen = tuple(layer for layer in SUITES["cpu"] if layer.name.startswith("1d k5") or "1x1" in layer.name)
    assert len(chosen) == 2
    monkeypatch.setitem(SUITES, "cpu", chosen)
    monkeypatch.setattr(roofline, "ceilings", lambda device, precisions: roofline.Ceilings(1e10, {"ieee": 1e11}))
    return chosen


def test_bench_writes_a_line_per_layer_and_direction(two_layers, tmp_path, capsys):
    out = tmp_path / "lines.jsonl"
    assert cli.main(["bench", "cpu", "--quick", "--backend", "native", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["problem"], line["direction"]) for line in lines] == [
        (layer.name, direction) for layer in two_layers for direction in ("forward", "forward_backward")
    ]
    precisions = {"float32": "ieee", "float64": "fp64"}
    for line in lines:
        layer = next(layer for layer in two_layers if layer.name == line["problem"])
        assert line["ok"] is True
        assert line["suite"] == "cpu" and line["backend"] == "native" and set(line["kernel"].split(" + ")) == {"native"}
        assert line["layout"] == "contiguous" and line["precision"] == precisions[str(layer.dtype).split(".")[1]]
        assert line["torch"] == torch.__version__ and line["sizes"] == "full"
        assert line["isa"] in {"avx512", "avx2", "baseline"} and line["threads"] >= 1 and line["device"]
        assert set(line["config"].split(" + ")) == {line["isa"]}
        assert 0 < line["us_p20"] <= line["us"] <= line["us_p80"]
        assert line["eager_us"] > 0 and line["best_us"] > 0 and line["compile_us"] is None
        assert line["turns"] >= 3 and line["tflops"] > 0 and line["gbs"] > 0 and line["roofline_us"] > 0
        results = 4 * layer.problem.batch * layer.problem.out_channels
        assert line["peak_bytes"] >= results and line["eager_peak_bytes"] >= results
        assert 0 <= line["max_error"] < 1e-3
        assert "commit" in line
    printed = capsys.readouterr().out
    assert all(layer.name in printed for layer in two_layers), "names are never cut off"


def test_bench_of_single_operators(two_layers, tmp_path):
    out = tmp_path / "lines.jsonl"
    assert cli.main(["bench", "cpu", "--quick", "--direction", "operators", "backward", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    directions = ["forward", "grad_input", "grad_weight", "backward"]
    assert [line["direction"] for line in lines] == 2 * directions and all(line["ok"] for line in lines)
    operators = {name: [name] for name in directions[:3]} | {"backward": ["grad_input", "grad_weight"]}
    for line in lines:
        assert list(line["errors"]) == [told["operator"] for told in line["plans"]] == operators[line["direction"]]
        assert line["forward_us"] is None


def test_bench_calls_a_wrong_line_wrong(two_layers, capsys, monkeypatch):
    right = convt.conv_transpose2d
    monkeypatch.setattr(convt, "conv_transpose2d", lambda *arguments: right(*arguments) * (1 + 1e-3))
    assert cli.main(["bench", "cpu", "--quick", "--direction", "forward"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_bench_filter_takes_all_words_and_explains_itself(capsys):
    chosen = select_layers("cpu", ["depthwise", "channels_last"])
    assert len(chosen) == 1
    assert cli.main(["bench", "cpu", "--filter", "no such layer"]) == 2
    assert "2d k4 s2 p1" in capsys.readouterr().err
    assert cli.main(["bench", "cpu", "--precision", "tf32"]) == 2
    assert "precision" in capsys.readouterr().err


def test_bench_suite_covers_what_pytorch_is_slow_at():
    names = [layer.name for layer in SUITES["cpu"]]
    assert len(set(names)) == len(names)
    for words in (
        "1d k3 s2 p1 d2 32->64 16384 b2",
        "2d k3 s5 p1 d2 32->64 64x128 b2",
        "2d k9 s4 p4 op3 64->3 64x64 b2",
        "2d k4 s1 100->512 1x1 b16",
        "2d k4 s2 p1 depthwise 256 32x32 b4",
        "2d k4 s2 p1 depthwise 256 32x32 b4 bfloat16",
        "2d k4 s2 p1 depthwise 256 32x32 b4 channels_last",
        "2d k4 s2 p1 g8 256->256 32x32 b4",
        "2d k4 s2 p1 g8 256->256 32x32 b4 channels_last",
        "2d k4 s2 p1 64->64 32x32 b4 float64",
        "2d k4 s2 p1 64->64 32x32 b4 float16",
        "1d k5 s1 d3 32->64 8192 b2 float64",
    ):
        assert words in names


def test_overhead_measures_every_way_to_call(tmp_path):
    out = tmp_path / "lines.jsonl"
    assert cli.main(["bench", "overhead", "--quick", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["call"] for line in lines] == [case.name for case in overhead.CASES if not case.compiled]
    assert all(line["ratio"] == pytest.approx(line["torch_ns"] / line["ns"]) for line in lines)
    assert [line.ns for line in overhead.read([out, out])] == [line["ns"] for line in lines]
    options = cli._parser().parse_args(["bench", "table", str(out), "--kind", "overhead"])
    assert tables.made(options).count("\n") == len(lines) + 3
    with pytest.raises(ValueError, match="matches native"):
        overhead.read([out], ["native"])


def test_overhead_without_a_gpu_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "overhead", "--device", "cuda"]) == 2
    assert "there is no GPU that PyTorch can use" in capsys.readouterr().err


# measure


def test_rivals_take_turns():
    order = []
    timings = timing.interleaved([lambda: order.append("a"), lambda: order.append("b")], seconds=1e-9, least_turns=2)
    assert [timing.turns for timing in timings] == [2, 2]
    warm, turns = order[:2], order[2:]
    assert warm == ["a", "b"]
    runs = [who for index, who in enumerate(turns) if index == 0 or turns[index - 1] != who]
    assert runs == ["a", "b", "a", "b"]


def test_medians_and_percentiles():
    found = timing._timing([(seconds, 0.0) for seconds in (5.0, 1.0, 2.0, 3.0, 4.0)])
    assert (found.median, found.turns) == (3.0, 5)
    assert found.low == pytest.approx(1.8)
    assert found.high == pytest.approx(4.2)
    assert found.first is found.second is None


def test_parts_of_a_call_have_medians_of_their_own():
    found = timing._timing([(3.0, 1.0), (4.0, 1.5), (9.0, 2.0)])
    assert (found.median, found.first, found.second) == (4.0, 1.5, 2.5)
    order = []
    slow = timing.Parts(lambda: time.sleep(4e-3) or "value", lambda value: order.append(value) or time.sleep(1e-3))
    parted, plain = timing.interleaved([slow, lambda: order.append("plain")], seconds=1e-9, least_turns=3)
    assert order[:2] == ["value", "plain"] and plain.first is None
    assert parted.first >= 4e-3 and parted.second >= 1e-3
    assert parted.median == pytest.approx(parted.first + parted.second, rel=0.5)


@pytest.mark.parametrize("arguments", [["demo", "--seconds", "0"], ["bench", "cpu", "--direction", "sideways"], []])
def test_bad_arguments_exit_with_two(arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
