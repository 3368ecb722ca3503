"""Code that inductor writes calls the inner ops in C, and through the dispatcher when somebody watches."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch._inductor import config
from torch._inductor.utils import run_and_get_code

import convt
from convt import _C, operators, ops

lowering = pytest.importorskip("torch._inductor.lowering")
DIRECT = hasattr(lowering, "constrain_to_fake_tensors")


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    _C.forget_plans()
    with config.patch(force_disable_caches=True), convt.backend("native"):
        yield
    torch._dynamo.reset()


@pytest.fixture
def python(monkeypatch):
    """Calls of the operators in Python."""
    seen = []
    for name in ("forward", "grad_input", "grad_weight"):
        real = getattr(operators, name)
        monkeypatch.setattr(operators, name, lambda *args, real=real: (seen.append(real.__name__), real(*args))[1])
    return seen


def layer(input, weight, bias=None):
    """Nothing that inductor would write a kernel for: compiling one takes seconds."""
    return convt.conv_transpose2d(input, weight, bias, stride=2, padding=1)


def gradients(function, *tensors):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return torch.autograd.grad(output, leaves, torch.ones_like(output))


@pytest.mark.skipif(not DIRECT, reason="this torch has another rule for strides: the op is called as any other")
def test_the_code_names_the_c_functions():
    tensors = torch.randn(2, 3, 5, 6), torch.randn(3, 4, 3, 3)
    compiled = torch.compile(layer, fullgraph=True)
    grads, code = run_and_get_code(lambda: gradients(compiled, *tensors))
    text = "\n".join(code)
    for name in ("forward", "grad_input", "grad_weight"):
        assert f"convt_C.{name}_in_graph(" in text and f"= torch.ops.convt.{name}" not in text
    for grad, value in zip(grads, gradients(layer, *tensors), strict=True):
        torch.testing.assert_close(grad, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
def test_values_and_strides_call_after_call(python, layout, dtype):
    tensors = torch.randn(2, 3, 5, 6).to(dtype, memory_format=layout), torch.randn(3, 4, 3, 3, dtype=dtype)
    compiled = torch.compile(layer, fullgraph=True)
    expected = layer(*tensors), *gradients(layer, *tensors)
    for turn in range(3):
        python.clear()
        with torch.no_grad():
            output = compiled(*tensors)
        results = output, *gradients(compiled, *tensors)
        for result, value in zip(results, expected, strict=True):
            assert result.stride() == value.stride()
            torch.testing.assert_close(result, value, rtol=0.02, atol=0.02)
        assert not python or turn == 0, "then every operator is answered in C"


@pytest.mark.skipif(not DIRECT, reason="this torch has another rule for strides: the op is called as any other")
def test_launches_are_cs(player, python):
    """On a GPU that is played. AOTAutograd may watch the first run for aliases: the second one is planned then."""
    tensors = torch.randn(2, 3, 5, 6), torch.randn(3, 4, 3, 3)
    compiled = torch.compile(layer, fullgraph=True)
    with torch.no_grad():
        for turn in range(4):
            python.clear()
            output = compiled(*tensors)
            assert not python or turn < 2
    assert player.devices[2:] == [1, 1], "where C sees the tensors, and Python sees them on no GPU"
    torch.testing.assert_close(output, layer(*tensors), rtol=1e-4, atol=1e-4)


def test_dynamic_shapes():
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for size in (5, 7, 9, 5, 7):
        tensors = torch.randn(2, 3, size, size + 1), torch.randn(3, 4, 11, 3), torch.randn(4)
        torch.testing.assert_close(compiled(*tensors), layer(*tensors), rtol=1e-4, atol=1e-4)


def test_the_backend_is_that_of_the_call():
    tensors = torch.randn(2, 3, 5, 6), torch.randn(3, 4, 3, 3)
    compiled = torch.compile(layer, fullgraph=True)
    compiled(*tensors)
    size = _C.plan_cache()[0]
    with convt.backend("aten"), torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(*tensors), layer(*tensors), rtol=1e-4, atol=1e-4)
    assert _C.plan_cache()[0] > size, "other switches, other plans"


def test_profilers_and_modes_see_the_op():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sees(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen = []
    operands = torch.randn(2, 3, 5, 6), torch.randn(3, 4, 3, 3)
    numbers = [2, 2], [1, 1], [0, 0], 1, [1, 1]
    for _ in range(2):
        expected = _C.forward_in_graph(*operands, None, *numbers)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert torch.equal(_C.forward_in_graph(*operands, None, *numbers), expected)
        _C.grad_input_in_graph(expected, operands[1], *numbers, False)
        _C.grad_weight_in_graph(expected, operands[0], [3, 3], *numbers, False)
    names = {event.key for event in profile.key_averages()}
    assert {"convt::forward", "convt::grad_input", "convt::grad_weight"} <= names
    with Sees():
        _C.forward_in_graph(*operands, None, *numbers)
    assert seen == ["convt.forward.default"]


def test_calls_that_record_pass_the_dispatcher():
    input, weight = torch.randn(2, 3, 5, 6, requires_grad=True), torch.randn(3, 4, 3, 3, requires_grad=True)
    numbers = [2, 2], [1, 1], [0, 0], 1, [1, 1]
    for _ in range(2):
        output = _C.forward_in_graph(input, weight, None, *numbers)
        assert output.grad_fn is not None
        with torch.enable_grad():
            again = _C.grad_input_in_graph(output, weight, *numbers, False)
        assert again.grad_fn is not None
    assert torch.equal(output, ops._forward_op(input, weight, None, *numbers))
