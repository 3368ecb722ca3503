"""DTensor's rules for the operators: every split, forward and backward, eager and compiled, in two processes."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest
import torch
import torch.nn.functional as F

import convt
from convt.sharding import splits_well
from reference import case

pytest.importorskip("torch.distributed.tensor.experimental", reason="DTensor's public rules came with torch 2.5")
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

R, P = Replicate(), Partial()
S = [Shard(axis) for axis in range(5)]
# Placements of input, weight, bias, output, and of the gradients of the first three, by the index that is split.
RULES = {
    "replicated": ((R, R, R), R, (R, R, R)),
    "batch": ((S[0], R, R), S[0], (S[0], P, P)),
    "in-channels": ((S[1], S[0], P), P, (S[1], S[0], R)),
    "out-channels": ((R, S[1], S[0]), S[1], (P, S[1], S[0])),
}
# No extent is even.
PLAIN = (
    case("1d", (3, 5, 4), (5, 3, 3), stride=2, padding=1),
    case("2d", (3, 3, 4, 3), (3, 5, 3, 2), stride=(2, 1), output_padding=(1, 0), dilation=(1, 2)),
    case("3d", (3, 3, 2, 3, 2), (3, 3, 2, 1, 3), stride=(2, 1, 3), padding=(0, 0, 1), output_padding=(1, 0, 2)),
)
GROUPED = case("grouped", (3, 6, 4, 3), (6, 2, 3, 2), stride=2, padding=1, groups=3)


@cache
def mesh_of_all(device="cpu"):
    """One mesh per process: torch.compile (2.13) trips over a second one that equals it."""
    return init_device_mesh(device, (torch.distributed.get_world_size(),))


def function_of(problem):
    function = getattr(convt, f"conv_transpose{problem.rank}d")
    return lambda *tensors: function(*tensors, **problem.keywords)


def shard(tensors, placements):
    """DTensors of the tensors; from a partial sum's value, one rank's share of it."""
    mesh = mesh_of_all(tensors[0].device.type)
    result = []
    for tensor, placement in zip(tensors, placements, strict=True):
        if placement == P:
            share = tensor * (0.25 if mesh.get_rank() == 0 else 0.75)
            result.append(DTensor.from_local(share, mesh, [P]).requires_grad_())
        else:
            result.append(distribute_tensor(tensor, mesh, [placement]).requires_grad_())
    return result


def expectation(problem, bias, device="cpu"):
    """Output, a gradient for it, and those of the arguments, by PyTorch in this process alone."""
    leaves = [tensor.to(device).requires_grad_() for tensor in problem.tensors()[: 2 + bias]]
    output = getattr(F, f"conv_transpose{problem.rank}d")(*leaves, **problem.keywords)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=output.dtype).to(device)
    return output, cotangent, torch.autograd.grad(output, leaves, cotangent)


def compile(function):
    """torch.compile down to the operators on each rank; the list gets the graphs of forward and backward."""
    torch._dynamo.reset()
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    return graphs, torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))


def collectives(graph):
    """Names of what a graph does with other ranks."""
    return [str(node.target) for node in graph.graph.nodes if "c10d" in str(node.target)]


def check_split(problem, name, bias=True, compiled=False, device="cpu"):
    placements, output_placement, grad_placements = RULES[name]
    expected, cotangent, expected_grads = expectation(problem, bias, device)
    leaves = shard([tensor.to(device) for tensor in problem.tensors()[: 2 + bias]], placements[: 2 + bias])
    elsewhere = R if output_placement == P else output_placement  # the gradient of a sum's parts is that of the sum
    (grad_output,) = shard([cotangent], [elsewhere])
    if compiled:
        graphs, function = compile(function_of(problem))
        output = function(*leaves)
        grads = torch.autograd.grad(output, leaves, grad_output)
        assert len(graphs) == 2 and not any(map(collectives, graphs))
    else:
        with CommDebugMode() as communication:
            output = function_of(problem)(*leaves)
            grads = torch.autograd.grad(output, leaves, grad_output)
        assert communication.get_total_counts() == 0, communication.get_comm_counts()
    assert output.placements == (output_placement,)
    assert output.shape == expected.shape and output.stride() == expected.stride()
    torch.testing.assert_close(output.full_tensor(), expected)
    for grad, placement, leaf, value in zip(grads, grad_placements, leaves, expected_grads, strict=False):
        assert grad.placements == (placement,), (name, grad.placements)
        assert grad.shape == leaf.shape
        torch.testing.assert_close(grad.full_tensor(), value)


def check_all(problem, bias, compiled, device="cpu"):
    for backend in ("auto",) if compiled else ("native", "aten"):
        for name in RULES:
            with convt.backend(backend):
                check_split(problem, name, bias, compiled, device)


@pytest.mark.parametrize("bias", (True, False), ids=("bias", "no-bias"))
@pytest.mark.parametrize("problem", PLAIN, ids=lambda p: p.name)
def test_splits(ranks, problem, bias):
    ranks(check_all, problem, bias, False)


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", (False, True), ids=("eager", "compiled"))
@pytest.mark.parametrize("problem", PLAIN, ids=lambda p: p.name)
def test_splits_on_gpus(gpu_ranks, problem, compiled):
    gpu_ranks(check_all, problem, True, compiled, "cuda")


@pytest.mark.parametrize("problem", PLAIN[:2], ids=lambda p: p.name)
def test_splits_compiled(ranks, problem):
    ranks(check_all, problem, True, True)


def check_other_placements(problem):
    """Whatever the rules do not have (with groups, all but the batch) is redistributed first, and right."""
    expected, cotangent, expected_grads = expectation(problem, True)
    for placements in (
        (S[0], R, R),
        (S[1], S[0], R),
        (R, S[0], S[0]),
        (S[2], R, R),
        (R, S[2], R),
        (P, R, R),
        (R, P, P),
    ):
        leaves = shard(problem.tensors(), placements)
        (grad_output,) = shard([cotangent], [S[0]])
        output = function_of(problem)(*leaves)
        grads = torch.autograd.grad(output, leaves, grad_output)
        assert output.placements[0] in ((R, S[0]) if problem is GROUPED else (R, P, S[0], S[1]))
        for actual, value in zip((output, *grads), (expected, *expected_grads), strict=True):
            torch.testing.assert_close(actual.full_tensor(), value)


@pytest.mark.parametrize("problem", (GROUPED, PLAIN[1]), ids=lambda p: p.name)
def test_other_placements_are_redistributed(ranks, problem):
    ranks(check_other_placements, problem)


def check_one_after_the_other():
    """Same shapes, other arguments: nothing may be remembered from the call before."""
    mesh = mesh_of_all()
    input, weight = torch.randn(2, 2, 8, dtype=torch.float64), torch.randn(2, 2, 3, dtype=torch.float64)
    one, other = distribute_tensor(input, mesh, [S[0]]), distribute_tensor(weight, mesh, [R])
    variants = [{"stride": s, "padding": p, "dilation": d} for s in (1, 2) for p in (0, 1) for d in (1, 2)]
    for keywords in (*variants, {"stride": 2, "output_padding": 1}, {"groups": 2}):
        expected = convt.conv_transpose1d(input, weight, **keywords)
        output = convt.conv_transpose1d(one, other, **keywords)
        assert output.shape == expected.shape, keywords
        torch.testing.assert_close(output.full_tensor(), expected)
    shared = (1,), (0,), (0,), 1, (1,)
    grad_output = torch.randn(2, 2, 10, dtype=torch.float64)
    grad = distribute_tensor(grad_output, mesh, [S[0]])
    for taps, padding in ((3, 0), (5, 1)):
        shared = (1,), (padding,), (0,), 1, (1,)
        expected = torch.ops.convt.grad_weight(grad_output, input, (taps,), *shared, False)
        actual = torch.ops.convt.grad_weight(grad, one, (taps,), *shared, False)
        assert actual.shape == (2, 2, taps) and actual.placements == (P,)
        torch.testing.assert_close(actual.full_tensor(), expected)


def test_arguments_are_not_taken_for_those_of_the_call_before(ranks):
    ranks(check_one_after_the_other)


def check_second_derivative(problem):
    for name, (placements, _, _) in RULES.items():
        plain = problem.tensors(grad=True)
        leaves = shard(problem.tensors(), placements)
        results = []
        for tensors in (plain, leaves):
            value = function_of(problem)(*tensors).pow(2).sum()
            first = torch.autograd.grad(value, tensors[:2], create_graph=True)
            second = torch.autograd.grad(first[0].pow(2).sum() + first[1].pow(2).sum(), tensors[:2])
            results.append((*first, *second))
        for expected, actual in zip(*results, strict=True):
            torch.testing.assert_close(actual.full_tensor(), expected, msg=lambda text, n=name: f"{n}: {text}")


def test_second_derivatives(ranks):
    ranks(check_second_derivative, PLAIN[0])


def check_modes_and_layouts():
    mesh = mesh_of_all()
    input = torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last)
    module = convt.nn.ConvTranspose2d(3, 4, 3, stride=2)
    expected = module(input)
    sharded = distribute_tensor(input, mesh, [S[0]])
    torch.distributed.tensor.distribute_module(module, mesh)
    for guard in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with guard():
            output = module(sharded)
        assert output.placements == (S[0],)
        assert output.shape == expected.shape
        torch.testing.assert_close(output.full_tensor(), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(sharded)
    assert output.dtype is torch.bfloat16
    torch.testing.assert_close(output.full_tensor().float(), expected, rtol=0.05, atol=0.05)
    assert module(sharded[0]).shape == expected.shape[1:]  # unbatched


def test_modes_and_layouts(ranks):
    ranks(check_modes_and_layouts)


def test_no_rank_without_channels():
    """Five channels for four ranks are 2, 2, 1 and 0: refused. Fewer than ranks are DTensor's own refusal."""
    assert all(splits_well(extent, (2,)) for extent in range(1, 9))
    assert [extent for extent in range(4, 13) if not splits_well(extent, (4,))] == [5, 6, 9]
    assert splits_well(16, (32, 2)) and splits_well(64, (4, 4)) and not splits_well(17, (4, 4))
    for extent in range(1, 40):
        for size in range(1, extent + 1):
            chunks = torch.arange(extent).chunk(size)
            assert splits_well(extent, (size,)) == (len(chunks) == size)


def test_importing_convt_does_not_import_dtensors():
    text = "import sys, convt; assert 'torch.distributed.tensor' not in sys.modules"
    subprocess.run([sys.executable, "-c", text], check=True)


REGISTERED = """
from torch.distributed.tensor import DTensor
{}
for name in ("forward", "grad_input", "grad_weight", "grad_bias"):
    op = getattr(torch.ops.convt, name).default
    assert op in DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs, name
"""


def test_registered_whichever_is_imported_first():
    exec(REGISTERED.format("import torch"))
    subprocess.run([sys.executable, "-c", REGISTERED.format("import torch, convt")], check=True)
