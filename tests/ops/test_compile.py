"""torch.compile, torch.export and make_fx: whole graphs, forward and backward, static and dynamic."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import convt

COMPILERS = ["aot_eager", *(["inductor"] if shutil.which("g++") or shutil.which("clang++") else [])]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(function, *tensors):
    leaves = [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return output, *torch.autograd.grad(output.square().sum(), leaves)


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_function_whole_graph(compiler, layout):
    def function(input, weight, bias):
        return convt.conv_transpose2d(input.relu(), weight, bias, stride=2, padding=1, output_padding=1).tanh()

    tensors = torch.randn(2, 4, 5, 6).to(memory_format=layout), torch.randn(4, 6, 3, 3), torch.randn(6)
    same(step(torch.compile(function, fullgraph=True, backend=compiler), *tensors), step(function, *tensors))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_module_whole_graph(compiler):
    for kind, shape in ((convt.nn.ConvTranspose1d, (2, 3, 7)), (convt.nn.ConvTranspose3d, (1, 3, 2, 3, 4))):
        module = kind(3, 4, 3, stride=2)
        compiled = torch.compile(module, fullgraph=True, backend=compiler)
        input = torch.randn(shape)
        torch.testing.assert_close(compiled(input), module(input), rtol=1e-4, atol=1e-4)
        grads = [torch.autograd.grad(m(input).square().sum(), tuple(module.parameters())) for m in (compiled, module)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_output_size_compiles():
    module = convt.nn.ConvTranspose2d(2, 3, 3, stride=2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    input = torch.randn(1, 2, 4, 4)
    assert compiled(input, output_size=[10, 10]).shape == (1, 3, 10, 10)


def test_dynamic_shapes_compile_once():
    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def function(input, weight):
        return convt.conv_transpose2d(input, weight, stride=2)

    compiled = torch.compile(function, fullgraph=True, backend=count, dynamic=True)
    weight = torch.randn(3, 11, 2, 2)  # no extent equal to one of the input's: PyTorch would take them for one symbol
    for size in ((4, 3, 5, 6), (5, 3, 7, 8), (6, 3, 9, 10)):
        input = torch.randn(size)
        same(step(compiled, input, weight), step(function, input, weight))
    assert count.frame_count == 1


def test_autocast_inside_a_graph():
    def function(input, weight):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return convt.conv_transpose2d(input, weight)

    input, weight = torch.randn(1, 2, 4, 4), torch.randn(2, 3, 3, 3)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert compiled(input, weight).dtype is torch.bfloat16
    torch.testing.assert_close(compiled(input, weight), function(input, weight))


def test_transforms_inside_a_graph():
    def function(input, weight):
        return torch.func.grad(lambda w: convt.conv_transpose2d(input, w).square().sum())(weight)

    input, weight = torch.randn(1, 2, 4, 4), torch.randn(2, 3, 3, 3)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input, weight), function(input, weight))


def test_the_backend_is_chosen_when_a_graph_runs(monkeypatch):
    """Not when it is traced: one compiled function, either backend."""
    from convt import _C

    ran = []
    original = _C.forward
    monkeypatch.setattr(_C, "forward", lambda *a: (ran.append("native"), original(*a))[1])
    compiled = torch.compile(lambda x, w: convt.conv_transpose2d(x, w), fullgraph=True, backend="aot_eager")
    input, weight = torch.randn(1, 2, 4, 4), torch.randn(2, 3, 3, 3)
    for name, expected in (("native", ["native"]), ("aten", []), ("native", ["native"])):
        ran.clear()
        with convt.backend(name):
            compiled(input, weight)
        assert ran == expected


@pytest.mark.parametrize("strict", (True, False))
def test_export(strict):
    module = torch.nn.Sequential(convt.nn.ConvTranspose2d(3, 4, 3, stride=2), torch.nn.ReLU()).eval()
    batch = torch.export.Dim("batch", min=2, max=16)
    program = torch.export.export(module, (torch.randn(3, 3, 4, 4),), dynamic_shapes=({0: batch},), strict=strict)
    input = torch.randn(7, 3, 4, 4)
    torch.testing.assert_close(program.module()(input), module(input))
    assert any("convt" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("mode", ("real", "fake", "symbolic"))
def test_make_fx(mode):
    def function(input, weight):
        leaf = weight.detach().requires_grad_()
        return torch.autograd.grad(convt.conv_transpose1d(input, leaf, stride=2).square().sum(), leaf)[0]

    input, weight = torch.randn(2, 3, 5), torch.randn(3, 2, 4)
    graph = make_fx(function, tracing_mode=mode)(input, weight)
    targets = {str(node.target) for node in graph.graph.nodes}
    assert {"convt.forward.default", "convt.grad_weight.default"} <= targets
    assert "convt.grad_input.default" not in targets
    torch.testing.assert_close(graph(input, weight), function(input, weight))


def test_graph_matches_torchs_numbers():
    def ours(input, weight):
        return convt.conv_transpose2d(input, weight, stride=2, groups=2, dilation=2)

    def theirs(input, weight):
        return F.conv_transpose2d(input, weight, stride=2, groups=2, dilation=2)

    tensors = torch.randn(2, 4, 5, 5), torch.randn(4, 3, 3, 3)
    same(step(torch.compile(ours, fullgraph=True, backend="aot_eager"), *tensors), step(theirs, *tensors))
