"""grad_input and grad_weight of every CUDA kernel: exact values, errors, layouts, and what is not computed at all."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adversarial
import convt
from accuracy import LAYERS, THEIRS, error, operands
from adversarial import ADVERSARIAL, FORCED, FUNCTIONS, PRECISIONS, grouped, hopper, refusal
from convt import _C, operators
from convt import gradients as pairs
from convt import settings as switches
from convt.plan import cuda_plan, forced_kernel
from convt.problem import Geometry, forward_problem
from convt.testing import tf32_nearest
from reference import CASES, conv_transpose, poisoned
from strategies import trials

OPERATORS = ("grad_input", "grad_weight")
EACH = pytest.mark.parametrize("operator", OPERATORS)
EACH_FORCED = [(operator, kernel) for operator in OPERATORS for kernel in FORCED[operator]]
ON_A_GPU = pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
# Layouts of the two operands; the result is channels_last where the number is odd.
LAYOUTS = (
    (adversarial.contiguous, adversarial.contiguous),
    (adversarial.channels_last, adversarial.channels_last),
    (adversarial.sliced, adversarial.transposed),
    (adversarial.offset, adversarial.channels_last),
)


def compute(operator, geometry, input, weight, grad_output, channels_last=False):
    """An inner operator; of the tensor in its result's place it needs the shape only."""
    if operator == "grad_input":
        return torch.ops.convt.grad_input(grad_output, weight, *geometry, channels_last)
    return torch.ops.convt.grad_weight(grad_output, input, weight.shape[2:], *geometry, channels_last)


def problem_of(case):
    return forward_problem(case.input, case.weight, None, Geometry(*case.geometry))


# exact values, as in test_forced.py


@pytest.mark.parametrize("operator, kernel", (*((operator, None) for operator in OPERATORS), *EACH_FORCED))
def test_plans(operator, kernel):
    """Without a GPU: a plan, or a reason why not; every kernel computes something, and something computes all."""
    planned = set()
    for case in ADVERSARIAL:
        for dtype, precision in PRECISIONS:
            for channels_last in (False, True):
                keywords = {"operator": operator, "precision": precision, "channels_last": channels_last}
                due = refusal(kernel, operator, case, dtype, precision)
                try:
                    plan = cuda_plan(problem_of(case), dtype, kernel=kernel, **keywords)
                except ValueError as reason:
                    assert kernel is not None, f"{case.name} {operator} {dtype} {precision}: {reason}"
                    assert len(str(reason)) > 10
                    assert not grouped(kernel) or (due is not None and due in str(reason)), f"{case.name}: {reason}"
                    continue
                assert due is None, f"{case.name} {operator} {dtype} {precision}: not refused"
                assert kernel in (None, plan.kernel, plan.config)
                assert plan.workspace_bytes >= 0 and plan.predicted_us > 0
                json.dumps(plan.explain())
                planned.add((dtype, precision))
    assert planned or (grouped(kernel) and not hopper()), f"{kernel} computes none of these problems"
    assert kernel is not None or planned == set(PRECISIONS)


def compare(case, device, kernel, operator):
    """The number of calls that `kernel` computed; all of them exactly."""
    input, weight, grad_output, *grads = adversarial.exact_gradients(case, device)
    exact = grads[OPERATORS.index(operator)]
    computed = 0
    for dtype, precision in PRECISIONS if device == "cuda" else (PRECISIONS[0], *PRECISIONS[2:]):
        tensors = [tensor.to(dtype) for tensor in (input, weight, grad_output)]
        for number, (layout, other) in enumerate(LAYOUTS):
            laid_out = [layout(tensors[0]), other(tensors[1]), layout(tensors[2])]
            with convt.precision(precision), poisoned(), forced_kernel(kernel):
                try:
                    actual = compute(operator, case.geometry, *laid_out, number % 2 == 1)
                except ValueError as reason:
                    assert kernel is not None and len(str(reason)) > 10, str(reason)
                    due = refusal(kernel, operator, case, dtype, precision)
                    assert not grouped(kernel) or (due is not None and due in str(reason)), f"{case.name}: {reason}"
                    continue
            label = f"{case.name}, {kernel}, {operator}, {dtype} {precision}, {layout.__name__}"
            assert torch.equal(actual, exact.to(dtype)), f"{label}: {difference(actual, exact.to(dtype))}"
            computed += 1
    return computed


def difference(actual, wanted):
    wrong = actual.double().ne(wanted.double())
    first = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{int(wrong.sum())} of {wrong.numel()} elements are wrong, {int(actual.isnan().sum())} of them NaN; the first "
        f"is {first}: {actual[first].item()}, expected {wanted[first].item()}"
    )


@EACH
@pytest.mark.parametrize("case", ADVERSARIAL, ids=lambda case: case.name)
def test_chosen_kernels(device, case, operator):
    assert compare(case, device, None, operator)


@ON_A_GPU
@pytest.mark.parametrize("case", ADVERSARIAL, ids=lambda case: case.name)
@pytest.mark.parametrize("operator, kernel", EACH_FORCED)
def test_forced_kernels(device, kernel, case, operator):
    if not compare(case, device, kernel, operator):
        with pytest.raises(ValueError):
            cuda_plan(problem_of(case), torch.bfloat16, operator=operator, kernel=kernel, device=device)


@settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    trials(),
    st.sampled_from((*((operator, None) for operator in OPERATORS * 2), *EACH_FORCED)),
    st.sampled_from(("ieee", "tf32")),
)
def test_random_problems(device, trial, forced, precision):
    """Any strides, exact values."""
    operator, kernel = forced
    problem = trial.problem
    input, weight, grad_output, _ = trial.tensors(device, eighths=True)
    leaves = [tensor.double().requires_grad_() for tensor in (input, weight)]
    output = conv_transpose(*leaves, **problem.geometry._asdict())
    exact = torch.autograd.grad(output, leaves, grad_output.double())[OPERATORS.index(operator)]
    last = trial.result_layouts[1 + OPERATORS.index(operator)] == "channels_last"
    for name in dict.fromkeys((kernel, None)):
        with convt.precision(precision), poisoned(), forced_kernel(name):
            try:
                actual = compute(operator, problem.geometry, input, weight, grad_output, last)
                break
            except ValueError:
                assert name is not None, "the cost model always finds a kernel"
    assert torch.equal(actual, exact.to(trial.dtype)), f"{name}: {difference(actual, exact.to(trial.dtype))}"


# errors against float64, as in test_accuracy.py


def laid_out(tensors, layout):
    return [adversarial.channels_last(t) if layout == "channels_last" else t for t in tensors]


def gradients(function, tensors, grad_output, keywords):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(function(*leaves, **keywords), leaves, grad_output)


def judged(layer, dtype, device, offset):
    """Input, weight, grad_output and, in float64, their two gradients."""
    tensors = operands(layer, dtype, device, offset)[:2]
    output = problem_of(layer).output_size
    generator = torch.Generator().manual_seed(2)
    grad_output = (torch.randn(output, generator=generator, dtype=torch.float64) + offset).to(device, dtype)
    doubles = [tensor.double() for tensor in tensors]
    return tensors, grad_output, gradients(conv_transpose, doubles, grad_output.double(), layer.keywords)


def assert_near(ours, theirs, exact, factor, label):
    """In the root mean square within `factor` times the rival's error, and twice that at the worst element.

    A rival that happens to be better than a rounding of the result is no measure.
    """
    (rms, largest), (their_rms, their_largest) = error(ours, exact), error(theirs, exact)
    eps = torch.finfo(ours.dtype).eps
    limit = factor * max(their_rms, eps * exact.abs().mean().item() / 4)
    assert rms <= limit, f"{label}: rms error {rms:.3g}, PyTorch's {their_rms:.3g}"
    limit = 2 * factor * max(their_largest, eps * exact.abs().max().item() / 2)
    assert largest <= limit, f"{label}: largest error {largest:.3g}, PyTorch's {their_largest:.3g}"


MEASURED = [
    ("cpu", "contiguous", 0.0, torch.float32),
    *(
        pytest.param("cuda", layout, offset, dtype, marks=pytest.mark.cuda)
        for layout in ("contiguous", "channels_last")
        for offset in (0.0, 0.5)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ),
]


@pytest.mark.parametrize(("device", "layout", "offset", "dtype"), MEASURED, indirect=["device"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_against_pytorch(device, layer, layout, offset, dtype):
    """float32 within twice PyTorch's error, 16 bits within 1.1 times."""
    tensors, grad_output, exact = judged(layer, dtype, device, offset)
    with switches.cudnn_precision("ieee"):
        theirs = gradients(THEIRS[layer.rank], tensors, grad_output, layer.keywords)
    ours = gradients(FUNCTIONS[layer.rank], *laid_out_pair(tensors, grad_output, layout), layer.keywords)
    factor = 2.0 if dtype is torch.float32 else 1.1
    if device == "cpu":
        factor = 16.0  # one sum after the other there, against oneDNN's blocks of sums
    for operator, *values in zip(OPERATORS, ours, theirs, exact, strict=True):
        # Sums of four terms, as below.
        few = factor == 2.0 and (layer.name, operator) == ("2d-pixel", "grad_weight")
        assert_near(*values, 2.5 if few else factor, operator)


def laid_out_pair(tensors, grad_output, layout):
    *operands, grad = laid_out([*tensors, grad_output], layout)
    return operands, grad


@ON_A_GPU
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_tf32_against_exact_rounding(device, layer, layout):
    """Within 1.1 times the error of operands that are rounded to nearest, then multiplied and added exactly."""
    tensors, grad_output, exact = judged(layer, torch.float32, device, 0.0)
    rounded = [tf32_nearest(tensor).double() for tensor in (*tensors, grad_output)]
    emulated = gradients(conv_transpose, rounded[:2], rounded[2], layer.keywords)
    with convt.precision("tf32"):
        ours = gradients(FUNCTIONS[layer.rank], *laid_out_pair(tensors, grad_output, layout), layer.keywords)
    for operator, actual, rival, truth in zip(OPERATORS, ours, emulated, exact, strict=True):
        (rms, largest), (their_rms, their_largest) = error(actual, truth), error(rival, truth)
        assert rms <= 1.1 * their_rms, f"{operator}: rms error {rms:.3g}, rounded to nearest {their_rms:.3g}"
        assert largest <= 1.1 * their_largest + 8 * torch.finfo(torch.float32).eps * truth.abs().max().item()


@ON_A_GPU
@pytest.mark.parametrize("operator, kernel", EACH_FORCED)
def test_forced_kernels_are_accurate(device, kernel, operator):
    """Each kernel by itself: ieee within twice PyTorch's error, TF32 within 1.1 times exact rounding."""
    computed = 0
    for layer in LAYERS:
        tensors, grad_output, exact = judged(layer, torch.float32, device, 0.0)
        which = OPERATORS.index(operator)
        rounded = [tf32_nearest(tensor).double() for tensor in (*tensors, grad_output)]
        with switches.cudnn_precision("ieee"):
            theirs = gradients(THEIRS[layer.rank], tensors, grad_output, layer.keywords)[which]
        rivals = {
            # PyTorch's few roundings of a sum of few terms are less than a tensor core's: see test_accuracy.py.
            "ieee": (2.5 if layer.name in ("2d-depthwise", "2d-pixel") else 2.0, theirs),
            "tf32": (1.1, gradients(conv_transpose, rounded[:2], rounded[2], layer.keywords)[which]),
        }
        for precision, (factor, rival) in rivals.items():
            with convt.precision(precision), forced_kernel(kernel):
                try:
                    ours = compute(operator, layer.geometry, *tensors, grad_output)
                except ValueError:
                    continue
            rms, their_rms = error(ours, exact[which])[0], error(rival, exact[which])[0]
            rounding = torch.finfo(torch.float32).eps * exact[which].abs().mean().item() / 4
            label = f"{layer.name} {precision}: rms error {rms:.3g}, rival's {their_rms:.3g}"
            assert rms <= factor * max(their_rms, rounding), label
            computed += 1
    if not computed:
        pytest.skip(f"{kernel} computes {operator} of none of these layers in float32")


# layouts, and what nobody asks for


@ON_A_GPU
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("rank", (2, 3))
@pytest.mark.parametrize("last", ((True, False), (False, True), (True, True), (False, False)), ids=str)
def test_strides_are_pytorchs(device, dtype, rank, last):
    layout = torch.channels_last if rank == 2 else torch.channels_last_3d
    formats = [layout if is_last else torch.contiguous_format for is_last in last]
    tensors = torch.randn(2, 16, *(6,) * rank), torch.randn(16, 24, *(3,) * rank)
    tensors = [t.to(device, dtype, memory_format=f) for t, f in zip(tensors, formats, strict=True)]
    strides = []
    for function in (FUNCTIONS[rank], THEIRS[rank]):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        output = function(*leaves, stride=2, padding=1)
        grads = torch.autograd.grad(output, leaves, torch.ones_like(output))
        strides.append([tensor.stride() for tensor in (output, *grads)])
    assert strides[0] == strides[1]


@pytest.mark.parametrize("kind", ("sum", "sliced", "every second"))
@pytest.mark.parametrize("case", (CASES[4], CASES[7], CASES[12]), ids=lambda case: case.name)
def test_grad_outputs_of_any_strides(device, case, kind):
    tensors = [tensor.to(device, torch.float64).requires_grad_() for tensor in case.tensors()]
    output = FUNCTIONS[case.rank](*tensors, **case.keywords)
    if kind == "sum":
        grad_output = output.new_ones(()).expand(output.shape)
    elif kind == "sliced":
        grad_output = torch.randn(output.shape[0], output.shape[1] + 3, *output.shape[2:], device=device).double()
        grad_output = grad_output[:, 1 : output.shape[1] + 1]
    else:
        grad_output = torch.randn(*output.shape[:-1], 2 * output.shape[-1], device=device).double()[..., ::2]
    grads = torch.autograd.grad(output, tensors, grad_output)
    doubles = [tensor.detach().requires_grad_() for tensor in tensors]
    exact = torch.autograd.grad(conv_transpose(*doubles, **case.keywords), doubles, grad_output)
    for ours, theirs in zip(grads, exact, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.fixture
def launched(monkeypatch):
    """Every launch on the current GPU: who asked for it, "python" or "c", and its plan."""
    seen, run = [], _C.cuda_run

    def launch(way):
        return lambda plan, *pointers: (seen.append((way, plan)), run(plan, *pointers))[1]

    monkeypatch.setattr(_C, "cuda_run", launch("python"))
    _C.rehearse(torch.cuda.current_device(), launch("c"), operators._raw_stream)
    yield seen
    _C.rehearse(None)


@ON_A_GPU
@pytest.mark.parametrize("frozen", (0, 1))
def test_a_frozen_tensor_launches_nothing(device, launched, frozen):
    """No launch, and no memory, workspace included, beyond that of the other gradient."""
    input, weight = (torch.randn(shape, device=device) for shape in ((4, 64, 40, 40), (64, 64, 4, 4)))
    tensors = [tensor.requires_grad_(place != frozen) for place, tensor in enumerate((input, weight))]
    for way in ("python", "c", "c"):
        output = convt.conv_transpose2d(*tensors, stride=2, padding=1)
        grad_output = torch.randn_like(output)
        launched.clear()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        (grad,) = torch.autograd.grad(output, tensors[1 - frozen], grad_output)
        torch.cuda.synchronize()
        ((taken, plan),) = launched
        assert taken == way
        needed = grad.numel() * grad.element_size() + plan.workspace_bytes
        assert torch.cuda.memory_stats()["requested_bytes.all.peak"] - before <= needed


@ON_A_GPU
def test_the_ordinary_backward_skips_the_dispatcher(device, monkeypatch):
    """One look-up for both gradients, and straight to the launches."""
    _C.forget_plans()  # Python's node, which C's takes the place of once the call is known
    tensors = [tensor.to(device, torch.float32).requires_grad_() for tensor in CASES[4].tensors()]
    output = convt.conv_transpose2d(*tensors, **CASES[4].keywords)
    seen, both = [], pairs.both
    monkeypatch.setattr(pairs, "both", lambda *arguments: (seen.append("both"), both(*arguments))[1])
    torch.autograd.grad(output.sum(), tensors)
    assert seen == ["both"]


@ON_A_GPU
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_both_from_one_turned_copy(device, dtype, monkeypatch):
    """Exactly what they are by themselves, wherever the copy exists, paying or not."""
    monkeypatch.setattr(pairs, "LEAD", -1e9)
    monkeypatch.setattr(pairs, "_turn_grad_output", lambda *plans: (True, True))
    pairs.turned_once.cache_clear()
    _C.forget_plans()
    turned, seen = pairs.by_turned, []
    monkeypatch.setattr(pairs, "by_turned", lambda made, *rest: (seen.append(made), turned(made, *rest))[1])
    for case in ADVERSARIAL:
        tensors = adversarial.exact_gradients(case, device)
        input, weight, grad_output, *exact = (tensor.to(dtype) for tensor in tensors)
        with convt.backend("native"), poisoned():
            actual = pairs.both(grad_output, input, weight, Geometry(*case.geometry), False)
        for ours, wanted in zip(actual, exact, strict=True):
            assert torch.equal(ours, wanted), f"{case.name}: {difference(ours, wanted)}"
    pairs.turned_once.cache_clear()
    _C.forget_plans()
    assert len(seen) >= 5
