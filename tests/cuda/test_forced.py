"""Every CUDA kernel and configuration, forced over adversarial problems: exact values, poisoned memory."""

from __future__ import annotations

import json

import pytest
import torch

import adversarial
import convt
from adversarial import ADVERSARIAL, FORCED, FUNCTIONS, PRECISIONS, grouped, hopper, refusal
from convt.ops import Geometry
from convt.plan import cuda_plan, forced_kernel
from convt.problem import forward_problem
from reference import poisoned

# Layouts of input and weight.
LAYOUTS = (
    (adversarial.contiguous, adversarial.contiguous),
    (adversarial.channels_last, adversarial.channels_last),
    (adversarial.sliced, adversarial.transposed),
    (adversarial.offset, adversarial.offset),
)


def problem_of(case):
    return forward_problem(case.input, case.weight, None, Geometry(*case.geometry))


def name_of(dtype, precision):
    return f"{str(dtype).removeprefix('torch.')} {precision}"


@pytest.mark.parametrize("kernel", (None, *FORCED["forward"]))
def test_plans(kernel):
    """Without a GPU: a plan, or a reason why not; every kernel computes something, and something computes all."""
    planned = set()
    for case in ADVERSARIAL:
        for dtype, precision in PRECISIONS:
            for channels_last in (False, True):
                keywords = {"precision": precision, "channels_last": channels_last, "bias": True}
                reason = refusal(kernel, "forward", case, dtype, precision)
                try:
                    plan = cuda_plan(problem_of(case), dtype, kernel=kernel, **keywords)
                except ValueError as error:
                    assert kernel is not None, f"{case.name}, {name_of(dtype, precision)}: {error}"
                    assert len(str(error)) > 10
                    assert not grouped(kernel) or (reason is not None and reason in str(error)), f"{case.name}: {error}"
                    continue
                assert reason is None, f"{case.name}, {name_of(dtype, precision)}: not refused"
                assert kernel in (None, plan.kernel, plan.config)
                assert plan.workspace_bytes >= 0 and plan.predicted_us > 0
                json.dumps(plan.explain())
                planned.add((dtype, precision))
    assert planned or (grouped(kernel) and not hopper()), f"{kernel} computes none of these problems"
    assert kernel is not None or planned == set(PRECISIONS)


def compare(case, device, kernel):
    """The number of calls that `kernel` computed; all of them exactly."""
    *tensors, output = adversarial.exact(case, device)
    computed = 0
    for dtype, precision in PRECISIONS if device == "cuda" else (PRECISIONS[0], *PRECISIONS[2:]):
        input, weight, bias = (tensor.to(dtype) for tensor in tensors)
        expected = output.to(dtype)
        for number, (layout, weight_layout) in enumerate(LAYOUTS):
            operands = layout(input), weight_layout(weight), bias if number % 2 == 0 else None
            with convt.precision(precision), poisoned(), forced_kernel(kernel):
                try:
                    actual = FUNCTIONS[case.rank](*operands, **case.keywords)
                except ValueError as error:
                    assert kernel is not None and len(str(error)) > 10, str(error)
                    reason = refusal(kernel, "forward", case, dtype, precision)
                    assert not grouped(kernel) or (reason is not None and reason in str(error)), f"{case.name}: {error}"
                    continue
            wanted = expected
            if operands[2] is None:
                wanted = (output - tensors[2].reshape(-1, *(1,) * case.rank)).to(dtype)
            same = torch.equal(actual, wanted)
            label = f"{case.name}, {kernel}, {name_of(dtype, precision)}, {layout.__name__}"
            assert same, f"{label}: {difference(actual, wanted)}"
            computed += 1
    return computed


def difference(actual, wanted):
    wrong = actual.double().ne(wanted.double())
    first = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{int(wrong.sum())} of {wrong.numel()} outputs are wrong, {int(actual.isnan().sum())} of them NaN; the first "
        f"is {first}: {actual[first].item()}, expected {wanted[first].item()}"
    )


@pytest.mark.parametrize("case", ADVERSARIAL, ids=lambda case: case.name)
def test_chosen_kernels(device, case):
    assert compare(case, device, None)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("case", ADVERSARIAL, ids=lambda case: case.name)
@pytest.mark.parametrize("kernel", FORCED["forward"])
def test_forced_kernels(device, kernel, case):
    if not compare(case, device, kernel):
        with pytest.raises(ValueError):
            cuda_plan(problem_of(case), torch.bfloat16, kernel=kernel, device=device)
