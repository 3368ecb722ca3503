"""Slabs of space with halos: the plan by itself for many ranks, and the exchange between two processes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import convt
from reference import case

pytest.importorskip("torch.distributed.tensor.parallel")
from test_sharding import collectives, compile

parallel = pytest.importorskip("convt.parallel", reason="torch 2.4 keeps DTensor elsewhere")

CASES = (
    case("k4s2p1", (2, 3, 7, 5), (3, 2, 4, 4), stride=2, padding=1),
    case("k2s2", (2, 2, 6, 4), (2, 3, 2, 2), stride=2),
    case("k1s4", (1, 2, 5, 4), (2, 3, 1, 1), stride=4, output_padding=3),
    case("dilated", (1, 2, 6, 5), (2, 2, 3, 3), dilation=3, padding=2, output_padding=2),
    case("grouped", (2, 4, 5, 4), (4, 2, 3, 5), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2),
    case("1d", (2, 3, 9), (3, 2, 7), stride=3, padding=2),
    case("3d", (1, 2, 4, 5, 4), (2, 2, 3, 3, 2), stride=(1, 2, 3), padding=(1, 0, 1), output_padding=(0, 1, 2)),
)


@st.composite
def axes(draw):
    stride, dilation, taps = (draw(st.integers(1, 5)) for _ in range(3))
    output_padding = draw(st.integers(0, max(stride, dilation) - 1))
    return parallel._Axis(taps, stride, draw(st.integers(0, 6)), output_padding, dilation)


@settings(max_examples=300, deadline=None)
@given(axes(), st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_slabs_make_the_output(axis, extents):
    """Any number of ranks, halos that reach over several: the slabs one after the other are the output."""
    size = sum(extents)
    end = (size - 1) * axis.stride - 2 * axis.padding + axis.reach + axis.output_padding + 1
    cuts = [*(axis.stride * sum(extents[:rank]) for rank in range(len(extents))), end]
    if any(low >= high for low, high in itertools.pairwise(cuts)):
        with pytest.raises(ValueError, match="every rank"):
            parallel.output_extents(extents, *axis)
        return
    generator = torch.Generator().manual_seed(0)
    input, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((1, 2, size), (2, 2, axis.taps), (2,))
    )
    geometry = [[axis.stride], [axis.padding], [axis.output_padding], [axis.dilation]]
    expected = convt.conv_transpose1d(input, weight, bias, *geometry[:3], 1, geometry[3])
    results = []
    for low, high in itertools.pairwise(cuts):
        slab = parallel._slab(low, high, size, axis)
        assert 0 <= slab.first < slab.last <= size
        part = input[..., slab.first : slab.last]
        results.append(parallel._compute(part, weight, bias, geometry, 1, 0, slab))
    assert [result.shape[2] for result in results] == parallel.output_extents(extents, *axis)
    torch.testing.assert_close(torch.cat(results, 2), expected)


def test_halos_are_as_small_as_can_be():
    """k4 s2 p1: one input pixel from either neighbour; k2 s2: none."""
    axis = parallel._Axis(4, 2, 1, 0, 1)
    cuts = [0, 10, 20, 30]
    slabs = [parallel._slab(low, high, 15, axis) for low, high in itertools.pairwise(cuts)]
    assert [(slab.first, slab.last) for slab in slabs] == [(0, 6), (4, 11), (9, 15)]
    assert [parallel._slab(low, low + 10, 15, parallel._Axis(2, 2, 0, 0, 1))[:2] for low in cuts[:3]] == [
        (0, 5),
        (5, 10),
        (10, 15),
    ]


def check_against_whole(problem, axis, told, device="cpu"):
    here = torch.distributed.get_rank()
    function = getattr(convt, f"conv_transpose{problem.rank}d")
    size = problem.input[axis]
    extents = [size - size // 3, size // 3]
    whole, weight, bias = (tensor.to(device).requires_grad_() for tensor in problem.tensors())
    expected = function(whole, weight, bias, **problem.keywords)
    cotangent = torch.randn_like(expected)
    split = (problem.geometry[i][axis - 2] for i in (0, 1, 2, 4))
    cuts = parallel.output_extents(extents, weight.shape[axis], *split)

    part, own_weight, own_bias = (tensor.to(device).requires_grad_() for tensor in problem.tensors())
    own = part.detach().split(extents, axis)[here].clone().requires_grad_()
    leaves = own, own_weight, own_bias
    output = parallel.spatially_sharded(
        own, own_weight, own_bias, **problem.keywords, axis=axis, extents=extents if told else None
    )
    torch.testing.assert_close(output, expected.split(cuts, axis)[here])

    def both(value, other, tensors):
        """First derivatives, and those of a function of them."""
        first = torch.autograd.grad((value * other).sum() + value.pow(3).sum(), tensors, create_graph=True)
        return *first, *torch.autograd.grad(sum(grad.square().sum() for grad in first[:1]), tensors)

    theirs = both(expected, cotangent, (whole, weight, bias))
    ours = both(output, cotangent.split(cuts, axis)[here], leaves)
    for place, (actual, value) in enumerate(zip(ours, theirs, strict=True)):
        if place % 3 == 0:
            value = value.split(extents, axis)[here]
        else:
            torch.distributed.all_reduce(actual)
        torch.testing.assert_close(actual, value, msg=lambda text, n=place: f"{n}: {text}")


@pytest.mark.parametrize("told", (True, False), ids=("extents", "asked"))
@pytest.mark.parametrize("axis", (2, -1), ids=str)
@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_two_processes(ranks, problem, axis, told):
    ranks(check_against_whole, problem, axis % len(problem.input), told)


@pytest.mark.cuda
@pytest.mark.parametrize("problem", CASES, ids=lambda p: p.name)
def test_two_gpus(gpu_ranks, problem):
    for told in (True, False):
        gpu_ranks(check_against_whole, problem, 2, told, "cuda")


def check_a_decoder():
    """Two layers in a row stay in slabs."""
    here = torch.distributed.get_rank()
    model = torch.nn.Sequential(
        convt.nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
        torch.nn.ReLU(),
        convt.nn.ConvTranspose2d(4, 2, 3, 2, 1, 1),
    )
    input, extents = torch.randn(2, 3, 6, 4), [4, 2]
    expected = model(input)
    slab = input.split(extents, 2)[here]
    for layer in (model[0], model[2]):
        arguments = layer.weight, layer.bias, layer.stride, layer.padding, layer.output_padding
        slab = parallel.spatially_sharded(
            slab.relu() if layer is model[2] else slab, *arguments, axis=2, extents=extents
        )
        extents = parallel.output_extents(
            extents, layer.kernel_size[0], layer.stride[0], layer.padding[0], layer.output_padding[0]
        )
    torch.testing.assert_close(slab, expected.split(extents, 2)[here])
    for wrong, match in (({"axis": 1}, "axis"), ({"extents": [1, 2, 3]}, "extents"), ({"extents": [9, 9]}, "extents")):
        with pytest.raises(ValueError, match=match):
            parallel.spatially_sharded(input, model[0].weight, **({"axis": 2} | wrong))
    with pytest.raises(RuntimeError, match="input must be"):
        parallel.spatially_sharded(input[0], model[0].weight)


def test_a_decoder_and_refusals(ranks):
    ranks(check_a_decoder)


def check_compiled(problem):
    """The exchange is one node of the graph, forward and backward."""
    here = torch.distributed.get_rank()
    extents = [4, 3]
    leaves = problem.tensors(grad=True)
    leaves[0] = leaves[0].detach().split(extents, 2)[here].clone().requires_grad_()

    def function(*tensors):
        return parallel.spatially_sharded(*tensors, **problem.keywords, axis=2, extents=extents)

    graphs, compiled = compile(function)
    results = []
    for call in (function, compiled):
        output = call(*leaves)
        results.append((output, *torch.autograd.grad(output.pow(2).sum(), leaves)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
    assert [len([n for n in collectives(graph) if "all_to_all" in n]) for graph in graphs] == [1, 1]


def test_compiled(ranks):
    ranks(check_compiled, CASES[0])
