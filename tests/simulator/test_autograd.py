"""From autograd to the kernels and back, without a GPU: what Python plans and launches, the simulator plays."""

from __future__ import annotations

import pytest
import torch

import adversarial
import convt
from adversarial import ADVERSARIAL
from convt import _C, operators
from convt import plan as planning
from convt.functional import _conv_transpose1d, _conv_transpose2d, _conv_transpose3d
from convt.plan import forced_kernel
from pretended import DEVICE, fresh_plans, gpu, pretend
from reference import poisoned

FUNCTIONS = {1: _conv_transpose1d, 2: _conv_transpose2d, 3: _conv_transpose3d}
NAMES = ("1d-gcd", "2d-k4s2p1", "2d-output-padding-by-dilation", "2d-groups-of-8", "2d-5-3", "3d-odd", "2d-600")
CASES = [case for case in ADVERSARIAL if case.name in NAMES]
OPERATORS = ("forward", "grad_input")  # those of the implicit GEMM, the family that is simulated


@pytest.fixture
def played(monkeypatch):
    """The operators that were played, in their order; tensors are on the CPU and seem to be on a GPU."""
    monkeypatch.setattr(planning, "cuda_devices", lambda: 2 * (gpu("New", (8, 6)),))
    build = _C.build_info() | {"cuda": "13.0.88"}
    monkeypatch.setattr(_C, "build_info", lambda: build)
    seen = []

    def run(plan, input, weight, bias, output, workspace, device, stream):
        seen.append(plan)
        _C.simulate(plan, input, weight, bias, output, workspace)

    pretend(monkeypatch, DEVICE)
    monkeypatch.setattr(_C, "cuda_run", run, raising=False)
    monkeypatch.setattr(operators, "_raw_stream", lambda index: 0)
    with fresh_plans():
        yield seen


@pytest.mark.simulator
@pytest.mark.parametrize("layout", (adversarial.contiguous, adversarial.channels_last, adversarial.sliced))
@pytest.mark.parametrize(("dtype", "precision"), adversarial.PRECISIONS[:3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_training_step_is_exact(played, case, dtype, precision, layout):
    input, weight, grad_output, *exact = adversarial.exact_gradients(case, "cpu")
    leaves = [layout(input.to(dtype)).requires_grad_(), weight.to(dtype)]
    with convt.backend("auto"), convt.precision(precision), forced_kernel("implicit_gemm", OPERATORS), poisoned():
        output = FUNCTIONS[case.rank](*leaves, **case.keywords)
        (grad,) = torch.autograd.grad(output, leaves[0], layout(grad_output.to(dtype)))
    assert len(played) == 2 and all(plan.kernel == "implicit_gemm" for plan in played)
    assert torch.equal(output, adversarial.conv_transpose(input, weight, **case.keywords).to(dtype))
    assert torch.equal(grad, exact[0].to(dtype))
