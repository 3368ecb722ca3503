"""Gradients on a GPU without one: what is planned, what is launched and on which memory, and who computes the rest."""

from __future__ import annotations

import itertools
import math
import threading

import pytest
import torch
import torch.nn.functional as F

import convt
from convt import _C, gradients, operators
from convt import plan as planning
from convt.functional import _conv_transpose1d, _conv_transpose2d, _conv_transpose3d
from convt.plan import forced_kernel
from convt.problem import Geometry
from pretended import DEVICE
from reference import CASES, conv_transpose, poisoned

FUNCTIONS = {1: _conv_transpose1d, 2: _conv_transpose2d, 3: _conv_transpose3d}
PROBLEM = CASES[4]
ELSEWHERE = "no kernel can: simt: only the forward"


@pytest.fixture(autouse=True)
def native():
    with convt.backend("native"):
        yield


def laid_out(tensor, layout):
    if layout == "channels_last" and tensor.dim() > 3:
        return tensor.to(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)
    if layout == "sliced":
        wide = tensor.new_full([2 * size + 1 for size in tensor.shape], math.nan)
        return wide[tuple(slice(1, 1 + size) for size in tensor.shape)].copy_(tensor)
    return tensor.contiguous()


def exact(problem, tensors, grad_output):
    leaves = [tensor.detach().double().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(conv_transpose(*leaves, **problem.keywords), leaves, grad_output.double())


def leaves_of(problem, dtype=torch.float64, layout="contiguous"):
    return [laid_out(tensor, layout).requires_grad_() for tensor in problem.tensors(dtype)]


# values, strides, memory


@pytest.mark.parametrize("problem", CASES, ids=lambda problem: problem.name)
@pytest.mark.parametrize("layouts", (("contiguous",) * 2, ("channels_last",) * 2, ("sliced", "sliced")), ids="-".join)
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16), ids=str)
def test_gradients_are_computed_where_they_are(player, problem, layouts, dtype):
    """The right pointers with the right strides, no copies, results with the strides that the fakes promise."""
    tensors = leaves_of(problem, dtype, layouts[0])
    output = FUNCTIONS[problem.rank](*tensors, **problem.keywords)
    grad_output = laid_out(torch.randn_like(output), layouts[1])
    with poisoned():
        grads = torch.autograd.grad(output, tensors, grad_output)
    assert [launch.operator for launch in player.ran] == ["forward", "grad_input", "grad_weight"]
    _, to_input, to_weight = player.ran
    assert to_input.strides["output"] == to_weight.strides["output"] == grad_output.stride()
    assert to_input.strides["weight"] == tensors[1].stride() and to_weight.strides["input"] == tensors[0].stride()
    assert to_input.strides["input"] == grads[0].stride() and to_weight.strides["weight"] == grads[1].stride()
    last = operators.is_channels_last(dtype, *((tensor.shape, tensor.stride()) for tensor in tensors[:2]))
    layout = operators.memory_format(problem.rank, last)
    assert all(grad.is_contiguous(memory_format=layout) for grad in grads[:2])
    for grad, wanted in zip(grads, exact(problem, tensors, grad_output), strict=True):
        tolerance = 8 * torch.finfo(dtype).eps * wanted.abs().max().item()
        torch.testing.assert_close(grad.double(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ("sum", "sliced channels", "every second", "transposed"))
def test_gradients_of_any_strides_are_not_copied(player, kind):
    tensors = leaves_of(PROBLEM)
    output = FUNCTIONS[2](*tensors, **PROBLEM.keywords)
    n, c, h, w = output.shape
    grad_output = {
        "sum": torch.ones((), dtype=torch.float64).expand(output.shape),
        "sliced channels": torch.randn(n, c + 3, h, w, dtype=torch.float64)[:, 1 : c + 1],
        "every second": torch.randn(n, c, 2 * h, 2 * w, dtype=torch.float64)[:, :, ::2, 1::2],
        "transposed": torch.randn(w, h, c, n, dtype=torch.float64).permute(3, 2, 1, 0),
    }[kind]
    grads = torch.autograd.grad(output, tensors, grad_output)
    assert [launch.strides["output"] for launch in player.ran[1:]] == 2 * [grad_output.stride()]
    for grad, wanted in zip(grads, exact(PROBLEM, tensors, grad_output), strict=True):
        torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("layout", ("contiguous", "channels_last", "sliced", "sum"))
def test_the_bias_gradient_is_summed_natively(player, layout):
    """Where neighbours are pixels or channels; PyTorch sums what else there is."""
    tensors = leaves_of(PROBLEM)
    grad_output = torch.randn(FUNCTIONS[2](*tensors, **PROBLEM.keywords).shape, dtype=torch.float64)
    grad_output = (
        torch.ones_like(grad_output[:1, :1, :1, :1]).expand_as(grad_output) if layout == "sum" else grad_output
    )
    seen = grad_output if layout == "sum" else laid_out(grad_output, layout)
    for at in (1, 2):  # the second one is answered in C
        (grad,) = torch.autograd.grad(FUNCTIONS[2](*tensors, **PROBLEM.keywords), tensors[2:], seen)
        torch.testing.assert_close(grad, grad_output.sum((0, 2, 3)))
        rows = [told["rows_of"] for told in player.summed]
        assert rows == at * {"contiguous": ["pixels"], "channels_last": ["channels"]}.get(layout, [])
    assert torch.equal(torch.ops.convt.grad_bias(seen), grad)
    with convt.backend("aten"):
        before = len(player.summed)
        torch.testing.assert_close(torch.ops.convt.grad_bias(seen), grad)
        assert len(player.summed) == before


def test_a_negated_gradient_is_resolved(player):
    """The imaginary part of a conjugate is a view with a sign that no kernel knows of."""
    tensors = leaves_of(PROBLEM)
    output = FUNCTIONS[2](*tensors, **PROBLEM.keywords)
    grad_output = torch.randn(output.shape, dtype=torch.complex128).conj().imag
    assert grad_output.is_neg()
    grads = torch.autograd.grad(output, tensors, grad_output)
    for grad, wanted in zip(grads, exact(PROBLEM, tensors, grad_output.resolve_neg()), strict=True):
        torch.testing.assert_close(grad, wanted)


def test_second_derivatives_come_from_the_same_kernels(player):
    tensors = leaves_of(CASES[6])
    assert torch.autograd.gradcheck(lambda *t: FUNCTIONS[2](*t, **CASES[6].keywords), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: FUNCTIONS[2](*t, **CASES[6].keywords), tensors, fast_mode=True)
    assert {launch.operator for launch in player.ran} == set(planning.OPERATORS)


def test_an_empty_batch_launches_nothing(player):
    input, weight, bias = PROBLEM.tensors()
    leaves = input[:0].requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
    grads = torch.autograd.grad(FUNCTIONS[2](*leaves, **PROBLEM.keywords).sum(), leaves)
    assert not player.planned and not player.ran
    assert not grads[0].numel() and not grads[1].any() and not grads[2].any()


# only what is asked for


@pytest.mark.parametrize("wanted", [set(w) for n in (1, 2, 3) for w in itertools.combinations(range(3), n)], ids=str)
def test_what_nobody_asks_for_costs_nothing(player, monkeypatch, wanted):
    """A frozen weight: no plan, no workspace, no launch."""
    player.workspace_bytes = 512
    tensors = [tensor.requires_grad_(place in wanted) for place, tensor in enumerate(PROBLEM.tensors())]
    output = FUNCTIONS[2](*tensors, **PROBLEM.keywords)
    allocated, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **how: (allocated.append(size), empty(*size, **how))[1])
    output.sum().backward()
    operator = ("grad_input", "grad_weight")
    expected = [operator[place] for place in sorted(wanted) if place < 2]
    assert [launch.operator for launch in player.ran[1:]] == expected
    assert [launch.operator for launch in player.planned[1:]] == expected
    assert allocated.count((512,)) == len(expected)


@pytest.mark.parametrize("first", ("grad_input", "grad_weight"))
@pytest.mark.parametrize("entry", ("node", "operators"))
def test_the_gradient_with_more_workspace_comes_first(player, first, entry):
    """Its own result and its workspace are then all that there is beside the operands."""
    player.rooms = {"grad_input": 512, "grad_weight": 512, first: 1024}
    input, weight = torch.rand(2, 4, 9, requires_grad=True), torch.rand(4, 3, 3, requires_grad=True)
    output = convt.conv_transpose1d(input, weight, stride=2)
    grad_output = torch.rand_like(output)
    if entry == "node":
        grads = torch.autograd.grad(output, (input, weight), grad_output)
    else:
        geometry = Geometry((2,), (0,), (0,), 1, (1,))
        grads = gradients.both(grad_output, input.detach(), weight.detach(), geometry, False)
    assert [launch.operator for launch in player.ran[1:]] == [first, *{"grad_input", "grad_weight"} - {first}]
    assert [grad.shape for grad in grads] == [input.shape, weight.shape]


def halves(channels=8, extents=(3, 5)):
    """Leaves of a layer in 16 bits, and the gradient of its output."""
    input = torch.rand(2, 4, *extents).bfloat16().requires_grad_()
    weight = torch.rand(4, channels, *(3 for _ in extents)).bfloat16().requires_grad_()
    output = FUNCTIONS[len(extents)](input, weight, stride=2)
    return input, weight, output, torch.rand(output.shape).bfloat16()


def assert_gradients(actual, input, weight, grad_output):
    wide = [tensor.detach().double().requires_grad_() for tensor in (input, weight)]
    expected = torch.autograd.grad(conv_transpose(*wide, None, stride=2), wide, grad_output.double())
    for ours, exact in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, exact.bfloat16())


@pytest.mark.parametrize("extents", [(9,), (3, 5), (2, 3, 4)], ids=len)
@pytest.mark.parametrize("entry", ("node", "operators"))
def test_grad_output_is_turned_once_for_both(player, entry, extents):
    player.turning = {"grad_input", "grad_weight"}
    input, weight, output, grad_output = halves(extents=extents)
    rank, before = len(extents), len(player.devices)
    for turn in (1, 2):
        if entry == "node":
            grads = torch.autograd.grad(output, (input, weight), grad_output, retain_graph=True)
        else:
            geometry = Geometry((2,) * rank, (0,) * rank, (0,) * rank, 1, (1,) * rank)
            grads = gradients.both(grad_output, input.detach(), weight.detach(), geometry, False)
        assert_gradients(grads, input, weight, grad_output)
        assert len(player.turned) == turn
    assert {strides[1] for strides in player.turned} == {1}
    ran = player.ran[1:]
    assert len(ran) == 4 and all(launch.strides["output"][1] == 1 and not launch.turns for launch in ran)
    assert len(player.planned) == 5, "each by itself, and then both of what is turned"
    assert len(set(player.devices[before:])) == 1


@pytest.mark.parametrize(
    "case", ("float32", "one channel", "groups", "a forced kernel", "only one turns", "nobody turns", "one is frozen")
)
def test_grad_output_is_not_turned_for_both(player, case):
    """Where the copy is none that both can take, somebody chose their kernels, or it does not pay."""
    player.turning = {"grad_input"} if case == "only one turns" else {"grad_input", "grad_weight"}
    if case == "nobody turns":
        player.turning = set()
    input, weight, output, grad_output = halves(1 if case == "one channel" else 8)
    if case in ("float32", "groups"):
        input, weight = (tensor.detach().requires_grad_() for tensor in (input, weight))
        if case == "float32":
            input, weight = input.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
        groups = 1 if case == "float32" else 2
        output = convt.conv_transpose2d(input, weight, stride=2, groups=groups)
        grad_output = torch.rand_like(output)
    wanted = (input, weight)
    if case == "one is frozen":
        output, wanted = convt.conv_transpose2d(input.detach(), weight, stride=2), (weight,)
    if case == "only one turns":  # and the other one would be slower
        planned = player.cuda_plan

        def slower(operator, *rest):
            made = planned(operator, *rest)
            made.predicted_us = 500.0 if operator == "grad_weight" and made.strides["output"][1] == 1 else 300.0
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_C, "cuda_plan", slower)
            grads = torch.autograd.grad(output, wanted, grad_output)
    else:
        with forced_kernel("simt" if case == "a forced kernel" else None):
            grads = torch.autograd.grad(output, wanted, grad_output)
    assert player.turned == [] and len(grads) == len(wanted)


@pytest.mark.parametrize("first", ("grad_input", "grad_weight"))
def test_of_both_from_one_copy_the_one_with_more_workspace_comes_first(player, first):
    player.turning, player.rooms = {"grad_input", "grad_weight"}, {first: 512}
    input, weight, output, grad_output = halves()
    assert_gradients(torch.autograd.grad(output, (input, weight), grad_output), input, weight, grad_output)
    assert [launch.operator for launch in player.ran[1:]] == [first, *{"grad_input", "grad_weight"} - {first}]
    assert len(player.turned) == 1


def test_plans_are_made_once(player):
    for _ in range(3):
        tensors = leaves_of(PROBLEM)
        torch.autograd.grad(FUNCTIONS[2](*tensors, **PROBLEM.keywords).sum(), tensors)
    assert len(player.ran) == 9 and len(player.planned) == 3


# switches: those of the backward's own time


def backward_under(player, context, dtype=torch.float32):
    tensors = leaves_of(PROBLEM, dtype)
    output = FUNCTIONS[2](*tensors, **PROBLEM.keywords)
    player.ran.clear()
    with context:
        torch.autograd.grad(output.sum(), tensors)
    return player.ran


@pytest.mark.parametrize("forward", ("ieee", "tf32"))
@pytest.mark.parametrize("backward", ("ieee", "tf32"))
def test_precision_is_that_of_the_backward(player, forward, backward):
    with convt.precision(forward):
        launches = backward_under(player, convt.precision(backward))
    assert [launch.precision for launch in launches] == 2 * [backward]
    assert player.planned[0].precision == forward
    assert {launch.precision for launch in backward_under(player, convt.precision("tf32"), torch.bfloat16)} == {"ieee"}


def test_precision_reaches_the_threads_of_autograd(player):
    tensors = leaves_of(PROBLEM, torch.float32)
    output = FUNCTIONS[2](*tensors, **PROBLEM.keywords)
    player.ran.clear()
    with convt.precision("tf32"):
        thread = threading.Thread(target=lambda: output.sum().backward())
        thread.start()
        thread.join()
    assert [launch.precision for launch in player.ran] == 2 * ["tf32"]


def test_a_forced_kernel_holds_for_the_backward_inside_of_it(player):
    assert [launch.forced for launch in backward_under(player, forced_kernel("simt"))] == ["simt", "simt"]
    only = backward_under(player, forced_kernel("depthwise", "grad_weight"))
    assert [launch.forced for launch in only] == [None, "depthwise"]
    assert [launch.forced for launch in backward_under(player, forced_kernel("simt", "forward"))] == [None, None]


@pytest.mark.parametrize("requested", ("auto", "native"))
def test_a_forced_kernel_never_falls_back(player, requested):
    player.refuses = {"grad_input": "kernel depthwise cannot compute this problem: a group has 4 input channels"}
    with convt.backend(requested), pytest.raises(ValueError, match="kernel depthwise cannot compute this problem"):
        backward_under(player, forced_kernel("depthwise"))


def test_a_forced_kernel_decides_for_native_code(player, monkeypatch):
    """Where the rule would have said ATen; what a GPU cannot do at all stays an error."""
    monkeypatch.setattr(planning.heuristics, "choose_cuda", lambda *_: "aten")
    planning.plan.cache_clear()
    with convt.backend("auto"):
        assert backward_under(player, forced_kernel(None)) == []
        assert [launch.forced for launch in backward_under(player, forced_kernel("simt"))] == 2 * ["simt"]
    with convt.backend("aten"):
        assert backward_under(player, forced_kernel("simt")) == []
    with pytest.raises(ValueError, match=r"kernel simt cannot compute grad_input: Old .* capability 7\.5"):
        operators._grad_input_call(*keys(torch.device("cuda", 0)), False, "auto", "ieee", "simt")


# who computes what no kernel can


def keys(device=DEVICE):
    output, weight = torch.empty(2, 2, 6, 8), torch.empty(PROBLEM.weight)
    located = ((tensor.shape, tensor.stride(), torch.float32, device, torch.strided) for tensor in (output, weight))
    return *located, operators.Geometry((2, 2), (1, 1), (0, 0), 1, (1, 1))


def test_auto_leaves_it_to_aten_with_the_reason(player, capfd, monkeypatch):
    monkeypatch.setenv("CONVT_PRINT_PLAN", "1")
    monkeypatch.setattr(planning.heuristics, "choose_cuda", lambda *_: "native")
    player.refuses = {"grad_input": ELSEWHERE}
    call = operators._grad_input_call(*keys(), False, "auto")
    assert not call.native and call.cuda is None and str(call.choice) == f"aten (native: {ELSEWHERE})"
    assert capfd.readouterr().err.splitlines()[-1].endswith(f"-> aten (native: {ELSEWHERE})")


def test_native_says_why_it_cannot(player):
    player.refuses = {"grad_weight": ELSEWHERE}
    message = rf"convt\.backend\('native'\) cannot compute grad_weight: native: {ELSEWHERE}; 'auto' and 'aten' can"
    with pytest.raises(RuntimeError, match=message):
        backward_under(player, convt.backend("native"))


@pytest.mark.parametrize("refused", [("grad_input",), ("grad_weight",), ("grad_input", "grad_weight")], ids="+".join)
@pytest.mark.parametrize("problem", (CASES[4], CASES[9]), ids=lambda problem: problem.name)
def test_one_gradient_native_and_the_other_atens(player, monkeypatch, refused, problem):
    monkeypatch.setattr(planning.heuristics, "choose_cuda", lambda *_: "native")
    player.refuses = dict.fromkeys(refused, ELSEWHERE)
    tensors = leaves_of(problem)
    with convt.backend("auto"):
        output = FUNCTIONS[2](*tensors, **problem.keywords)
        grad_output = torch.randn_like(output)
        grads = torch.autograd.grad(output, tensors, grad_output)
    ran = {launch.operator for launch in player.ran}
    assert ran == set(planning.OPERATORS) - set(refused)
    for grad, wanted in zip(grads, exact(problem, tensors, grad_output), strict=True):
        torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize("channels", (8, 6))
@pytest.mark.parametrize("refused", ("grad_input", "grad_weight"))
def test_atens_gradient_comes_first_where_it_copies(player, monkeypatch, refused, channels, layout):
    """Its copies are more than our workspace; without them ours is."""
    monkeypatch.setattr(planning.heuristics, "choose_cuda", lambda *_: "native")
    player.refuses, player.workspace_bytes = {refused: ELSEWHERE}, 512
    came = []

    class Ran(list):
        def append(self, plan):
            came.append(plan.operator)

    player.ran = Ran()
    for name in ("_convolution", "_convolution_backward"):
        real = getattr(operators, name)
        monkeypatch.setattr(operators, name, lambda *given, real=real: (came.append(refused), real(*given))[1])
    input = torch.rand(2, 8, 5, 7).to(memory_format=layout).requires_grad_()
    weight = torch.rand(8, channels, 3, 3).requires_grad_()
    with convt.backend("auto"):
        for _ in range(2):
            output = convt.conv_transpose2d(input, weight, stride=2)
            came.clear()
            torch.autograd.grad(output, (input, weight), torch.rand_like(output))
            native = "grad_input" if refused == "grad_weight" else "grad_weight"
            copies = channels == 8 and layout is torch.contiguous_format
            assert came == ([refused, native] if copies else [native, refused])


def test_results_have_the_strides_of_torch(player):
    """channels_last as PyTorch has it, whoever computes."""
    input, weight, bias = PROBLEM.tensors(torch.float32)
    input = input.to(memory_format=torch.channels_last)
    strides = []
    for function in (FUNCTIONS[2], F.conv_transpose2d):
        leaves = [tensor.detach().requires_grad_() for tensor in (input, weight, bias)]
        output = function(*leaves, **PROBLEM.keywords)
        grads = torch.autograd.grad(output.square().sum(), leaves)
        strides.append([tensor.stride() for tensor in (output, *grads)])
    assert strides[0] == strides[1]
