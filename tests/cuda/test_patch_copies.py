"""Every way in of Hopper's kernels, with every configuration: exact values. On a CPU the simulator plays a few."""

from __future__ import annotations

import pytest
import torch

import adversarial
from adversarial import ADVERSARIAL, exact, exact_gradients, grouped, hopper
from convt import _C

CONFIGS = tuple(config for config in _C.cuda_configs() if grouped(config))
LAYOUTS = adversarial.contiguous, adversarial.channels_last, adversarial.sliced, adversarial.offset
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
        for copies in (0, 2):
            dtype = DTYPES[(number + len(case.name)) % len(DTYPES)]
            for layout in LAYOUTS:
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


EACH_OPERATOR = pytest.mark.parametrize("operator", ["forward", "grad_input"])


@EACH_OPERATOR
@pytest.mark.parametrize("case", [case for case in ADVERSARIAL if case.name in PLAYED], ids=lambda case: case.name)
def test_ways_in_as_the_simulator_plays_them(case, operator):
    assert {"gathered", "turned"} <= check(case, operator, "cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not hopper(), reason="warpgroups are Hopper's")
@EACH_OPERATOR
@pytest.mark.parametrize("case", ADVERSARIAL, ids=lambda case: case.name)
def test_ways_in(gpu, case, operator):
    ways = check(case, operator, gpu)
    assert "gathered" in ways or not ways
