"""torch.compile(model, backend="convt"): what is folded into one call, what is not, and that all of it is right."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convt
from convt.graph import rewrite
from watched import Watched, calls, close

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh(one_thread):
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# ---- the chains of KernelBench, level 2, as plain models ---------------------------------------------------------


class BiasClampScale(nn.Module):
    """ConvTranspose2d, bias, clamp, scale, clamp, divide (2 of level 2)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.ConvTranspose2d(16, 24, 3, stride=2, padding=1, output_padding=1)
        self.bias = nn.Parameter(torch.randn(24, 1, 1))

    def forward(self, x):
        x = self.conv(x) + self.bias
        x = torch.clamp(x, min=0.0, max=1.0) * 2.0
        return torch.clamp(x, min=0.0, max=1.0) / 2.0


class AddHardswish(nn.Module):
    """ConvTranspose3d, residual, hardswish (26 of level 2 multiplies by it as well)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.ConvTranspose3d(8, 12, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x, residual):
        return F.hardswish(self.conv(x) + residual)


class LeakyMultiplyLeaky(nn.Module):
    """ConvTranspose3d, leaky_relu, multiply, leaky_relu (20 of level 2's family, without its pooling)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.ConvTranspose3d(8, 12, 3, stride=2, padding=1, output_padding=1)
        self.multiplier = nn.Parameter(torch.randn(12, 1, 1, 1))
        self.leaky_relu = nn.LeakyReLU(negative_slope=0.2)

    def forward(self, x):
        return self.leaky_relu(self.leaky_relu(self.conv(x)) * self.multiplier)


class Gelu(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.ConvTranspose2d(16, 24, 4, stride=2, padding=1)
        self.gelu = nn.GELU()

    def forward(self, x):
        return self.gelu(self.conv(x))


CHAINS = [
    (BiasClampScale, [(2, 16, 12, 12)], "add(operand),clamp,mul,clamp,div"),
    (AddHardswish, [(1, 8, 8, 8, 8), (1, 12, 16, 16, 16)], "add(operand),hardswish"),
    (LeakyMultiplyLeaky, [(1, 8, 8, 8, 8)], "leaky_relu,mul(operand),leaky_relu"),
    (Gelu, [(2, 16, 12, 12)], "gelu"),
]


@pytest.mark.parametrize("training", (False, True))
@pytest.mark.parametrize(("model", "shapes", "program"), CHAINS, ids=lambda v: getattr(v, "__name__", None))
def test_chains_become_one_call(model, shapes, program, training):
    model, inputs = model(), [torch.randn(shape) for shape in shapes]
    watched = Watched(model)
    with torch.set_grad_enabled(training):
        close(watched(*inputs), model(*inputs))
    assert watched.programs == [program] and watched.others == [] and len(watched.calls) == 1


def errors(model, inputs, cotangent, exact, parameters):
    """Of the output without gradients, the output with them, and the gradients: root mean squares against `exact`."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    with torch.no_grad():
        inference = model(*inputs)
    results = [inference]
    if cotangent is not None:
        output = model(*leaves)
        results += [output, *torch.autograd.grad(output, [*leaves, *parameters], cotangent)]
    pairs = zip(results, [exact[0], *exact], strict=False)
    return [((a.double() - b).square().mean() / b.square().mean()).sqrt().item() for a, b in pairs]


@pytest.mark.parametrize("inner", ("eager", "inductor"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("kind", "shapes", "program"), CHAINS, ids=lambda v: getattr(v, "__name__", None))
def test_chains_are_as_accurate_as_eager(backend, kind, shapes, program, dtype, inner):
    """At most 1.1 times the error of PyTorch's eager mode; nothing can be better than the exact result, rounded.

    Native code sums in another order than ATen; then PyTorch's operations behind convt's layer are a rival as well.
    Gradients through inductor are its own arithmetic: see test_training_through_the_backend.
    """
    model = kind().to(dtype)
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    double = kind().double()
    double.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    wide = [tensor.double().requires_grad_() for tensor in inputs]
    output = double(*wide)
    cotangent = torch.randn_like(output).to(dtype)
    exact = [output, *torch.autograd.grad(output, [*wide, *double.parameters()], cotangent.double())]
    exact = [tensor.detach() for tensor in exact]
    compiled = torch.compile(model, backend="convt", options={"inner": inner})
    facts = inputs, cotangent if inner == "eager" else None, exact, list(model.parameters())
    rounded = [((e.to(dtype).double() - e).square().mean() / e.square().mean()).sqrt().item() for e in exact]
    rivals = errors(model, *facts)
    if backend == "native":
        swapped = convt.accelerate(copy.deepcopy(model))
        layerwise = errors(swapped, *facts[:3], list(swapped.parameters()))
        rivals = [max(pair) for pair in zip(rivals, layerwise, strict=True)]
    for place, (ours, theirs) in enumerate(zip(errors(compiled, *facts), rivals, strict=True)):
        bound = 1.1 * max(theirs, 1.1 * rounded[max(place - 1, 0)])
        assert ours <= bound, f"result {place}: {ours:.3g} against {theirs:.3g}"


# ---- layers ------------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """A block per rank: transposed convolution, frozen batch norm, dropout, activation, twice."""

    def __init__(self, rank):
        super().__init__()
        conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
        self.first = nn.Sequential(conv(3, 6, 3, stride=2), norm(6), nn.Dropout(), nn.ReLU(inplace=True))
        self.second = nn.Sequential(conv(6, 4, 2, groups=2), norm(4, affine=False), nn.SiLU())
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    nn.init.normal_(module.weight)
                    nn.init.normal_(module.bias)

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_frozen_batch_norm_and_gradients_to_its_parameters(rank):
    model = Decoder(rank).eval()
    x = torch.randn(2, 3, *(4,) * rank)
    watched = Watched(model)
    output, expected = watched(x), model(x)
    close(output, expected)
    assert watched.programs == ["mul(operand),add(operand),relu", "mul(operand),add(operand),silu"]
    parameters = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), parameters) for y in (output, expected)), strict=True):
        close(a, b, rtol=1e-3, atol=1e-4)


def test_batch_norm_in_training_is_left_alone():
    model, x = Decoder(2), torch.randn(2, 3, 4, 4)
    watched = Watched(model)
    torch.manual_seed(1)
    output = watched(x)
    mean = model.first[1].running_mean.clone()
    torch.manual_seed(1)
    close(output, model(x))
    assert watched.programs == [] and len(watched.calls) == 2 and not torch.equal(mean, model.first[1].running_mean)


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_layers_in_half_precision_and_channels_last(layout):
    model = Decoder(2).eval().to(torch.bfloat16).to(memory_format=layout)
    x = torch.randn(2, 3, 8, 8).to(torch.bfloat16).to(memory_format=layout)
    watched = Watched(model)
    with torch.no_grad():
        output = watched(x)
        close(output, model(x))
    assert output.stride() == convt.accelerate(model).second[0](model.first(x)).stride()
    assert len(watched.programs) == 2


def test_autocast_regions():
    conv = nn.ConvTranspose2d(3, 4, 3)

    def model(x, residual):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = F.relu(conv(x))  # folded, in bfloat16
            wide = conv(x) + residual  # float32, not folded
            leaving = conv(x)
        return inside, wide, F.relu(leaving)  # the region ends on the way

    x, residual = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 6, 6)
    watched = Watched(model)
    actual, expected = watched(x, residual), model(x, residual)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, rtol=3e-2, atol=3e-2)
    assert watched.programs == ["relu"] and len(watched.calls) == 3


def test_unbatched_input_and_dynamic_shapes():
    model = Gelu()
    watched = Watched(model, dynamic=True)
    for shape in ((16, 7, 9), (16, 11, 8)):
        x = torch.randn(shape)
        close(watched(x), model(x))
    assert set(watched.programs) == {"gelu"}
    watched = Watched(AddHardswish(), dynamic=True)
    for n in (2, 3, 5):
        x, residual = torch.randn(n, 8, 3, 3, 3), torch.randn(n, 12, 6, 6, 6)
        close(watched(x, residual), watched.run._orig_mod(x, residual))
    assert watched.programs == ["add(operand),hardswish"], "one graph for all sizes"


def test_checkpointed_blocks_are_rewritten():
    block = nn.Sequential(nn.ConvTranspose1d(2, 3, 3), nn.Tanh())

    def model(x):
        return torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)

    watched = Watched(model)
    x = torch.randn(2, 2, 5)
    close(watched(x), model(x))
    assert watched.programs == ["tanh"]


def test_convts_own_layers_are_folded():
    model = nn.Sequential(convt.nn.ConvTranspose2d(3, 4, 3), nn.Mish())
    watched = Watched(model)
    x = torch.randn(1, 3, 4, 4)
    close(watched(x), model(x))
    assert watched.programs == ["mish"] and watched.others == []


def test_what_convt_does_not_compute_stays():
    def model(x, weight):
        return F.conv_transpose2d(x, weight) * 2, torch.convolution(x, weight, None, [1], [0], [1], False, [0], 1)

    x, weight = (torch.randn(shape, dtype=torch.complex64) for shape in ((1, 3, 4, 4), (3, 3, 2, 2)))
    watched = Watched(lambda x, w: F.conv_transpose2d(x, w) * 2)
    close(torch.view_as_real(watched(x, weight)), torch.view_as_real(F.conv_transpose2d(x, weight) * 2))
    assert watched.calls == []
    x, weight = x.real.clone(), weight.real.clone()
    watched = Watched(lambda x, w: torch.convolution(x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1))
    close(watched(x, weight), F.conv2d(x, weight))
    assert watched.calls == []
    watched = Watched(lambda x, w: torch.convolution(x, w, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1).relu())
    close(watched(x, weight), F.conv_transpose2d(x, weight, stride=2).relu())
    assert watched.programs == ["relu"]


# ---- other graphs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_exported_programs(rank):
    model = Decoder(rank).eval()
    x = torch.randn(2, 3, *(4,) * rank)
    module = rewrite(torch.export.export(model, (x,)).module())
    programs = [node.args[8] for node in calls(module)]
    assert programs == ["mul(operand),add(operand),relu", "mul(operand),add(operand),silu"]
    close(module(x), model(x))


def test_graphs_that_call_modules():
    """As Dynamo of PyTorch 2.4 makes them."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    model, x = Decoder(2).eval(), torch.randn(2, 3, 4, 4)
    traced = torch.fx.symbolic_trace(model)
    close(rewrite(traced)(x), model(x))
    assert calls(traced) == [], "without values nothing is known"
    FakeTensorProp(traced, FakeTensorMode(allow_non_fake_inputs=True)).propagate(x)
    close(rewrite(traced)(x), model(x))
    programs = [node.args[8] for node in calls(traced)]
    assert programs == ["mul(operand),add(operand),relu", "mul(operand),add(operand),silu"]
    hooked = Decoder(2).eval()
    hooked.first[3].register_forward_hook(lambda module, args, output: output + 1)
    traced = torch.fx.symbolic_trace(hooked)
    FakeTensorProp(traced, FakeTensorMode(allow_non_fake_inputs=True)).propagate(x)
    close(rewrite(traced)(x), hooked(x))


def test_as_a_pass_of_inductor():
    model, x = Gelu(), torch.randn(1, 16, 5, 5)
    with torch._inductor.config.patch(pre_grad_custom_pass=convt.graph.inductor_pass()), torch.no_grad():
        compiled = torch.compile(model, backend="inductor", fullgraph=True)
        close(compiled(x), model(x))
        with torch.profiler.profile() as profile:
            compiled(x)
    assert any(event.key == "convt::forward_epilogue" for event in profile.key_averages())


def test_rewriting_again_changes_nothing():
    graph = rewrite(torch.export.export(Gelu(), (torch.randn(1, 16, 5, 5),)).module())
    before = str(graph.graph)
    assert str(rewrite(graph).graph) == before


# ---- the backend -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ("aot_eager", "inductor"))
def test_training_through_the_backend(inner):
    torch.manual_seed(0)
    model = Decoder(2).eval()
    compiled = torch.compile(model, backend="convt", options={"inner": inner}, fullgraph=True)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    leaves = [x, *model.parameters()]
    for a, b in zip(*(torch.autograd.grad(m(x).square().sum(), leaves) for m in (compiled, model)), strict=True):
        close(a, b, rtol=1e-3, atol=1e-3)


def test_inference_runs_one_kernel():
    model = BiasClampScale()
    compiled = torch.compile(model, backend="convt", mode="max-autotune-no-cudagraphs")
    x = torch.randn(2, 16, 6, 6)
    with torch.no_grad():
        close(compiled(x), model(x))
        with torch.profiler.profile() as profile:
            compiled(x)
    ours = {event.key for event in profile.key_averages() if event.key.startswith("convt::")}
    assert "convt::forward_epilogue" in ours
    assert ours <= {"convt::forward_epilogue", "convt::forward aten", "convt::forward native"}, "the op and its range"


def test_options_of_another_compiler_are_refused():
    compiled = torch.compile(Gelu(), backend="convt", options={"inner": "eager", "max_autotune": True})
    with pytest.raises(Exception, match=r"max_autotune.*are inductor's, not 'eager'"):
        compiled(torch.randn(1, 16, 4, 4))


def test_print_plan_tells_what_was_folded(monkeypatch, capfd):
    monkeypatch.setenv("CONVT_PRINT_PLAN", "1")
    watched = Watched(lambda x, weight, channel: F.gelu(F.conv_transpose2d(x, weight) + channel) ** 2)
    watched(torch.randn(2, 3, 4, 5), torch.randn(3, 5, 2, 2), torch.randn(5, 1, 1))
    told = [line for line in capfd.readouterr().err.splitlines() if "->" in line and "epilogue" in line]
    assert len(told) == 1 and re.fullmatch(
        r"convt: \w+ -> conv_transpose2d with epilogue add tensor, gelu; ends at \w+: no operation of an epilogue",
        told[0],
    )


@pytest.mark.parametrize("imported", (False, True))
def test_the_name_is_an_entry_point(imported, tmp_path):
    """Without an import of convt, as an installed package's metadata say; the import before does no harm."""
    (target,) = re.findall(r'^convt = "(convt[\w.]*:\w+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)[
        1:
    ]
    info = tmp_path / "convt-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: convt\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[torch_dynamo_backends]\nconvt = {target}\n")
    script = f"""
        import sys
        sys.path[:0] = [{str(tmp_path)!r}, {str(Path(convt.__file__).parents[1])!r}]
        import torch
        {"import convt" if imported else ""}
        model = torch.nn.Sequential(torch.nn.ConvTranspose2d(2, 3, 2), torch.nn.ReLU())
        compiled = torch.compile(model, backend="convt", options={{"inner": "eager"}})
        x = torch.randn(1, 2, 3, 3)
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
        assert "convt.graph" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=180)
