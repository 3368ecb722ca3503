"""convt explain: without a GPU, for any GPU, as tables and as JSON."""

import json
import re

import pytest

import convt
from convt import _C, cli, explain
from convt.testing import kernelbench

LAYER = ["2d", "--input", "8", "64", "32", "32", "--weight", "64", "48", "4", "4", "--stride", "2", "--padding", "1"]


def facts(capsys, *arguments):
    assert cli.main(["explain", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_tables_name_what_was_promised(capsys):
    assert cli.main(["explain", *LAYER, "--bias", "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert "2d k4 s2 p1 64->48 32x32 b8 bfloat16" in printed
    for word in (
        "phases", "taps", "tile", "grid", "shared memory", "workspace", "memory", "roofline", "bound", "kernel",
        "candidate", "why not", "chosen", "8 x 48 x 64 x 64",
    ):  # fmt: skip
        assert word in printed, f"{word} is missing from:\n{printed}"


def test_json_has_every_key(capsys):
    made = facts(capsys, *LAYER, "--precision", "tf32", "--gpu", "h200")
    assert made["device"] == "NVIDIA H200" and made["precision"] == "tf32" and made["output"] == [8, 48, 64, 64]
    assert {
        "kernel", "config", "phases", "taps", "tile", "grid", "threads", "shared_bytes", "registers", "workspace_bytes",
        "flops", "bytes_minimum", "bytes_predicted", "predicted_us", "roofline_us", "bound", "terms_us", "origin",
        "split", "candidates",
    } <= made.keys()  # fmt: skip
    assert made["phases"] == {"total": 4, "nonempty": 4}
    # Products with cropped outputs may count or not.
    assert made["flops"] == pytest.approx(2 * 8 * 32 * 32 * 16 * 64 * 48, rel=0.1)
    elements = 8 * 64 * 32 * 32 + 64 * 48 * 16 + 8 * 48 * 64 * 64
    assert made["bytes_minimum"] == 4 * elements
    assert made["predicted_us"] >= 0.9 * made["roofline_us"] > 0
    assert len(made["candidates"]) > 1
    for entry in made["candidates"]:
        assert entry["predicted_us"] is not None or entry["reason"], "a time, or a reason why not"


def test_empty_phases_are_counted(capsys):
    layer = ["1d", "--input", "2", "8", "40", "--weight", "8", "8", "3", "--stride", "4", "--dilation", "2"]
    assert facts(capsys, *layer)["phases"] == {"total": 4, "nonempty": 2}


@pytest.mark.parametrize("name", kernelbench.PROBLEMS)
def test_every_problem_of_kernelbench_has_a_plan(capsys, name):
    for arguments in (("--precision", "tf32"), ("--precision", "ieee"), ("--dtype", "bfloat16")):
        made = facts(capsys, "kernelbench", name, "--gpu", "h200", *arguments)
        assert made["output"] == list(kernelbench.PROBLEMS[name].output_size)
        assert made["predicted_us"] >= 0.9 * made["roofline_us"]


def test_precision_is_pytorchs_switch_by_default(capsys):
    with convt.precision("ieee"):
        assert facts(capsys, *LAYER)["precision"] == "ieee"
    with convt.precision("tf32"):
        assert facts(capsys, *LAYER)["precision"] == "tf32"
        assert facts(capsys, *LAYER, "--dtype", "float64")["precision"] == "ieee"


@pytest.mark.parametrize("gpu", explain.GPUS)
def test_gpus_that_are_not_here(capsys, gpu):
    made = facts(capsys, *LAYER, "--gpu", gpu, "--layout", "channels_last", "--dtype", "float16")
    assert gpu.upper() in made["device"].upper()


def test_a_forced_configuration(capsys):
    assert facts(capsys, *LAYER, "--config", "simt")["kernel"] == "simt"
    for name in _C.cuda_configs():
        code = cli.main(["explain", *LAYER, "--dtype", "bfloat16", "--config", name, "--json"])
        printed = capsys.readouterr()
        if code == 0:
            assert json.loads(printed.out)["config"] == name
        else:
            assert code == 2 and printed.err.startswith("convt: ")


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_how_patches_come_to_shared_memory(capsys, layout):
    arguments = *LAYER, "--dtype", "bfloat16", "--layout", layout, "--config", "64x256p8g1"
    way = facts(capsys, *arguments)["way_in"]
    assert way == "boxes" if layout == "channels_last" else way in ("gathered", "turned", "rows")
    assert cli.main(["explain", *arguments]) == 0
    assert re.search(rf"way in +{way}, \d patches at a time", capsys.readouterr().out)


@pytest.mark.parametrize("operator", ("grad_input", "grad_weight"))
def test_gradients_are_explained_by_their_own_plans(capsys, monkeypatch, operator):
    asked = []
    forward = _C.cuda_plan

    def planned(name, *arguments):
        asked.append((name, *arguments))
        return forward("forward", *arguments)

    monkeypatch.setattr(_C, "cuda_plan", planned)
    made = facts(capsys, *LAYER, "--operator", operator, "--layout", "channels_last", "--bias")
    result = {"grad_input": [8, 64, 32, 32], "grad_weight": [64, 48, 4, 4]}[operator]
    assert (made["operator"], made["result"], made["output"]) == (operator, result, [8, 48, 64, 64])
    assert made["bias"] is False
    ((name, _, _, _, weight_strides, bias, *_),) = asked
    assert (name, bias) == (operator, None)
    assert weight_strides == ((768, 16, 4, 1) if operator == "grad_input" else (768, 1, 192, 48))
    assert cli.main(["explain", *LAYER, "--operator", operator]) == 0
    printed = capsys.readouterr().out
    assert operator in printed and " x ".join(map(str, result)) in printed
    made = facts(capsys, *LAYER, "--device", "cpu", "--operator", operator)
    assert list(made["plans"]) == [operator]


def test_what_a_gradient_cannot_is_told(capsys):
    """A configuration that cannot, or a family: the reason, and no plan of another one."""
    code = cli.main(["explain", *LAYER, "--operator", "grad_weight", "--dtype", "float64", "--config", "implicit_gemm"])
    assert code == 2 and "kernel implicit_gemm cannot compute this problem: " in capsys.readouterr().err


def test_on_a_cpu(capsys):
    made = facts(capsys, *LAYER, "--device", "cpu")
    assert set(made["plans"]) == {"forward", "grad_input", "grad_weight"}
    assert cli.main(["explain", *LAYER, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for operator, choice in made["plans"].items():
        assert f"{choice['backend']} ({choice['reason']})" in printed and operator in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["4d"], "'4d'; legal are 1d, 2d, 3d and kernelbench NUMBER"),
        (["kernelbench", "59"], "'59'; legal are 57, 58"),
        (["2d"], "--input and --weight need 4 integers each"),
        (["2d", "--input", "1", "2", "3", "--weight", "1", "2", "3", "3"], "--input needs 4 integers, got (1, 2, 3)"),
        ([*LAYER, "--dilation", "1", "2", "3"], "--dilation needs 1 or 2 integers, got (1, 2, 3)"),
        ([*LAYER, "--groups", "5"], "groups 5 does not divide in_channels 64"),
        ([*LAYER, "--output-padding", "2"], "output_padding must be smaller than stride or dilation"),
        ([*LAYER, "--config", "depthwise"], "convt: "),
        ([*LAYER, "--config", "mma"], "kernel must be one of 'implicit_gemm', 'depthwise', 'simt'"),
    ],
)
def test_bad_arguments_are_explained(capsys, arguments, message):
    assert cli.main(["explain", *arguments]) == 2
    assert message in capsys.readouterr().err
