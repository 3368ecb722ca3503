"""Streams, graphs, threads, several GPUs, and memory that runs out: of the forward, and of both gradients."""

from __future__ import annotations

import gc
import threading
from contextlib import suppress

import pytest
import torch

from adversarial import FUNCTIONS, eighths
from convt import operators
from convt.plan import cuda_plan
from convt.problem import Geometry, forward_problem, operand
from reference import case, conv_transpose

pytestmark = pytest.mark.cuda

# One per kernel family (tensor cores with and without a split sum, depthwise, float64); no other test has these shapes.
LAYERS = (
    (case("dense", (2, 40, 21, 23), (40, 24, 4, 4), stride=2, padding=1), torch.bfloat16),
    (case("dense-float32", (2, 40, 21, 22), (40, 24, 3, 3), stride=2), torch.float32),
    (case("split", (1, 900, 2, 2), (900, 24, 3, 3)), torch.float16),
    (case("depthwise", (2, 34, 21, 23), (34, 1, 4, 4), stride=2, padding=1, groups=34), torch.float32),
    (case("double", (2, 10, 21, 23), (10, 6, 3, 3), stride=2, padding=1), torch.float64),
)
DIRECTIONS = ("forward", "gradients")
EACH = pytest.mark.parametrize(("layer", "dtype"), LAYERS, ids=lambda value: getattr(value, "name", str(value)))
BOTH = pytest.mark.parametrize("direction", DIRECTIONS)


def tensors(layer, dtype, direction, seed=0, device="cuda"):
    """Input, weight, and bias for the forward or grad_output for the gradients."""
    output = forward_problem(layer.input, layer.weight, None, Geometry(*layer.geometry)).output_size
    shapes = layer.input, layer.weight, (layer.out_channels,) if direction == "forward" else output
    return [eighths(shape, 10 * seed + number, device).to(dtype) for number, shape in enumerate(shapes)]


def exact(layer, operands, direction):
    """What run() has to return, to the bit."""
    if direction == "forward":
        return [conv_transpose(*operands, **layer.keywords).to(operands[0].dtype)]
    leaves = [tensor.double().requires_grad_() for tensor in operands[:2]]
    grads = torch.autograd.grad(conv_transpose(*leaves, **layer.keywords), leaves, operands[2].double())
    return [grad.to(operands[0].dtype) for grad in grads]


def run(layer, operands, direction):
    """[output], or [grad_input, grad_weight] by the inner operators."""
    if direction == "forward":
        return [FUNCTIONS[layer.rank](*operands, **layer.keywords)]
    input, weight, grad_output = operands
    ops, kernel_size = torch.ops.convt, weight.shape[2:]
    return [
        ops.grad_input(grad_output, weight, *layer.geometry, False),
        ops.grad_weight(grad_output, input, kernel_size, *layer.geometry, False),
    ]


def same(results, others):
    return all(torch.equal(result, other) for result, other in zip(results, others, strict=True))


@BOTH
@EACH
def test_graph_captured_without_a_warm_up(gpu, layer, dtype, direction):
    """The first call of a problem may be the captured one; replays see new operands."""
    static = tensors(layer, dtype, direction)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(layer, static, direction)
    for seed in range(1, 4):
        fresh = tensors(layer, dtype, direction, seed)
        for old, new in zip(static, fresh, strict=True):
            old.copy_(new)
        for result in results:
            result.fill_(float("nan"))
        graph.replay()
        assert same(results, exact(layer, fresh, direction)), f"replay {seed}"


@EACH
def test_graph_of_a_training_step(gpu, layer, dtype):
    """Forward and backward through autograd in one graph; replays see new operands."""
    static = [tensor.requires_grad_() for tensor in tensors(layer, dtype, "forward")]
    grad_output = tensors(layer, dtype, "gradients")[2]

    def step():
        (output,) = run(layer, static, "forward")
        return [output.detach(), *torch.autograd.grad(output, static, grad_output)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # PyTorch's own advice: autograd warms up on a side stream
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for seed in range(1, 4):
        fresh, grad = tensors(layer, dtype, "forward", seed), tensors(layer, dtype, "gradients", seed)[2]
        with torch.no_grad():
            for old, new in zip([*static, grad_output], [*fresh, grad], strict=True):
                old.copy_(new)
            for result in results:
                result.fill_(float("nan"))
        graph.replay()
        expected = exact(layer, fresh, "forward") + exact(layer, [*fresh[:2], grad], "gradients")
        assert same(results[:3], expected), f"replay {seed}"
        torch.testing.assert_close(
            results[3].double(), grad.double().sum((0, *range(2, grad.dim()))), rtol=0.02, atol=0.1
        )


@BOTH
@EACH
def test_current_stream(gpu, layer, dtype, direction):
    """The launches wait for what stands before them in the current stream, and for no other stream."""
    operands = tensors(layer, dtype, direction)
    expected = exact(layer, operands, direction)
    late = [torch.full_like(tensor, float("nan")) for tensor in operands]
    run(layer, operands, direction)  # what loads and allocates lies behind us
    torch.cuda.synchronize()
    stream, finished = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(30_000_000)
        for tensor, value in zip(late, operands, strict=True):
            tensor.copy_(value)
        results = run(layer, late, direction)
    stream.synchronize()
    assert same(results, expected)

    with torch.cuda.stream(stream):
        results = run(layer, operands, direction)
    stream.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(1_000_000_000)
    busy.record()
    with torch.cuda.stream(stream):
        results = run(layer, operands, direction)
        finished.record()
    finished.synchronize()
    assert not busy.query(), "the call waited for another stream"
    torch.cuda.synchronize()
    assert same(results, expected)


@BOTH
@EACH
def test_no_synchronisation(gpu, layer, dtype, direction):
    operands = tensors(layer, dtype, direction)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = run(layer, operands, direction)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(results, exact(layer, operands, direction))


@BOTH
@EACH
def test_repeats_are_bit_identical(gpu, layer, dtype, direction):
    """On values whose sums do depend on their order."""
    torch.manual_seed(0)
    operands = [torch.randn_like(tensor) for tensor in tensors(layer, dtype, direction)]
    first = run(layer, operands, direction)
    keep = []
    for _ in range(20):
        again = run(layer, operands, direction)
        assert same(first, again)
        keep.append(again)  # every call writes to other memory


@BOTH
def test_threads_with_streams_of_their_own(gpu, direction):
    wrong, started = [], threading.Barrier(len(LAYERS))

    def work(number):
        layer, dtype = LAYERS[number]
        with torch.cuda.stream(torch.cuda.Stream()):
            started.wait(timeout=60)
            for seed in range(10):
                operands = tensors(layer, dtype, direction, seed)
                if not same(run(layer, operands, direction), exact(layer, operands, direction)):
                    wrong.append((layer.name, seed))

    def guarded(number):
        try:
            work(number)
        except Exception as error:
            wrong.append((number, repr(error)))

    for cache in (operators._forward_call, operators._grad_input_call, operators._grad_weight_call):
        cache.cache_clear()  # the threads plan at the same time
    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(len(LAYERS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert not wrong


@BOTH
def test_two_gpus(gpu, direction):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    assert torch.cuda.current_device() == 0
    for layer, dtype in LAYERS:
        operands = tensors(layer, dtype, direction, device="cuda:1")
        results = run(layer, operands, direction)
        assert all(result.device == torch.device("cuda", 1) for result in results)
        assert torch.cuda.current_device() == 0
        assert same(results, exact(layer, operands, direction))
        with pytest.raises(RuntimeError, match="on one device"):
            run(layer, [*(tensor.to("cuda:0") for tensor in operands[:2]), operands[2]], direction)


def test_operands_on_different_devices_are_refused(gpu):
    layer, dtype = LAYERS[1]
    input, weight, bias = tensors(layer, dtype, "forward")
    for operands in ((input, weight.cpu(), bias), (input.cpu(), weight, bias), (input, weight, bias.cpu())):
        with pytest.raises(RuntimeError, match=r"conv_transpose2d: .* they must be on one device"):
            run(layer, operands, "forward")


@BOTH
def test_only_the_results_remain_allocated(gpu, direction):
    for layer, dtype in LAYERS:
        operands = tensors(layer, dtype, direction)
        gc.collect()
        before = torch.cuda.memory_allocated()
        results = run(layer, operands, direction)
        sizes = [result.numel() * result.element_size() for result in results]
        assert torch.cuda.memory_allocated() - before == sum(-(-size // 512) * 512 for size in sizes)
        del results
        assert torch.cuda.memory_allocated() == before


class Limit:
    """At most `extra` bytes more than are in use now, to the next megabyte; all of the GPU again afterwards."""

    def __init__(self, extra):
        self.extra = extra

    def __enter__(self):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        total, reserved = torch.cuda.mem_get_info()[1], torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction(reserved / total)
        self.holes = []  # of blocks in use, which would hold a result
        for megabytes in (1024, 256, 64, 16, 4, 1):
            with suppress(torch.cuda.OutOfMemoryError):
                while True:
                    self.holes.append(torch.empty(megabytes << 20, dtype=torch.uint8, device="cuda"))
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + self.extra) / total)

    def __exit__(self, *_):
        self.holes.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)


def survives(layer, operands, extra, direction):
    """A call that finds only `extra` bytes fails cleanly, and the next one with enough memory is right."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    with Limit(extra), pytest.raises(torch.cuda.OutOfMemoryError):
        run(layer, operands, direction)
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    # A sticky CUDA error, or a plan that was left half-done, would show here.
    small, small_dtype = LAYERS[0]
    others = tensors(small, small_dtype, direction)
    assert same(run(small, others, direction), exact(small, others, direction))
    results = run(layer, operands, direction)
    torch.cuda.synchronize()
    assert all(result.isfinite().all() for result in results)


@BOTH
def test_no_memory_for_the_result(gpu, direction):
    if direction == "forward":
        layer = case("large", (64, 16, 64, 64), (16, 64, 4, 4), stride=2, padding=1)
    else:
        layer = case("large", (64, 64, 128, 64), (64, 16, 2, 4), stride=(1, 2), padding=(0, 1))
    operands = tensors(layer, torch.bfloat16, direction)
    survives(layer, operands, 16 << 20, direction)  # 64 MiB or more are needed


@BOTH
def test_no_memory_for_the_workspace(gpu, direction):
    layer = case("wide", (1, 2048, 4, 4), (2048, 2048, 3, 3))
    operands = tensors(layer, torch.float32, direction)
    problem, _ = operators.check_forward(*map(operand, operands[:2]), None, Geometry(*layer.geometry))
    names = ("forward",) if direction == "forward" else ("grad_input", "grad_weight")
    plans = [cuda_plan(problem, torch.float32, operator=name, bias=True, device=gpu) for name in names]
    workspace = max(plan.workspace_bytes for plan in plans)
    if workspace < 64 << 20:
        pytest.skip(f"this plan needs {workspace} bytes of workspace only: they always fit beside the result")
    survives(layer, operands, 32 << 20, direction)
