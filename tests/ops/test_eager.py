"""The eager entry in C: it answers what it should, and steps aside for everything that wants to see the call."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import convt
from convt import _C, functional
from versions import answers_in_c

ENTRIES = convt.conv_transpose1d, convt.conv_transpose2d, convt.conv_transpose3d
FULL = functional._conv_transpose1d, functional._conv_transpose2d, functional._conv_transpose3d
THEIRS = F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d


@pytest.fixture(autouse=True)
def fresh_plans():
    _C.forget_plans()
    yield
    _C.forget_plans()


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls that reach Python's operators: the eager entry answered when there are none."""
    seen = []
    real = functional.differentiable

    def counting(*arguments):
        seen.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(functional, "differentiable", counting)
    return seen


def tensors(rank=2, channels=3, size=4, **options):
    torch.manual_seed(rank)
    weight = torch.randn(channels, 2, *(3,) * rank, **options)
    return torch.randn(2, channels, *(size,) * rank, **options), weight, torch.randn(2, **options)


def settle(function, *arguments, **keywords):
    """The third call's result: the first one is planned in Python, the second one is the first that is not."""
    for _ in range(2):
        function(*arguments, **keywords)
    return function(*arguments, **keywords)


@answers_in_c
@pytest.mark.parametrize("rank", (1, 2, 3))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16))
def test_native_answers_are_those_of_the_full_function(rank, dtype, calls):
    input, weight, bias = tensors(rank, dtype=dtype)
    variants = (
        ((), {}),
        ((bias,), {}),
        ((None, 2), {"padding": 1}),
        ((bias, (2,) * rank, 1, (1,) * rank), {"dilation": 2}),
        ((), {"weight": weight, "output_padding": 1, "stride": (3,) * rank}),
    )
    with convt.backend("native"):
        for positional, keywords in variants:
            first = (input,) if "weight" in keywords else (input, weight)
            expected = FULL[rank - 1](*first, *positional, **keywords)
            calls.clear()
            answer = settle(ENTRIES[rank - 1], *first, *positional, **keywords)
            assert len(calls) == 1, "only the first call is planned in Python"
            assert torch.equal(answer, expected) and answer.stride() == expected.stride()


def test_strides_are_part_of_the_plan():
    input, weight, _ = tensors(size=6)
    with convt.backend("native"):
        for variant in (input, input.transpose(2, 3), input[:, :, ::2], input[:1].expand_as(input)):
            expected = F.conv_transpose2d(variant, weight)
            for _ in range(3):
                torch.testing.assert_close(convt.conv_transpose2d(variant, weight), expected)


@answers_in_c
def test_a_change_of_backend_or_threads_is_seen(calls):
    input, weight, _ = tensors()
    threads = torch.get_num_threads()
    with convt.backend("native"):
        settle(convt.conv_transpose2d, input, weight)
        calls.clear()
        try:
            torch.set_num_threads(threads + 1)
            settle(convt.conv_transpose2d, input, weight)
            assert len(calls) == 1
        finally:
            torch.set_num_threads(threads)
    with convt.backend("aten"):
        answer = settle(convt.conv_transpose2d, input, weight)
        assert torch.equal(answer, F.conv_transpose2d(input, weight))


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_small_recorded_calls_have_exact_gradients_of_both_orders(rank):
    torch.manual_seed(0)
    input = torch.randn(1, 2, *(2,) * rank, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, *range(2, 2 + rank), dtype=torch.float64, requires_grad=True)
    bias = torch.randn(1, dtype=torch.float64, requires_grad=True)

    def function(*arguments):
        return settle(ENTRIES[rank - 1], *arguments, stride=2, padding=1, dilation=1)

    assert torch.autograd.gradcheck(function, (input, weight, bias))
    assert torch.autograd.gradgradcheck(function, (input, weight, bias))


@pytest.mark.parametrize("place", (0, 1, 2))
def test_whoever_requires_grad_gets_one(place):
    arguments = [tensor.detach() for tensor in tensors()]
    settle(convt.conv_transpose2d, *arguments)
    arguments[place].requires_grad_()
    answer = settle(convt.conv_transpose2d, *arguments)
    (grad,) = torch.autograd.grad(answer.sum(), arguments[place])
    (expected,) = torch.autograd.grad(F.conv_transpose2d(*arguments).sum(), arguments[place])
    torch.testing.assert_close(grad, expected)
    with torch.no_grad():
        assert not convt.conv_transpose2d(*arguments).requires_grad
    with torch.inference_mode():
        assert convt.conv_transpose2d(*arguments).is_inference()


class SeesFunctions(TorchFunctionMode):
    def __init__(self):
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


class SeesOps(TorchDispatchMode):
    def __init__(self):
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", (SeesFunctions, SeesOps))
def test_modes_see_the_op(mode):
    input, weight, _ = tensors()
    with convt.backend("native"):
        expected = settle(convt.conv_transpose2d, input, weight)
        with mode() as watching:
            answer = convt.conv_transpose2d(input, weight)
    assert torch.equal(answer, expected)
    assert any("convt" in name for name in watching.seen)


def test_the_profiler_sees_the_op():
    input, weight, _ = tensors()
    with convt.backend("native"):
        settle(convt.conv_transpose2d, input, weight)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            convt.conv_transpose2d(input, weight)
    assert any("convt::" in event.key for event in profile.key_averages())


def test_a_trace_records_the_op():
    input, weight, _ = tensors()
    with convt.backend("native"):
        settle(convt.conv_transpose2d, input, weight)
        traced = torch.jit.trace(lambda x: convt.conv_transpose2d(x, weight), input)
        other = torch.randn_like(input)
        torch.testing.assert_close(traced(other), F.conv_transpose2d(other, weight))


def test_transforms_and_autocast_take_the_full_path():
    input, weight, _ = tensors()
    with convt.backend("native"):
        settle(convt.conv_transpose2d, input, weight)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert convt.conv_transpose2d(input, weight).dtype is torch.bfloat16
        tangent = torch.randn_like(input)
        _, moved = torch.func.jvp(lambda x: convt.conv_transpose2d(x, weight), (input,), (tangent,))
        torch.testing.assert_close(moved, F.conv_transpose2d(tangent, weight))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(input, tangent)
            answer = torch.autograd.forward_ad.unpack_dual(convt.conv_transpose2d(dual, weight))
            torch.testing.assert_close(answer.tangent, moved)
        each = torch.func.vmap(convt.conv_transpose2d, in_dims=(0, None))(input.unsqueeze(1), weight)
        torch.testing.assert_close(each.squeeze(1), F.conv_transpose2d(input, weight))


def test_a_lazily_negated_tensor_is_negated():
    base = torch.randn(2, 3, 4, 4, dtype=torch.complex64)
    _, weight, _ = tensors()
    negated = base.conj().imag
    assert negated.is_neg()
    with convt.backend("native"):
        settle(convt.conv_transpose2d, torch.empty_strided(negated.shape, negated.stride()).copy_(negated), weight)
        torch.testing.assert_close(convt.conv_transpose2d(negated, weight), F.conv_transpose2d(negated, weight))


def test_subclasses_and_unbatched_input_take_the_full_path(calls):
    class Tagged(torch.Tensor):
        pass

    input, weight, _ = tensors()
    with convt.backend("native"):
        assert type(settle(convt.conv_transpose2d, input.as_subclass(Tagged), weight)) is Tagged
        torch.testing.assert_close(
            settle(convt.conv_transpose2d, input[0], weight), F.conv_transpose2d(input[0], weight)
        )


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((), {}),
        ((torch.ones(1, 1, 2, 2),), {}),
        ((torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)), {"strides": 2}),
        ((torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)), {"input": torch.ones(1, 1, 2, 2)}),
        ((torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), None, 1, 0, 0, 1, 1, 1), {}),
        ((torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), None, "2"), {}),
        ((torch.ones(1, 2, 2, 2), torch.ones(1, 1, 2, 2)), {}),
        ((torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.ones(2)), {}),
        ((torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)), {"stride": 2**70}),
    ],
)
def test_errors_are_those_of_the_full_function(arguments, keywords):
    with pytest.raises((TypeError, RuntimeError, ValueError)) as expected:
        FULL[1](*arguments, **keywords)
    with pytest.raises(type(expected.value)) as actual:
        convt.conv_transpose2d(*arguments, **keywords)
    assert str(actual.value) == str(expected.value)


def test_a_plan_does_not_outlive_the_legality_of_its_arguments():
    input, weight, bias = tensors()
    with convt.backend("native"):
        settle(convt.conv_transpose2d, input, weight, bias)
        for wrong in (bias[:1], bias.double(), bias[None]):
            with pytest.raises(RuntimeError, match="bias"):
                convt.conv_transpose2d(input, weight, wrong)


def test_many_problems_and_many_threads():
    """More problems than the cache holds, from several threads at once."""
    weight = torch.randn(1, 1, 2)
    failures = []

    def work(first):
        for length in range(first, first + 700):
            input = torch.randn(1, 1, length % 900 + 1)
            if not torch.allclose(convt.conv_transpose1d(input, weight), F.conv_transpose1d(input, weight), atol=1e-5):
                failures.append(length)

    with convt.backend("native"):
        threads = [threading.Thread(target=work, args=(200 * number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@answers_in_c
def test_the_entry_documents_itself():
    for rank, entry in enumerate(ENTRIES, start=1):
        assert entry.__name__ == f"conv_transpose{rank}d"
        assert f"{rank}-D transposed convolution" in entry.__doc__


def test_importing_convt_does_not_import_the_compiler():
    """Dynamo takes longer to import than the rest of PyTorch; it learns of the entry when somebody compiles."""
    script = """
import sys, torch, convt
assert "torch._dynamo" not in sys.modules
x, w = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
compiled = torch.compile(lambda x, w: convt.conv_transpose2d(x, w, stride=2) + 1, backend="eager", fullgraph=True)
assert compiled(x, w).sum() == 32
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
