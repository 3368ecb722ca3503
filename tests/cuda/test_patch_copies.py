"""Every way in of Hopper's kernels, with every configuration: exact values. On a CPU the simulator plays a few."""

from __future__ import annotations

import pytest
import torch

import adversarial
from adversarial import ADVERSARIAL, exact, exact_gradients, grouped, hopper, is_hoppers
from convt import _C

CONFIGS = tuple(config for config in _C.cuda_configs() if grouped(config))
LAYOUTS = adversarial.contiguous, adversarial.channels_last, adversarial.sliced, adversarial.offset
WAYS_LAYOUTS = *LAYOUTS, adversarial.padded
DTYPES = torch.float32, torch.bfloat16, torch.float16
PLAYED = ("2d-groups-of-5", "2d-column", "1d-output-padding")


def compute(plan, read, weight, result, forward):
    """Runs a plan on tensors of any device, in memory that was NaN."""
    workspace = torch.full((plan.workspace_bytes + 256,), 0xFF, dtype=torch.uint8, device=read.device)
    first = workspace.data_ptr() + -workspace.data_ptr() % 256
    input, output = (read, result) if forward else (result, read)
    pointers = input.data_ptr(), weight.data_ptr(), 0, output.data_ptr(), first
    if read.is_cuda:
        _C.cuda_run(plan, *pointers, read.device.index, torch.cuda.current_stream().cuda_stream)
    else:
        _C.simulate(plan, *pointers)


def check(case, operator, device):
    """The ways in that computed a problem, all of them exactly."""
    forward = operator == "forward"
    input, weight, bias, output = exact(case, device)
    _, _, grad_output, grad_input, _ = exact_gradients(case, device)
    read, wanted = (input, output - bias.reshape(-1, *(1,) * case.rank)) if forward else (grad_output, grad_input)
    stride, padding, output_padding, groups, dilation = case.geometry
    ways = set()
    for number, config in enumerate(CONFIGS):
        for copies in (0, 2, 3):
            dtype = DTYPES[(number + copies + len(case.name)) % len(DTYPES)]
            for layout in WAYS_LAYOUTS:
                values, filter = layout(read.to(dtype)), weight.to(dtype)
                result = layout(torch.full_like(wanted, float("nan"), dtype=dtype))
                shown = (values, result) if forward else (result, values)
                gpu = {"tensor_copies": copies} | ({"multiprocessors": 3} if device == "cpu" else {})
                try:
                    plan = _C.cuda_plan(
                        operator, tuple(shown[0].shape), shown[0].stride(), tuple(filter.shape), filter.stride(), None,
                        shown[1].stride(), str(dtype).removeprefix("torch."), "tf32", stride, padding, output_padding,
                        groups, dilation, gpu, config,
                    )  # fmt: skip
                except ValueError:  # no room for the halo: tests/simulator says where there is
                    continue
                way = plan.explain()["way_in"]
                assert (way == "gathered") or copies
                compute(plan, values, filter, result, forward)
                assert torch.equal(result, wanted.to(dtype)), f"{config} {way} {dtype} {layout.__name__}"
                ways.add(way)
    return ways


def check_weight_gradients(case, device):
    """The tensors that were turned first, by configurations of Hopper's that computed a problem exactly."""
    input, weight, _, _ = exact(case, device)
    _, _, grad_output, _, wanted = exact_gradients(case, device)
    stride, padding, output_padding, groups, dilation = case.geometry
    turned = set()
    for config in filter(is_hoppers, _C.cuda_configs("grad_weight")):
        for number, (of_input, of_output) in enumerate(zip(LAYOUTS, (*LAYOUTS[2:], *LAYOUTS[:2]), strict=True)):
            dtype = DTYPES[1 + number % 2]
            values, gradient = of_input(input.to(dtype)), of_output(grad_output.to(dtype))
            result = torch.full_like(weight, float("nan"), dtype=dtype)
            gpu = {"tensor_copies": 2} | ({"multiprocessors": 3} if device == "cpu" else {})
            plan = _C.cuda_plan(
                "grad_weight", tuple(values.shape), values.stride(), tuple(result.shape), result.stride(), None,
                gradient.stride(), str(dtype).removeprefix("torch."), "tf32", stride, padding, output_padding,
                groups, dilation, gpu, config,
            )  # fmt: skip
            compute(plan, values, result, gradient, True)
            assert torch.equal(result, wanted.to(dtype)), f"{config} {dtype} {of_input.__name__} {of_output.__name__}"
            turned.update(plan.explain()["turned"])
    return turned


def turned_of(case):
    """Both tensors, in some layout, where channels of a group are whole vectors."""
    whole = case.weight[0] // case.geometry[3] % 8 == case.weight[1] % 8 == 0
    return {"input", "grad_output"} if whole else set()


EACH_OPERATOR = pytest.mark.parametrize("operator", ["forward", "grad_input"])


@EACH_OPERATOR
@pytest.mark.parametrize("case", [case for case in ADVERSARIAL if case.name in PLAYED], ids=lambda case: case.name)
def test_ways_in_as_the_simulator_plays_them(case, operator):
    ways = check(case, operator, "cpu")
    assert {"gathered", "turned"} <= ways
    assert ("rows" in ways) == (case.geometry[3] == 1 and (operator == "forward" or case.geometry[0][-1] == 1))


@pytest.mark.cuda
@pytest.mark.skipif(not hopper(), reason="warpgroups are Hopper's")
@EACH_OPERATOR
@pytest.mark.parametrize("case", ADVERSARIAL, ids=lambda case: case.name)
def test_ways_in(gpu, case, operator):
    ways = check(case, operator, gpu)
    assert "gathered" in ways or not ways


@pytest.mark.parametrize("case", [case for case in ADVERSARIAL if case.name in PLAYED], ids=lambda case: case.name)
def test_weight_gradients_as_the_simulator_plays_them(case):
    assert check_weight_gradients(case, "cpu") == turned_of(case)


@pytest.mark.cuda
@pytest.mark.skipif(not hopper(), reason="warpgroups are Hopper's")
@pytest.mark.parametrize("case", ADVERSARIAL, ids=lambda case: case.name)
def test_weight_gradients(gpu, case):
    assert check_weight_gradients(case, gpu) == turned_of(case)
