"""Streams, graphs, threads, several GPUs, and memory that runs out."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from adversarial import FUNCTIONS, eighths
from convt import operators
from convt.plan import cuda_plan
from convt.problem import Geometry, operand
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
EACH = pytest.mark.parametrize(("layer", "dtype"), LAYERS, ids=lambda value: getattr(value, "name", str(value)))


def tensors(layer, dtype, seed=0, device="cuda"):
    shapes = layer.input, layer.weight, (layer.out_channels,)
    return [eighths(shape, 10 * seed + number, device).to(dtype) for number, shape in enumerate(shapes)]


def exact(layer, operands):
    return conv_transpose(*operands, **layer.keywords).to(operands[0].dtype)


def run(layer, operands):
    return FUNCTIONS[layer.rank](*operands, **layer.keywords)


@EACH
def test_graph_captured_without_a_warm_up(gpu, layer, dtype):
    """The first call of a problem may be the captured one; replays see new inputs, weights and biases."""
    static = tensors(layer, dtype)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(layer, static)
    for seed in range(1, 4):
        fresh = tensors(layer, dtype, seed)
        for old, new in zip(static, fresh, strict=True):
            old.copy_(new)
        output.fill_(float("nan"))
        graph.replay()
        assert torch.equal(output, exact(layer, fresh)), f"replay {seed}"


@EACH
def test_current_stream(gpu, layer, dtype):
    """The launch waits for what stands before it in the current stream, and for no other stream."""
    operands = tensors(layer, dtype)
    expected = exact(layer, operands)
    late = torch.full_like(operands[0], float("nan"))
    run(layer, operands)  # what loads and allocates lies behind us
    torch.cuda.synchronize()
    stream, finished = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(30_000_000)
        late.copy_(operands[0])
        output = run(layer, [late, *operands[1:]])
    stream.synchronize()
    assert torch.equal(output, expected)

    with torch.cuda.stream(stream):
        output = run(layer, operands)
    stream.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(1_000_000_000)
    busy.record()
    with torch.cuda.stream(stream):
        output = run(layer, operands)
        finished.record()
    finished.synchronize()
    assert not busy.query(), "the call waited for another stream"
    torch.cuda.synchronize()
    assert torch.equal(output, expected)


@EACH
def test_no_synchronisation(gpu, layer, dtype):
    operands = tensors(layer, dtype)
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = run(layer, operands)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(output, exact(layer, operands))


@EACH
def test_repeats_are_bit_identical(gpu, layer, dtype):
    """On values whose sums do depend on their order."""
    torch.manual_seed(0)
    operands = [torch.randn_like(tensor) for tensor in tensors(layer, dtype)]
    first = run(layer, operands)
    keep = []
    for _ in range(20):
        again = run(layer, operands)
        assert torch.equal(first, again)
        keep.append(again)  # every call writes to other memory


def test_threads_with_streams_of_their_own(gpu):
    wrong, started = [], threading.Barrier(len(LAYERS))

    def work(number):
        layer, dtype = LAYERS[number]
        with torch.cuda.stream(torch.cuda.Stream()):
            started.wait(timeout=60)
            for seed in range(10):
                operands = tensors(layer, dtype, seed)
                if not torch.equal(run(layer, operands), exact(layer, operands)):
                    wrong.append((layer.name, seed))

    def guarded(number):
        try:
            work(number)
        except Exception as error:
            wrong.append((number, repr(error)))

    operators._forward_call.cache_clear()  # the threads plan at the same time
    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(len(LAYERS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert not wrong


def test_two_gpus(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    assert torch.cuda.current_device() == 0
    for layer, dtype in LAYERS:
        operands = tensors(layer, dtype, device="cuda:1")
        output = run(layer, operands)
        assert output.device == torch.device("cuda", 1) and torch.cuda.current_device() == 0
        assert torch.equal(output, exact(layer, operands))
        with pytest.raises(RuntimeError, match="on one device"):
            run(layer, [operands[0], *(tensor.to("cuda:0") for tensor in operands[1:])])


def test_operands_on_different_devices_are_refused(gpu):
    layer, dtype = LAYERS[1]
    input, weight, bias = tensors(layer, dtype)
    for operands in ((input, weight.cpu(), bias), (input.cpu(), weight, bias), (input, weight, bias.cpu())):
        with pytest.raises(RuntimeError, match=r"conv_transpose2d: .* they must be on one device"):
            run(layer, operands)


def test_only_the_output_remains_allocated(gpu):
    for layer, dtype in LAYERS:
        operands = tensors(layer, dtype)
        before = torch.cuda.memory_allocated()
        output = run(layer, operands)
        size = output.numel() * output.element_size()
        assert torch.cuda.memory_allocated() - before == -(-size // 512) * 512
        del output
        assert torch.cuda.memory_allocated() == before


class Limit:
    """At most `extra` bytes more than are reserved now; all of the GPU again afterwards."""

    def __init__(self, extra):
        self.extra = extra

    def __enter__(self):
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + self.extra) / total)

    def __exit__(self, *_):
        torch.cuda.set_per_process_memory_fraction(1.0)


def survives(layer, dtype, operands, extra):
    """A call that finds only `extra` bytes fails cleanly, and the next one with enough memory is right."""
    before = torch.cuda.memory_allocated()
    with Limit(extra), pytest.raises(torch.cuda.OutOfMemoryError):
        run(layer, operands)
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    # A sticky CUDA error, or a plan that was left half-done, would show here.
    small, small_dtype = LAYERS[0]
    others = tensors(small, small_dtype)
    assert torch.equal(run(small, others), exact(small, others))
    output = run(layer, operands)
    torch.cuda.synchronize()
    assert output.isfinite().all()


def test_no_memory_for_the_output(gpu):
    layer = case("large", (64, 16, 64, 64), (16, 64, 4, 4), stride=2, padding=1)
    survives(layer, torch.bfloat16, tensors(layer, torch.bfloat16), 16 << 20)  # 128 MiB are needed


def test_no_memory_for_the_workspace(gpu):
    layer = case("wide", (1, 2048, 4, 4), (2048, 2048, 3, 3))
    operands = tensors(layer, torch.float32)
    problem, _ = operators.check_forward(*map(operand, operands), Geometry(*layer.geometry))
    workspace = cuda_plan(problem, torch.float32, bias=True, device=gpu).workspace_bytes
    if workspace < 64 << 20:
        pytest.skip(f"this plan needs {workspace} bytes of workspace only: they always fit beside the output")
    survives(layer, torch.float32, operands, 32 << 20)


def test_the_ordinary_call_skips_the_dispatcher(gpu, monkeypatch):
    """PyTorch's dispatcher costs as much as all else that Python does here."""
    layer, dtype = LAYERS[0]
    operands = tensors(layer, dtype)
    seen = []
    forward = operators.forward
    monkeypatch.setattr(operators, "forward", lambda *args: (seen.append("direct"), forward(*args))[1])
    run(layer, operands)
    assert seen == ["direct"]
