"""What PyTorch wraps around modules and graphs: parametrizations, checkpoints, fakes, copies, compiled autograd."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import convt

RANKS = (1, 2, 3)
SPACE = (5, 4, 3)


def twins(rank, groups=2, accelerated=False):
    """convt's module and PyTorch's with the same parameters, in float64, and an input."""
    name = f"ConvTranspose{rank}d"
    theirs = getattr(torch.nn, name)(4, 6, 3, stride=2, padding=1, groups=groups).double()
    ours = copy.deepcopy(theirs) if accelerated else getattr(convt.nn, name)(4, 6, 3, 2, 1, groups=groups).double()
    if accelerated:
        convt.accelerate(ours)
    assert isinstance(ours, getattr(convt.nn, name))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, torch.randn(2, 4, *SPACE[:rank], dtype=torch.float64)


def decoder():
    """Two layers of different geometry and equal shapes of weight, something between them."""
    return torch.nn.Sequential(
        convt.nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1),
        torch.nn.Tanh(),
        convt.nn.ConvTranspose2d(4, 4, 3, dilation=2, output_padding=1),
    ).double()


def gradients(model, input):
    return torch.autograd.grad(model(input).square().sum(), list(model.parameters()))


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


# ---- parametrizations ------------------------------------------------------------------------------------------------

PARAMETRIZED = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm-1": lambda module: parametrizations.weight_norm(module, dim=1),
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old-weight_norm": torch.nn.utils.weight_norm,
    "old-spectral_norm": torch.nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("order", ("own", "accelerate-first", "accelerate-last"))
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrizations_treat_the_modules_as_torchs(backend, name, rank, order):
    """The same parameters along the same axis, values, gradients, buffers of the power method, before and after."""
    ours, theirs, input = twins(rank, accelerated=order == "accelerate-first")
    if order == "accelerate-last":
        ours = copy.deepcopy(theirs)
    for module in (ours, theirs):
        torch.manual_seed(3)
        PARAMETRIZED[name](module)
    if order == "accelerate-last":
        convt.accelerate(ours)
        assert isinstance(ours, getattr(convt.nn, f"ConvTranspose{rank}d"))
    for _ in range(2):  # spectral_norm moves its buffers in training mode
        assert_same((ours(input), *gradients(ours, input)), (theirs(input), *gradients(theirs, input)))
    state, other = ours.state_dict(), theirs.state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in other.items()}
    assert_same(state.values(), other.values())
    theirs.load_state_dict(state, strict=True)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        assert_same([ours(input)], [theirs(input)])
    if parametrize.is_parametrized(ours):
        expected = ours(input)
        parametrize.remove_parametrizations(ours, "weight")
        assert type(ours) is getattr(convt.nn, f"ConvTranspose{rank}d")
        assert_same([ours(input)], [expected])


@pytest.mark.parametrize("rank", RANKS)
def test_spectral_norm_is_taken_along_output_channels(rank):
    """dim=1, as for PyTorch's transposed convolutions; its other modules have 0."""
    module = getattr(convt.nn, f"ConvTranspose{rank}d")(4, 6, 3)
    parametrizations.spectral_norm(module)
    assert module.parametrizations.weight[0].dim == 1


def test_pruning(backend):
    ours, theirs, input = twins(2)
    for module in (ours, theirs):
        prune.ln_structured(module, "weight", 0.5, n=2, dim=1)
        prune.l1_unstructured(module, "bias", 2)
    assert_same((ours(input), *gradients(ours, input)), (theirs(input), *gradients(theirs, input)))
    for module in (ours, theirs):
        prune.remove(module, "weight")
    assert_same([ours(input)], [theirs(input)])


# ---- checkpoints and hooks -------------------------------------------------------------------------------------------


class Seen(TorchDispatchMode):
    """The names of convt's ops that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "convt":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


FORWARD = torch.ops.convt.forward.default


def keeps_convolutions(_, op, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if op is FORWARD else CheckpointPolicy.PREFER_RECOMPUTE


CHECKPOINTS = {
    "plain": ({"use_reentrant": False}, 2),
    "not-checked": ({"use_reentrant": False, "determinism_check": "none"}, 2),
    "no-early-stop": ({"use_reentrant": False, "preserve_rng_state": False}, 2),
    "reentrant": ({"use_reentrant": True}, 2),
    "list": ({"use_reentrant": False, "context_fn": lambda: create_selective_checkpoint_contexts([FORWARD])}, 0),
    "policy": (
        {"use_reentrant": False, "context_fn": lambda: create_selective_checkpoint_contexts(keeps_convolutions)},
        0,
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(backend, name):
    """Same gradients; the convolutions run again unless the policy keeps their outputs."""
    keywords, again = CHECKPOINTS[name]
    model, input = decoder(), torch.randn(2, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(model(input).square().sum(), [input, *model.parameters()])
    loss = checkpoint(model, input, **keywords).square().sum()
    with Seen() as seen:
        loss.backward()
    assert_same([input.grad, *(parameter.grad for parameter in model.parameters())], expected)
    assert seen.names.count("forward") == again
    if backend == "native":  # PyTorch's own nodes need none of ours
        assert seen.names.count("grad_weight") == seen.names.count("grad_input") == seen.names.count("grad_bias") == 2


def test_checkpoint_of_a_compiled_model(native):
    torch._dynamo.reset()
    model, input = decoder(), torch.randn(2, 4, 3, 4, dtype=torch.float64)
    expected = gradients(model, input)
    compiled = torch.compile(
        lambda x: checkpoint(model, x, use_reentrant=False), fullgraph=True, backend="aot_eager_decomp_partition"
    )
    assert_same(torch.autograd.grad(compiled(input).square().sum(), list(model.parameters())), expected)


def test_saved_tensors_can_live_elsewhere(backend):
    model, input = decoder(), torch.randn(2, 4, 3, 4, dtype=torch.float64)
    expected = gradients(model, input)
    with torch.autograd.graph.save_on_cpu():
        assert_same(gradients(model, input), expected)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.numpy().copy(), torch.from_numpy):
        assert_same(gradients(model, input.detach()), expected)


def test_saved_tensors_hooks_may_be_refused(backend):
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        gradients(decoder(), torch.randn(1, 4, 3, 3, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_hooks_and_nodes(backend):
    """Hooks of tensors, nodes and modules see what they see at PyTorch's own modules."""
    ours, theirs, input = twins(2)
    seen = {}
    for label, module in (("ours", ours), ("theirs", theirs)):
        log = seen[label] = []
        leaf = input.clone().requires_grad_()
        handles = [
            module.register_full_backward_hook(lambda m, g_in, g_out, log=log: log.extend((*g_in, *g_out))),
            module.register_full_backward_pre_hook(lambda m, g_out, log=log: log.extend(g_out)),
            module.weight.register_hook(lambda grad, log=log: log.append(grad)),
            module.weight.register_post_accumulate_grad_hook(lambda p, log=log: log.append(p.grad.clone())),
            module.register_forward_hook(lambda m, args, output, log=log: log.append(output.detach())),
        ]
        output = module(leaf)
        log.append(output.detach())
        output.square().sum().backward(retain_graph=True)
        output.square().sum().backward()
        log.append(leaf.grad)
        for handle in handles:
            handle.remove()
    assert len(seen["ours"]) == len(seen["theirs"]) > 10
    assert_same(seen["ours"], seen["theirs"])
    node = ours(input.requires_grad_()).grad_fn
    assert node.name() == {"native": "ContractionBackward", "aten": "ConvolutionBackward0"}[backend]
    kinds = [type(edge).__name__ for edge, _ in node.next_functions if edge is not None]
    assert kinds == ["AccumulateGrad"] * 3
    captured = []
    output = ours(input)
    output.grad_fn.register_prehook(lambda grads: captured.append(grads[0].shape))
    output.sum().backward()
    assert captured == [output.shape]
    with torch.autograd.detect_anomaly(check_nan=True):
        ours(input).sum().backward()


def test_a_graph_is_freed_with_its_backward(backend):
    output = decoder()(torch.randn(1, 4, 3, 3, dtype=torch.float64)).sum()
    output.backward()
    with pytest.raises(RuntimeError, match="second time"):
        output.backward()


# ---- compiled autograd -----------------------------------------------------------------------------------------------

needs_compiled_autograd = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "compiled_autograd"), reason="compiled autograd's switch is younger"
)


@needs_compiled_autograd
@pytest.mark.parametrize("place", ("inside", "outside"))
def test_compiled_autograd(native, place):
    """A whole backward pass in one graph; another geometry of the same shapes is not taken for the one before."""
    torch._dynamo.reset()

    def step(model, input):
        model(input).square().sum().backward()

    for stride, dilation in ((1, 1), (2, 1), (1, 2)):
        kind = convt.nn.ConvTranspose1d
        model = torch.nn.Sequential(kind(3, 3, 3, padding=1), kind(3, 3, 3, stride, dilation=dilation)).double()
        input = torch.randn(2, 3, 5, dtype=torch.float64)
        expected = gradients(model, input)
        if place == "inside":
            with torch._dynamo.config.patch(compiled_autograd=True):
                torch.compile(step, backend="aot_eager")(model, input)
        else:
            loss = model(input).square().sum()
            with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
                loss.backward()
        assert_same([parameter.grad for parameter in model.parameters()], expected)


# ---- tensors without data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
def test_meta_modules(backend, rank):
    """Shapes and gradients without data; then data, by to_empty or by assignment."""
    real, _, input = twins(rank)
    with torch.device("meta"):
        module = type(real)(4, 6, 3, 2, 1, groups=2, dtype=torch.float64)
        output = module(torch.empty(input.shape, dtype=torch.float64))
    assert output.is_meta and output.shape == real(input).shape and output.stride() == real(input).stride()
    module(torch.empty_like(input, device="meta")).sum().backward()
    assert module.weight.grad.is_meta and module.weight.grad.shape == real.weight.shape
    assigned = copy.deepcopy(module)
    assigned.load_state_dict(real.state_dict(), assign=True)
    assert_same([assigned(input)], [real(input)])
    module.to_empty(device="cpu")
    module.reset_parameters()
    assert module(input).isfinite().all()


def test_fake_tensors(backend):
    real, _, input = twins(2)
    expected = real(input)
    with FakeTensorMode() as mode:
        module = convt.nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2, dtype=torch.float64)
        output = module(mode.from_tensor(input))
        output.sum().backward()
    assert output.shape == expected.shape and output.stride() == expected.stride() and output.device == input.device
    assert module.weight.grad.shape == real.weight.shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for tensor in (mode.from_tensor(input), input):
            assert real(tensor).shape == expected.shape
        assert isinstance(real(mode.from_tensor(input)), torch._subclasses.FakeTensor)
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match="channels"):
        convt.conv_transpose1d(torch.empty(1, 2, 3), torch.empty(3, 2, 3))


def test_skip_init_and_lazy_parameters(backend):
    real, _, input = twins(2)
    module = torch.nn.utils.skip_init(convt.nn.ConvTranspose2d, 4, 6, 3, 2, 1, groups=2, dtype=torch.float64)
    module.load_state_dict(real.state_dict())
    assert_same([module(input)], [real(input)])


# ---- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accelerated", (False, True), ids=("own", "accelerated"))
def test_copies(backend, accelerated):
    """deepcopy, pickle, torch.save with and without weights_only; independent of the original."""
    module, _, input = twins(2, accelerated=accelerated)
    expected = module(input)
    saved = io.BytesIO()
    torch.save(module, saved)
    others = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    others.append(torch.load(io.BytesIO(saved.getvalue()), weights_only=False))
    if hasattr(torch.serialization, "safe_globals"):  # torch 2.5
        with torch.serialization.safe_globals([type(module)]):
            others.append(torch.load(io.BytesIO(saved.getvalue()), weights_only=True))
    for other in others:
        assert type(other) is type(module) is convt.nn.ConvTranspose2d
        assert_same([other(input)], [expected])
        with torch.no_grad():
            other.weight.zero_()
    assert_same([module(input)], [expected])
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    fresh = torch.nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2).double()
    fresh.load_state_dict(torch.load(io.BytesIO(saved.getvalue()), weights_only=True))
    assert_same([fresh(input)], [expected])


def test_copies_of_a_parametrized_module(backend):
    module, _, input = twins(2, accelerated=True)
    parametrizations.weight_norm(module)
    duplicate = copy.deepcopy(module)
    with torch.no_grad():
        module.parametrizations.weight.original0.mul_(2)
    assert_same([module(input) - module.bias.view(-1, 1, 1)], [2 * (duplicate(input) - duplicate.bias.view(-1, 1, 1))])


def test_averaged_models(backend):
    model, input = decoder(), torch.randn(2, 4, 3, 4, dtype=torch.float64)
    for average in (AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))):
        average.update_parameters(model)
        with torch.no_grad():
            model[0].weight.add_(1)
        average.update_parameters(model)
        update_bn([input], average)
        assert not torch.equal(average.module[0].weight, model[0].weight)
        assert average(input).shape == model(input).shape


def train_elsewhere(model, input):
    """What a worker process does with a shared model: one step in place."""
    torch.set_num_threads(1)
    loss = model(input).square().sum()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad, alpha=1e-2)


def test_shared_memory():
    """A spawned process trains the parameters of this one."""
    model, input = decoder(), torch.randn(2, 4, 3, 4, dtype=torch.float64)
    expected = copy.deepcopy(model)
    train_elsewhere(expected, input)
    model.share_memory()
    assert all(parameter.is_shared() for parameter in model.parameters())
    process = multiprocessing.get_context("spawn").Process(target=train_elsewhere, args=(model, input))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert_same(model.parameters(), expected.parameters())
