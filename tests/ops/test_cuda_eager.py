"""The eager entry on a GPU that is not there: the same C code that runs on one, with the launch itself played.

What it reads off the tensors, looks up, allocates and hands to the launch is what it does on a GPU;
tests/cuda/test_eager_calls.py repeats the main ones where there is one.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import convt
from convt import _C, delegation, eager, functional, operators
from convt import plan as planning
from convt.plan import forced_kernel
from pretended import rehearsed
from reference import CASES, conv_transpose

ENTRIES = {1: convt.conv_transpose1d, 2: convt.conv_transpose2d, 3: convt.conv_transpose3d}
PROBLEM = CASES[4]


@pytest.fixture
def gpu(player):
    with convt.precision("ieee"):
        yield player


@pytest.fixture
def native():
    with convt.backend("native"):
        yield


@pytest.fixture
def python(monkeypatch):
    """The calls that reach the Python functions behind the entry."""
    seen = []
    real = functional.differentiable
    monkeypatch.setattr(functional, "differentiable", lambda *args: (seen.append(args), real(*args))[1])
    return seen


def tensors_of(dtype=torch.float32):
    return PROBLEM.tensors(dtype)


def entry(tensors, **keywords):
    return ENTRIES[PROBLEM.rank](*tensors, **{**PROBLEM.keywords, **keywords})


def exact(problem, tensors):
    return conv_transpose(*(tensor.detach().double() for tensor in tensors), **problem.keywords)


@pytest.mark.parametrize("problem", CASES, ids=lambda problem: problem.name)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last", "expanded"))
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16), ids=str)
def test_launches_are_those_of_the_full_function(gpu, native, python, problem, layout, dtype):
    """The same plan with the same strides on the tensors' own memory, without a line of Python."""
    tensors = list(problem.tensors(dtype))
    if layout == "channels_last" and problem.rank > 1:
        tensors[0] = tensors[0].to(memory_format=torch.channels_last if problem.rank == 2 else torch.channels_last_3d)
    elif layout == "expanded":
        tensors[0] = tensors[0][:1].expand_as(tensors[0])
        tensors[2] = tensors[2][:1].expand_as(tensors[2])
    first = ENTRIES[problem.rank](*tensors, **problem.keywords)
    assert len(python) == 1
    again = ENTRIES[problem.rank](*tensors, **problem.keywords)
    assert len(python) == 1, "the second call is answered in C"
    assert gpu.ran[0] is gpu.ran[1] and len(gpu.planned) == 1
    assert gpu.devices == gpu.streams == [None, 1]
    assert gpu.ran[1].strides["output"] == again.stride() == first.stride()
    wanted = exact(problem, tensors)
    torch.testing.assert_close(again.double(), wanted, rtol=0, atol=8 * torch.finfo(dtype).eps * wanted.abs().max())


def test_a_workspace_of_the_right_size(gpu, native, monkeypatch):
    gpu.workspace_bytes = 4096
    given = []
    run = gpu.cuda_run
    _C.rehearse(1, lambda *args: (given.append(args[5]), run(*args)), gpu.raw_stream)
    for _ in range(3):
        entry(tensors_of())
    assert len(given) == 2 and all(given), "the first call is Python's"


def test_without_a_bias_there_is_no_pointer(gpu, native):
    for _ in range(2):
        output = entry(tensors_of()[:2])
    assert "bias" not in gpu.ran[-1].sizes
    torch.testing.assert_close(output.double(), exact(PROBLEM, tensors_of()[:2]), rtol=1e-5, atol=1e-5)


def test_a_launch_that_fails_is_an_error_and_the_next_call_is_not(gpu, native):
    tensors = tensors_of()
    entry(tensors)

    def fail(*_):
        raise RuntimeError("convt: launching a kernel: out of registers")

    _C.rehearse(1, fail, gpu.raw_stream)
    with pytest.raises(RuntimeError, match="out of registers"):
        for _ in range(2):
            entry(tensors)
    _C.rehearse(1, gpu.cuda_run, gpu.raw_stream)
    for _ in range(2):
        output = entry(tensors)
    torch.testing.assert_close(output.double(), exact(PROBLEM, tensors), rtol=1e-5, atol=1e-5)


# ---- who answers -------------------------------------------------------------------------------------------------


@pytest.fixture
def atens(monkeypatch):
    """Everything is cuDNN's; counts who calls torch.convolution for it."""
    seen = []
    real = operators._convolution
    monkeypatch.setattr(planning.heuristics, "choose_cuda", lambda *_: "aten")
    monkeypatch.setattr(operators, "_convolution", lambda *args: (seen.append(args), real(*args))[1])
    delegation._is_atens.cache_clear()
    yield seen
    delegation._is_atens.cache_clear()


@pytest.mark.parametrize("recorded", (False, True))
def test_what_is_left_to_pytorch_is_its_own_call(player, python, atens, recorded):
    tensors = [tensor.requires_grad_(recorded) for tensor in tensors_of()]
    for _ in range(3):
        output = entry(tensors)
    assert not player.ran
    if recorded:
        assert type(output.grad_fn).__name__ == "ConvolutionBackward0"
        assert torch.equal(output, F.conv_transpose2d(*tensors, **PROBLEM.keywords))
    assert len(python) == len(atens) == 1, "then neither Python nor the operators"


def test_precision_that_differs_is_handed_on(player, python, atens, monkeypatch):
    """cuDNN does not know of convt.precision: such a call is led through what tells it."""
    told = []
    monkeypatch.setattr(
        operators, "_aten", lambda function, head, *args: (told.append(function), function(head, *args))[1]
    )
    differs = "ieee" if convt.current_precision() == "tf32" else "tf32"
    with convt.precision(differs):
        for _ in range(3):
            entry(tensors_of())
    assert len(told) == 3 and len(python) == 1


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16), ids=str)
def test_precision_is_nothing_to_other_dtypes(player, python, atens, dtype):
    differs = "ieee" if convt.current_precision() == "tf32" else "tf32"
    tensors = [tensor.requires_grad_() for tensor in tensors_of(dtype)]
    with convt.precision(differs):
        for _ in range(3):
            output = entry(tensors)
    assert type(output.grad_fn).__name__ == "ConvolutionBackward0"
    assert not player.ran and len(python) == len(atens) == 1


def test_an_old_gpu_is_pytorchs(player, python, monkeypatch):
    monkeypatch.setattr(eager, "operand", lambda t: (t.shape, t.stride(), t.dtype, torch.device("cuda", 0), t.layout))
    monkeypatch.setattr(operators, "operand", eager.operand)
    with rehearsed(player, 0):
        for _ in range(2):
            output = entry(tensors_of())
    assert not player.ran and not player.planned
    assert torch.equal(output, F.conv_transpose2d(*tensors_of(), **PROBLEM.keywords))


# ---- switches ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has another switch")
def test_pytorchs_own_switch_is_read_on_every_call(player, native, python):
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        for precision in ("ieee", "tf32", "ieee", "tf32", "tf32"):
            torch.backends.cudnn.conv.fp32_precision = precision
            entry(tensors_of())
            assert player.ran[-1].precision == precision
        assert len(python) == 2, "each one is planned once"
        entry(tensors_of(torch.bfloat16))
        assert player.ran[-1].precision == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_convts_switches_are_part_of_what_is_looked_up(gpu, native, python):
    tensors = tensors_of()
    for _ in range(3):
        for kernel, precision in (("simt", "tf32"), ("simt", "ieee"), (None, "tf32"), ("depthwise", "tf32")):
            with convt.precision(precision), forced_kernel(kernel):
                entry(tensors)
                assert (gpu.ran[-1].forced, gpu.ran[-1].precision) == (kernel, precision)
    assert len(python) == 4, "entering a context again finds its plans"
    with convt.backend("aten"):
        ran = len(gpu.ran)
        for _ in range(2):
            entry(tensors)
        assert len(gpu.ran) == ran


# ---- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [set(w) for n in (1, 2, 3) for w in itertools.combinations(range(3), n)], ids=str)
def test_only_the_gradients_that_are_wanted(gpu, native, python, monkeypatch, wanted):
    gradients = _C.gradients
    answered = []
    monkeypatch.setattr(_C, "gradients", lambda *args: (answered.append(gradients(*args)), answered[-1])[1])
    for turn in range(3):
        gpu.ran.clear()
        tensors = [tensor.requires_grad_(place in wanted) for place, tensor in enumerate(tensors_of(torch.float64))]
        output = entry(tensors)
        grad_output = torch.randn_like(output)
        leaves = [tensor for tensor in tensors if tensor.requires_grad]
        grads = torch.autograd.grad(output, leaves, grad_output)
        names = ("grad_input", "grad_weight")
        assert [launch.operator for launch in gpu.ran] == ["forward", *(names[w] for w in sorted(wanted) if w < 2)]
        doubles = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]
        expected = torch.autograd.grad(
            conv_transpose(*doubles, **PROBLEM.keywords), [t for t in doubles if t.requires_grad], grad_output
        )
        for grad, value in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, value)
        assert len(answered) == turn and None not in answered, "the first call was planned in Python, with its node"
    assert len(python) == 1 and len(gpu.planned) == 1 + len(wanted - {2})


def test_a_backward_obeys_the_switches_of_its_own_time(gpu, native):
    tensors = [tensor.requires_grad_() for tensor in tensors_of()]
    for backward in ("tf32", "ieee", "tf32"):
        for _ in range(2):
            output = entry(tensors)
            with convt.precision(backward), forced_kernel("simt", "grad_weight"):
                torch.autograd.grad(output.sum(), tensors)
            assert [launch.precision for launch in gpu.ran[-3:]] == ["ieee", backward, backward]
            assert [launch.forced for launch in gpu.ran[-3:]] == [None, None, "simt"]


@pytest.mark.parametrize("refused", ("grad_input", "grad_weight"))
def test_a_gradient_that_no_kernel_computes(gpu, monkeypatch, refused):
    monkeypatch.setattr(planning.heuristics, "choose_cuda", lambda *_: "native")
    gpu.refuses = {refused: "no kernel can"}
    tensors = [tensor.requires_grad_() for tensor in tensors_of(torch.float64)]
    for _ in range(3):
        gpu.ran.clear()
        output = entry(tensors)
        grads = torch.autograd.grad(output.square().sum(), tensors)
    assert [launch.operator for launch in gpu.ran] == [
        name for name in ("forward", "grad_input", "grad_weight") if name != refused
    ]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    expected = torch.autograd.grad(F.conv_transpose2d(*leaves, **PROBLEM.keywords).square().sum(), leaves)
    for grad, value in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, value)
    with convt.backend("native"), pytest.raises(RuntimeError, match=f"cannot compute {refused}: native: no kernel can"):
        torch.autograd.grad(entry(tensors).sum(), tensors)


def test_second_derivatives(gpu, native):
    problem = CASES[6]
    tensors = [tensor.requires_grad_() for tensor in problem.tensors(torch.float64)]
    ENTRIES[problem.rank](*tensors, **problem.keywords)
    function = ENTRIES[problem.rank]
    assert torch.autograd.gradcheck(lambda *t: function(*t, **problem.keywords), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: function(*t, **problem.keywords), tensors, fast_mode=True)
    assert {launch.operator for launch in gpu.ran} == set(planning.OPERATORS)


@pytest.mark.parametrize("channels", (8, 6))
@pytest.mark.parametrize("refused", ("grad_input", None))
def test_a_bias_gradient_comes_first_unless_cudnn_needs_more(gpu, monkeypatch, refused, channels):
    """Its partial sums then meet no other result, or beside cuDNN's copies it is none itself."""
    monkeypatch.setattr(planning.heuristics, "choose_cuda", lambda *_: "native")
    gpu.refuses = {refused: "no kernel can"} if refused else {}
    came = []

    class Came(list):
        def append(self, plan):
            came.append("grad_bias" if isinstance(plan, dict) else plan.operator)

    gpu.ran, gpu.summed = Came(), Came()
    real = operators._convolution
    monkeypatch.setattr(operators, "_convolution", lambda *given: (came.append(refused), real(*given))[1])
    shapes = ((2, 8, 5, 7), (8, channels, 3, 3), (channels,))
    tensors = [torch.rand(shape).requires_grad_() for shape in shapes]
    for _ in range(3):  # the first call is planned in Python
        output = convt.conv_transpose2d(*tensors, stride=2)
        came.clear()
        torch.autograd.grad(output, tensors, torch.rand_like(output))
    assert len(came) == 3 and came.index("grad_bias") == (2 if refused and channels == 8 else 0), came
