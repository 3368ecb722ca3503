"""torch.compile: one graph, eager's values and strides, forward and backward, whatever stands around the call."""

from __future__ import annotations

import re
import subprocess
import sys
from textwrap import dedent

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import convt
from convt import settings
from graphs import Traced, needs_inductor, ours, targets

FUNCTIONS = {1: convt.conv_transpose1d, 2: convt.conv_transpose2d, 3: convt.conv_transpose3d}
CHANNELS_LAST = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
SIZES = {1: (9,), 2: (5, 6), 3: (2, 3, 4)}


def tensors(rank, device="cpu", *, layout=torch.contiguous_format, groups=1, dtype=torch.float32):
    made = torch.randn(2, 4, *SIZES[rank]), torch.randn(4, 6 // groups, *(3,) * rank), torch.randn(6)
    input, weight, bias = (tensor.to(device, dtype) for tensor in made)
    return input.to(memory_format=layout), weight, bias


def step(function, *leaves):
    leaves = [leaf.detach().clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves]
    output = function(*leaves)
    return output, *torch.autograd.grad(output.square().sum(), leaves)


def same(one, other, tolerance=1e-4):
    for a, b in zip(one, other, strict=True):
        assert a.stride() == b.stride() and a.dtype is b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def whole(function, compiler="aot_eager", **options):
    return torch.compile(function, fullgraph=True, backend=compiler, **options)


# one graph with eager's values and strides


@pytest.mark.parametrize("rank", (1, 2, 3))
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize(
    "arguments",
    (
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"groups": 2, "dilation": 2},
        {"stride": 3, "dilation": 2, "padding": 2},
    ),
    ids=lambda arguments: "-".join(arguments),
)
def test_values_and_strides(device, rank, layout, arguments):
    layout = CHANNELS_LAST[rank] if layout == "channels_last" else torch.contiguous_format
    made = tensors(rank, device, layout=layout, groups=arguments.get("groups", 1))

    def function(input, weight, bias):
        return FUNCTIONS[rank](input.relu(), weight, bias, **arguments)

    same(step(whole(function), *made), step(function, *made))


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_inductor_between_other_layers(device, compiler, layout):
    layout = CHANNELS_LAST[2] if layout == "channels_last" else torch.contiguous_format
    made = tensors(2, device, layout=layout)

    def function(input, weight, bias):
        return convt.conv_transpose2d(input.relu(), weight, bias, stride=2, padding=1, output_padding=1).tanh()

    same(step(whole(function, compiler), *made), step(function, *made))


@pytest.mark.parametrize("mode", ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"))
def test_modes(device, mode):
    needs_inductor(device)

    def function(input, weight, bias):
        return convt.conv_transpose2d(input, weight, bias, stride=2).sigmoid()

    made = tensors(2, device)
    compiled = torch.compile(function, fullgraph=True, mode=mode)
    for _ in range(3 if device == "cuda" else 1):  # a CUDA graph is recorded at the second call
        torch.compiler.cudagraph_mark_step_begin()
        same([result.clone() for result in step(compiled, *made)], step(function, *made))
    with torch.no_grad():
        torch.testing.assert_close(compiled(*made), function(*made), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ("nn", "accelerated"))
def test_a_model_is_one_graph(kind):
    def model(nn):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.ReLU(), nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2),
            torch.nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1), torch.nn.Flatten(2),
            nn.ConvTranspose1d(3, 2, 2, bias=False),
        )  # fmt: skip

    ours = model(convt.nn) if kind == "nn" else convt.accelerate(model(torch.nn))
    input = torch.randn(2, 3, 9, 9)
    told = torch._dynamo.explain(ours)(input)
    assert (told.graph_count, told.graph_break_count) == (1, 0)
    compiled, eager = whole(ours), model(torch.nn)
    same([compiled(input)], [eager(input)])
    grads = [torch.autograd.grad(m(input).square().sum(), tuple(m.parameters())) for m in (compiled, eager)]
    same(*grads)
    assert not counters["graph_break"]


def test_unbatched_and_output_size():
    module = convt.nn.ConvTranspose2d(4, 3, 3, stride=2)
    compiled = whole(module)
    for input, size in (
        (torch.randn(4, 5, 6), None),
        (torch.randn(2, 4, 5, 6), [12, 14]),
        (torch.randn(0, 4, 5, 6), None),
    ):
        same([compiled(input, output_size=size)], [module(input, output_size=size)])


def test_the_numbers_are_torchs():
    def mine(input, weight):
        return convt.conv_transpose2d(input, weight, stride=2, groups=2, dilation=2)

    def theirs(input, weight):
        return F.conv_transpose2d(input, weight, stride=2, groups=2, dilation=2)

    made = tensors(2, groups=2)[:2]
    same(step(whole(mine), *made), step(theirs, *made))


def test_errors_keep_their_words():
    with pytest.raises(
        RuntimeError, match=r"has 3 channels, but weight of shape \(4, 6, 3, 3\) with groups 1 expects 4"
    ):
        whole(convt.conv_transpose2d)(torch.randn(2, 3, 5, 6), torch.randn(4, 6, 3, 3))


# what a graph consists of


def test_ops_of_a_training_step():
    traced = Traced()
    step(whole(lambda i, w, b: convt.conv_transpose2d(i, w, b, stride=2), traced), *tensors(2))
    (forward,), (backward,) = traced.forward, traced.backward
    assert targets(forward) == ["convt.forward.default"], "a layer is one op, with nothing around it"
    assert sorted(targets(backward)[-3:]) == [
        "convt.grad_bias.default", "convt.grad_input.default", "convt.grad_weight.default"
    ]  # fmt: skip
    copies = {"aten.clone.default", "aten._to_copy.default", "aten.contiguous.default"}
    assert not copies & {*targets(forward), *targets(backward)}


@pytest.mark.parametrize("wanted", ("input", "weight", "bias", "input weight"))
def test_only_wanted_gradients(wanted):
    traced = Traced()
    leaves = dict(zip(("input", "weight", "bias"), tensors(2), strict=True))
    for name in wanted.split():
        leaves[name].requires_grad_()
    whole(lambda i, w, b: convt.conv_transpose2d(i, w, b, stride=2), traced)(*leaves.values()).sum().backward()
    assert sorted(ours(traced.backward[0])) == sorted(f"convt.grad_{name}" for name in wanted.split())


def inductor_code(function, *leaves):
    from torch._inductor.utils import run_fw_bw_and_get_code

    needs_inductor()
    result, code = run_fw_bw_and_get_code(lambda: torch.compile(function, fullgraph=True)(*leaves))
    assert len(code) == 2
    return result, [text[text.index("def call(") : text.index("def benchmark_compiled_module(")] for text in code]


@pytest.mark.parametrize("rank", (1, 2, 3))
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_inductor_copies_nothing(rank, layout):
    """A chain of layers alone is nothing but convt's ops on each other's results, forward and backward."""
    layout = CHANNELS_LAST[rank] if layout == "channels_last" else torch.contiguous_format
    input, weight, bias = tensors(rank, layout=layout)
    leaves = [leaf.requires_grad_() for leaf in (input, weight, bias, torch.randn(6, 4, *(2,) * rank))]

    def function(input, weight, bias, second):
        return FUNCTIONS[rank](FUNCTIONS[rank](input, weight, bias, stride=2), second)

    output, (forward, backward) = inductor_code(function, *leaves)
    assert output.is_contiguous(memory_format=layout)
    for code, calls in ((forward, 2), (backward, 5)):
        assert len(re.findall(r" = (torch\.ops\.convt|convt_C)\.", code)) == calls
        assert "cpp_fused" not in code and "empty_strided" not in code and "torch.ops.aten" not in code


def test_inductor_copies_no_view():
    """Audio models keep (batch, length, channels): the layer reads the transposed tensor as it lies."""
    input, weight, _ = tensors(1)
    rows = input.transpose(1, 2).contiguous().requires_grad_()

    def function(rows, weight):
        return convt.conv_transpose1d(rows.transpose(1, 2), weight, stride=2)

    output, (forward, backward) = inductor_code(function, rows, weight.requires_grad_())
    torch.testing.assert_close(output, function(rows, weight))
    for code in (forward, backward):
        assert "cpp_fused" not in code and "empty_strided" not in code


def test_a_shared_gradient_is_computed_once_by_the_first_graph():
    """In a process of its own: inductor learns about an op when it is first called, unless it is told before."""
    needs_inductor()
    program = """
        import torch, convt
        from torch._inductor.utils import run_fw_bw_and_get_code

        torch._functorch.config.enable_autograd_cache = torch._inductor.config.fx_graph_cache = False
        module = torch.nn.Sequential(convt.nn.ConvTranspose1d(8, 6, 4, stride=2), torch.nn.ReLU())
        compiled = torch.compile(module, fullgraph=True)
        input = torch.randn(2, 8, 30, requires_grad=True)
        _, (_, backward) = run_fw_bw_and_get_code(lambda: compiled(input))
        print(backward.count("empty_strided_cpu((2, 6, 62)"))
    """
    run = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, text=True)
    assert run.stdout.strip() == "1", run.stderr


# what stands around a call


def test_autocast(compiler):
    module = convt.nn.ConvTranspose2d(4, 6, 3, stride=2)
    input = torch.randn(2, 4, 5, 6)

    def inside(input):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(input)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        outside = whole(module, compiler)(input)
        expected = module(input)
    same([outside, whole(inside, compiler)(input)], [expected] * 2, tolerance=1e-2)
    outside.float().sum().backward()
    assert module.weight.grad.dtype is torch.float32


def test_without_gradients(compiler):
    module = convt.nn.ConvTranspose2d(4, 6, 3, stride=2)
    compiled = whole(module, compiler)
    input = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        same([compiled(input)], [module(input)])
    with torch.inference_mode():
        result = compiled(input)
        assert result.is_inference()
        same([result], [module(input)])
    assert compiled(input).requires_grad


def test_checkpointing():
    """The first layers run again in the backward graph; values and gradients are eager's."""
    first = torch.nn.Sequential(convt.nn.ConvTranspose2d(4, 3, 3, stride=2), torch.nn.GELU())
    last = convt.nn.ConvTranspose2d(3, 2, 3)
    traced = Traced()

    def function(input):
        return last(checkpoint(first, input, use_reentrant=False))

    input = torch.randn(2, 4, 5, 6)
    same(step(whole(function, traced), input), step(function, input))
    assert ours(traced.forward[0]) == ["convt.forward"] * 2
    assert ours(traced.backward[0]).count("convt.forward") == 1


def test_transforms_inside_a_graph():
    def function(input, weight):
        return torch.func.grad(lambda w: convt.conv_transpose2d(input, w).square().sum())(weight)

    made = tensors(2)[:2]
    same([whole(function)(*made)], [function(*made)])


@pytest.mark.parametrize("mode", ("real", "fake", "symbolic"))
def test_make_fx(mode):
    def function(input, weight):
        leaf = weight.detach().requires_grad_()
        return torch.autograd.grad(convt.conv_transpose1d(input, leaf, stride=2).square().sum(), leaf)[0]

    input, weight = torch.randn(2, 3, 5), torch.randn(3, 2, 4)
    graph = make_fx(function, tracing_mode=mode)(input, weight)
    found = set(targets(graph.graph))
    assert {"convt.forward.default", "convt.grad_weight.default"} <= found
    assert "convt.grad_input.default" not in found
    torch.testing.assert_close(graph(input, weight), function(input, weight))


# settings


def computed_by(function):
    """Who computed each forward, in order."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    names = (event.name for event in sorted(profiler.events(), key=lambda event: event.time_range.start))
    who = {"convt::forward native": "native", "aten::convolution": "aten"}
    return [who[name] for name in names if name in who]


def test_the_backend_is_chosen_when_a_graph_runs():
    """Not when it is traced: one compiled function, either backend."""
    compiled = whole(lambda x, w: convt.conv_transpose2d(x, w))
    made = tensors(2)[:2]
    compiled(*made)
    for name in ("native", "aten", "native"):
        with convt.backend(name):
            assert computed_by(lambda: compiled(*made)) == [name]


@pytest.mark.parametrize("context", (convt.backend, convt.precision), ids=("backend", "precision"))
def test_settings_are_refused_inside_a_whole_graph(context):
    def function(input, weight):
        with context("aten" if context is convt.backend else "ieee"):
            return convt.conv_transpose2d(input, weight)

    class Module(torch.nn.Module):
        def forward(self, input, weight):
            return function(input, weight)

    with pytest.raises(torch._dynamo.exc.Unsupported, match="enter it around the call"):
        whole(function)(*tensors(2)[:2])
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="enter it around the call"):
            torch.export.export(Module(), tensors(2)[:2], strict=strict)
    assert convt.current_backend() == "auto" and not settings.precision_is_overridden()


def test_a_forced_kernel_is_refused_in_an_export():
    class Module(torch.nn.Module):
        def forward(self, input):
            with settings.forced_kernel("simt"):
                return input + 1

    with pytest.raises(RuntimeError, match=r"convt\.plan\.forced_kernel cannot be entered inside"):
        torch.export.export(Module(), (torch.zeros(2),), strict=False)


def test_settings_inside_a_function_break_its_graph():
    """And then they hold for their block, compiled or not."""

    @torch.compile(backend="aot_eager")
    def function(input, weight):
        with convt.backend("native"):
            first = convt.conv_transpose2d(input + 1, weight)
        with convt.backend("aten"):
            return first + convt.conv_transpose2d(input, weight)

    input, weight = tensors(2)[:2]
    for _ in range(2):
        torch.testing.assert_close(
            function(input, weight), sum(F.conv_transpose2d(i, weight) for i in (input + 1, input))
        )
        assert computed_by(lambda: function(input, weight)) == ["native", "aten"]
        assert convt.current_backend() == "auto"
    assert counters["graph_break"]


def compiled_files():
    """The files of all functions that Dynamo has looked at as the start of a graph."""
    return {code.co_filename for reference in torch._dynamo.convert_frame.input_codes.seen if (code := reference())}


def test_a_broken_frame_leaves_the_choice_alone():
    """Where a graph break leaves calls to Python, the code that chooses who computes them is not compiled."""

    @torch.compile(backend="aot_eager")
    def function(input, weight):
        torch._dynamo.graph_break()
        return [convt.conv_transpose2d(input[..., :cut], weight).sum() for cut in range(2, 6)]

    input, weight = tensors(2)[:2]
    result = function(input, weight)
    assert list(counters["graph_break"].values()) == [1], "the function's own"
    assert not any("/convt/" in file and "functional" not in file for file in compiled_files())
    torch.testing.assert_close(result, [F.conv_transpose2d(input[..., :cut], weight).sum() for cut in range(2, 6)])


def test_the_current_backend_guards_a_graph():
    compiled = whole(lambda x: x + (1 if convt.current_backend() == "native" else 0))
    zero = torch.zeros(1)
    assert compiled(zero).item() == 0
    with convt.backend("native"):
        assert compiled(zero).item() == 1
    assert compiled(zero).item() == 0
