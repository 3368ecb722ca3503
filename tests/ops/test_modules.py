"""convt.nn against torch.nn, by PyTorch's own ModuleInfo cases and by hand."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

import convt
from reference import torch_results

modules = pytest.importorskip("torch.testing._internal.common_modules", reason="it needs expecttest")
NAMES = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
INFOS = [info for info in modules.module_db if info.module_cls.__name__ in NAMES]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def cases(info, dtype, requires_grad=False, training=True):
    """(convt's module, torch's with the same parameters, input, reference function) of each ModuleInput."""
    for case in info.module_inputs_func(info, "cpu", dtype, requires_grad, training):
        args, kwargs = case.constructor_input.args, case.constructor_input.kwargs
        theirs = info.module_cls(*args, **kwargs).to(dtype).train(training)
        ours = getattr(convt.nn, info.module_cls.__name__)(*args, **kwargs).to(dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        yield ours, theirs, case.forward_input.args, case.reference_fn


def test_all_three_are_there():
    assert sorted(info.module_cls.__name__ for info in INFOS) == sorted(NAMES)


@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.formatted_name)
def test_forward_and_gradients(backend, info, dtype, training):
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 3e-1, torch.float16: 4e-2}[dtype]
    for ours, theirs, args, reference in cases(info, dtype, True, training):
        actual, expected = ours(*args), theirs(*args)
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
        if reference is not None:
            torch.testing.assert_close(actual, reference(ours, *args), rtol=tolerance, atol=tolerance)
        grad = torch.randn_like(actual)

        def function(input, *parameters, module=theirs):
            return torch.func.functional_call(module, dict(zip(("weight", "bias"), parameters, strict=True)), (input,))

        tensors = (*args, *ours.parameters())
        gradients = torch.autograd.grad(actual, tensors, grad)
        for one, other in zip(gradients, torch_results(function, tensors, grad)[1:], strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.formatted_name)
def test_gradgrad(backend, info):
    for ours, _, args, _ in cases(info, torch.float64, True):
        parameters = tuple(ours.parameters())

        def function(input, *parameters, module=ours):
            return torch.func.functional_call(module, dict(zip(("weight", "bias"), parameters, strict=True)), (input,))

        torch.autograd.gradcheck(function, (*args, *parameters), fast_mode=True, check_forward_ad=True)
        torch.autograd.gradgradcheck(function, (*args, *parameters), fast_mode=True)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.formatted_name)
def test_copies_and_pickles(info):
    for ours, _, args, _ in cases(info, torch.float32):
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert type(other) is type(ours)
            torch.testing.assert_close(other(*args), ours(*args), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bias", (True, False))
def test_state_dict_goes_both_ways(name, bias):
    kind, theirs = getattr(convt.nn, name), getattr(torch.nn, name)
    one, other = kind(4, 6, 3, groups=2, bias=bias), theirs(4, 6, 3, groups=2, bias=bias)
    assert list(one.state_dict()) == list(other.state_dict())
    other.load_state_dict(one.state_dict(), strict=True)
    one.load_state_dict(theirs(4, 6, 3, groups=2, bias=bias).state_dict(), strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_constructor_repr_and_initialisation_are_torchs(name):
    kind, theirs = getattr(convt.nn, name), getattr(torch.nn, name)
    assert inspect.signature(kind) == inspect.signature(theirs)
    assert issubclass(kind, theirs)
    keywords = {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2, "groups": 2, "bias": False}
    assert repr(kind(4, 6, 3, **keywords)) == repr(theirs(4, 6, 3, **keywords))
    torch.manual_seed(1)
    one = kind(4, 6, 3, device="cpu", dtype=torch.float64)
    torch.manual_seed(1)
    other = theirs(4, 6, 3, device="cpu", dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_output_size(backend, name):
    kind, theirs = getattr(convt.nn, name), getattr(torch.nn, name)
    rank = int(name[-2])
    one, other = kind(2, 3, 3, stride=3, padding=1), theirs(2, 3, 3, stride=3, padding=1)
    one.load_state_dict(other.state_dict())
    input = torch.randn(2, 2, *(4,) * rank)
    for extent in (10, 11, 12):
        size = [extent] * rank
        assert one(input, output_size=size).shape[2:] == torch.Size(size)
        torch.testing.assert_close(one(input, output_size=size), other(input, output_size=size), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one(input, [2, 3, *size]), other(input, [2, 3, *size]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one(input[0], size), other(input[0], size), rtol=1e-4, atol=1e-5)
    for wrong in ([13] * rank, [9] * rank, [10] * (rank + 3)):
        with pytest.raises(ValueError) as expected:
            other(input, output_size=wrong)
        with pytest.raises(ValueError) as caught:
            one(input, output_size=wrong)
        assert str(caught.value) == str(expected.value)


def test_fx_symbolic_trace():
    model = torch.nn.Sequential(convt.nn.ConvTranspose2d(3, 4, 3, stride=2), torch.nn.ReLU())
    traced = torch.fx.symbolic_trace(model)
    input = torch.randn(2, 3, 4, 4)
    assert torch.equal(traced(input), model(input))
    assert any(node.target is torch.ops.convt.conv_transpose2d for node in traced.graph.nodes)


def test_torch_function_subclasses_and_modes(backend):
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Marked(torch.Tensor):
        pass

    input, weight = torch.randn(1, 2, 3, 3), torch.randn(2, 2, 3, 3)
    expected = convt.conv_transpose2d(input, weight)
    with Mode():
        torch.testing.assert_close(convt.conv_transpose2d(input, weight), expected)
    assert any("conv_transpose2d" in str(func) for func in seen)
    result = convt.conv_transpose2d(input.as_subclass(Marked), weight)
    assert type(result) is Marked
    torch.testing.assert_close(result.as_subclass(torch.Tensor), expected)


def test_dispatch_modes_see_the_inner_ops(native):
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    module = convt.nn.ConvTranspose2d(2, 3, 3)
    with Mode():
        module(torch.randn(1, 2, 3, 3)).sum().backward()
    for name in ("convt.forward.default", "convt.grad_weight.default", "convt.grad_bias.default"):
        assert name in seen
    assert "convt.grad_input.default" not in seen


def test_profiler_names_the_ops(native):
    module = convt.nn.ConvTranspose2d(2, 3, 3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(torch.randn(1, 2, 3, 3)).sum().backward()
    names = {event.name for event in profile.events()}
    assert {"convt::forward", "convt::grad_weight", "convt::grad_bias"} <= names


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_jit_trace_records_the_op(native):
    module = convt.nn.ConvTranspose2d(2, 3, 3).eval()
    traced = torch.jit.trace(module, torch.randn(1, 2, 3, 3), check_trace=False)
    assert "convt::" in str(traced.graph)
    input = torch.randn(2, 2, 4, 5)
    torch.testing.assert_close(traced(input), module(input))
