"""The eager entry on a real GPU: what tests/ops/test_cuda_eager.py rehearses, with nothing played."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F

import convt
from adversarial import eighths
from convt import _C, functional, operators
from convt.plan import forced_kernel
from reference import case, conv_transpose
from versions import has_fp32_precision

pytestmark = pytest.mark.cuda

LAYERS = (
    (case("dense", (2, 24, 9, 10), (24, 40, 4, 4), stride=2, padding=1), torch.bfloat16),
    (case("depthwise", (2, 32, 9, 10), (32, 1, 3, 3), stride=2, groups=32), torch.float32),
    (case("split", (1, 700, 2, 2), (700, 24, 3, 3)), torch.float16),
    (case("double", (2, 6, 9, 10), (6, 4, 3, 3), stride=2), torch.float64),
)
EACH = pytest.mark.parametrize(("layer", "dtype"), LAYERS, ids=lambda value: getattr(value, "name", str(value)))


@pytest.fixture(autouse=True)
def fresh(gpu):
    _C.forget_plans()
    yield
    _C.forget_plans()


@pytest.fixture
def python(monkeypatch):
    """The calls that reach the Python functions behind the entry."""
    seen = []
    real = functional.differentiable
    monkeypatch.setattr(functional, "differentiable", lambda *args: (seen.append(args), real(*args))[1])
    return seen


def tensors(layer, dtype, seed=0, device="cuda"):
    """Eighths, whose products and sums are exact."""
    shapes = layer.input, layer.weight, (layer.out_channels,)
    return [eighths(shape, 10 * seed + number, device).to(dtype) for number, shape in enumerate(shapes)]


def exact(layer, operands):
    return conv_transpose(*operands, **layer.keywords).to(operands[0].dtype)


@EACH
def test_calls_after_the_first_are_answered_in_c(python, monkeypatch, layer, dtype):
    for seed in range(4):
        operands = tensors(layer, dtype, seed)
        output = convt.conv_transpose2d(*operands, **layer.keywords)
        assert torch.equal(output, exact(layer, operands))
        assert len(python) == 1
        monkeypatch.setattr(operators, "forward", None)  # Python's way is closed from here on


@EACH
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_gradients_are_answered_in_c(python, layer, dtype, layout):
    for seed in range(3):
        leaves = [tensor.requires_grad_() for tensor in tensors(layer, dtype, seed)]
        input = leaves[0].detach().to(memory_format=layout).requires_grad_()
        output = convt.conv_transpose2d(input, *leaves[1:], **layer.keywords)
        grad_output = eighths(output.shape, seed, "cuda").to(dtype)
        grads = torch.autograd.grad(output, (input, *leaves[1:]), grad_output)
        doubles = [tensor.detach().double().requires_grad_() for tensor in leaves]
        wanted = torch.autograd.grad(conv_transpose(*doubles, **layer.keywords), doubles, grad_output.double())
        for grad, value in zip(grads[:2], wanted, strict=False):
            assert torch.equal(grad, value.to(dtype))
        torch.testing.assert_close(grads[2].double(), wanted[2], rtol=0.02, atol=0.1)
    assert len(python) == 1


def test_what_cudnn_is_left_with_is_pytorchs_own_call(python):
    input = torch.randn(2, 512, 9, 9, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(512, 512, 4, 4, device="cuda", dtype=torch.bfloat16)
    with convt.backend("aten"):
        for _ in range(3):
            output = convt.conv_transpose2d(input, weight, stride=2)
    assert torch.equal(output, F.conv_transpose2d(input, weight, stride=2))
    with convt.backend("auto"):
        for _ in range(3):
            output = convt.conv_transpose2d(input, weight, stride=2)
    assert type(output.grad_fn).__name__ == "ConvolutionBackward0"
    assert len(python) == 1, "the first one of those that are forced"


@has_fp32_precision
def test_pytorchs_switch_is_read_on_every_call(python, torch_switches):
    """Values that TF32 rounds and float32 does not, on tensor cores: the other kernels never round."""
    input = torch.full((1, 64, 8, 8), 1 + 2**-12, device="cuda")
    weight = torch.ones(64, 64, 1, 1, device="cuda")
    settled = convt.settings._precision
    try:
        convt.settings._precision = None  # the fixture's context is not to answer for PyTorch
        with forced_kernel("implicit_gemm"):
            for precision, value in (("ieee", 1 + 2**-12), ("tf32", 1.0)) * 2:
                torch.backends.cudnn.conv.fp32_precision = precision
                assert convt.conv_transpose2d(input, weight).eq(64 * value).all(), precision
    finally:
        convt.settings._precision = settled
        convt.settings._changed()
    assert len(python) == 2, "each one is planned once"


def test_current_stream_and_capture():
    layer, dtype = LAYERS[0]
    static = tensors(layer, dtype)
    convt.conv_transpose2d(*static, **layer.keywords)  # planned
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = convt.conv_transpose2d(*static, **layer.keywords)
    for seed in range(1, 4):
        fresh = tensors(layer, dtype, seed)
        for old, new in zip(static, fresh, strict=True):
            old.copy_(new)
        graph.replay()
        assert torch.equal(result, exact(layer, fresh))
    late = [torch.full_like(tensor, float("nan")) for tensor in static]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(30_000_000)
        for tensor, value in zip(late, static, strict=True):
            tensor.copy_(value)
        result = convt.conv_transpose2d(*late, **layer.keywords)
    stream.synchronize()
    assert torch.equal(result, exact(layer, static))


def test_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    for layer, dtype in LAYERS:
        operands = tensors(layer, dtype, device="cuda:1")
        for _ in range(3):
            output = convt.conv_transpose2d(*operands, **layer.keywords)
            assert output.device == torch.device("cuda", 1) and torch.cuda.current_device() == 0
            assert torch.equal(output, exact(layer, operands))


def test_operands_of_two_devices_are_refused_after_a_plan_is_made():
    layer, dtype = LAYERS[0]
    input, weight, bias = tensors(layer, dtype)
    for _ in range(2):
        convt.conv_transpose2d(input, weight, bias, **layer.keywords)
    for operands in ((input, weight.cpu(), bias), (input.cpu(), weight, bias), (input, weight, bias.cpu())):
        with pytest.raises(RuntimeError, match=r"conv_transpose2d: .* they must be on one device"):
            convt.conv_transpose2d(*operands, **layer.keywords)


@pytest.mark.parametrize("requested", ("auto", "native"))
def test_autocast(requested):
    input = torch.randn(2, 16, 9, 9, device="cuda", requires_grad=True)
    weight = torch.randn(16, 16, 3, 3, device="cuda", requires_grad=True)
    bias = torch.randn(16, device="cuda", requires_grad=True)
    with convt.backend(requested), torch.autocast("cuda", dtype=torch.bfloat16):
        for _ in range(3):
            output = convt.conv_transpose2d(input, weight, bias)
            assert output.dtype is torch.bfloat16
            grads = torch.autograd.grad(output.float().square().sum(), (input, weight, bias))
        expected = F.conv_transpose2d(input, weight, bias)
        values = torch.autograd.grad(expected.float().square().sum(), (input, weight, bias))
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.2)
    for grad, value in zip(grads, values, strict=True):
        assert grad.dtype is torch.float32
        assert (grad - value).norm() <= 0.02 * value.norm()


def test_inductor_calls_in_c(monkeypatch):
    layer, dtype = LAYERS[1]
    operands = tensors(layer, dtype)
    compiled = torch.compile(lambda *t: convt.conv_transpose2d(*t, **layer.keywords) + 1, fullgraph=True)
    with torch.no_grad():
        for _ in range(2):  # on the first run AOTAutograd watches for aliases: it has to see the op pass the dispatcher
            compiled(*operands)
        monkeypatch.setattr(operators, "forward", None)
        assert torch.equal(compiled(*operands), exact(layer, operands) + 1)


def test_threads_with_streams_of_their_own():
    wrong, started = [], threading.Barrier(len(LAYERS))

    def work(number):
        layer, dtype = LAYERS[number]
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                started.wait(timeout=60)
                for seed in range(30):
                    operands = tensors(layer, dtype, seed)
                    if not torch.equal(convt.conv_transpose2d(*operands, **layer.keywords), exact(layer, operands)):
                        wrong.append((number, seed))
        except Exception as error:
            wrong.append((number, repr(error)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(LAYERS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert not wrong
