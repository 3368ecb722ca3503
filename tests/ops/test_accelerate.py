"""convt.accelerate: what it swaps, what it leaves alone, and that nothing else about a model changes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, remove_spectral_norm, spectral_norm

import convt

KINDS = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
INPUT = torch.randn(2, 3, 5, 5)


def model():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 2, 3, groups=2),
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_rank_also_as_the_root(name):
    module = getattr(nn, name)(2, 3, 3)
    parameters = list(module.parameters())
    assert convt.accelerate(module) is module
    assert type(module) is getattr(convt.nn, name)
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))


def test_same_model_same_parameters_same_results():
    network = model().eval()
    network[1].weight.requires_grad_(False)
    before, state = network(INPUT), copy.deepcopy(network.state_dict())
    parameters, names = list(network.parameters()), [name for name, _ in network.named_modules()]
    text = repr(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    assert convt.accelerate(network) is network
    assert [type(module) for module in network] == [
        nn.Conv2d,
        convt.nn.ConvTranspose2d,
        nn.ReLU,
        convt.nn.ConvTranspose2d,
    ]
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert [name for name, _ in network.named_modules()] == names
    assert repr(network) == text
    assert not any(module.training for module in network.modules())
    assert not network[1].weight.requires_grad
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    torch.testing.assert_close(network(INPUT), before, rtol=1e-4, atol=1e-5)
    network(INPUT).sum().backward()
    optimizer.step()
    assert not torch.equal(network[3].weight, state["3.weight"])


def test_idempotent():
    network = convt.accelerate(model())
    kinds = [type(module) for module in network.modules()]
    assert [type(module) for module in convt.accelerate(network).modules()] == kinds


def test_shared_modules_stay_shared():
    layer = nn.ConvTranspose2d(4, 4, 3, padding=1)
    network = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer, layer)})
    convt.accelerate(network)
    assert network["a"] is network["b"][0] is network["b"][1] is layer
    assert type(layer) is convt.nn.ConvTranspose2d


def test_hooks_of_all_kinds_still_run(backend):
    network = model()
    layer, ran = network[1], []
    layer.register_forward_pre_hook(lambda *a: ran.append("forward_pre"))
    layer.register_forward_hook(lambda *a: ran.append("forward"))
    layer.register_forward_hook(lambda m, a, k, o: ran.append("with_kwargs"), with_kwargs=True)
    layer.register_full_backward_pre_hook(lambda *a: ran.append("backward_pre"))
    layer.register_full_backward_hook(lambda *a: ran.append("backward"))
    layer.register_state_dict_pre_hook(lambda *a: ran.append("state_dict_pre"))
    layer.register_load_state_dict_post_hook(lambda *a: ran.append("load_post"))
    layer.weight.register_hook(lambda grad: ran.append("weight"))
    layer.register_buffer("extra", torch.ones(3))
    convt.accelerate(network)
    network(INPUT).sum().backward()
    network.load_state_dict(network.state_dict())
    expected = {
        "forward_pre",
        "forward",
        "with_kwargs",
        "backward_pre",
        "backward",
        "state_dict_pre",
        "load_post",
        "weight",
    }
    assert set(ran) == expected
    assert "1.extra" in network.state_dict()


class Doubled(nn.ConvTranspose2d):
    def forward(self, input, output_size=None):
        return 2 * super().forward(input, output_size)


def test_unknown_subclasses_are_left_alone():
    network = nn.Sequential(Doubled(3, 4, 3))
    expected = network(INPUT)
    convt.accelerate(network)
    assert type(network[0]) is Doubled
    assert torch.equal(network(INPUT), expected)


def test_a_forward_replaced_on_the_instance_stays():
    layer = nn.ConvTranspose2d(3, 4, 3)
    layer.forward = lambda input: input + 1
    assert torch.equal(convt.accelerate(layer)(INPUT), INPUT + 1)


def test_lazy_modules():
    """Materialised ones are ordinary and swapped; the others stay lazy and become what they always became."""
    network = nn.Sequential(nn.LazyConvTranspose2d(4, 3), nn.LazyConvTranspose2d(5, 3))
    network[0](INPUT)
    convt.accelerate(network)
    assert type(network[0]) is convt.nn.ConvTranspose2d
    assert type(network[1]) is nn.LazyConvTranspose2d
    network(INPUT)
    assert type(network[1]) is nn.ConvTranspose2d
    assert type(convt.accelerate(network)[1]) is convt.nn.ConvTranspose2d


def test_complex_modules_are_left_alone():
    network = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, dtype=torch.complex64))
    convt.accelerate(network)
    assert type(network[0]) is nn.ConvTranspose2d
    assert network(INPUT.cfloat()).dtype is torch.complex64


PARAMETRIZED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "custom": lambda module: parametrize.register_parametrization(module, "weight", Symmetric()),
}


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight + weight.flip(-1)


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrizations(backend, name):
    network = model().eval()
    PARAMETRIZED[name](network[1])
    outside = copy.deepcopy(network)
    expected, parameters = network(INPUT), list(network.parameters())
    convt.accelerate(network)
    layer = network[1]
    assert isinstance(layer, convt.nn.ConvTranspose2d)
    assert type(layer).__name__ == "ParametrizedConvTranspose2d"
    assert parametrize.is_parametrized(layer, "weight")
    assert parametrize.type_before_parametrizations(layer) is convt.nn.ConvTranspose2d
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    torch.testing.assert_close(network(INPUT), expected, rtol=1e-4, atol=1e-5)
    assert not isinstance(outside[1], convt.nn.ConvTranspose2d), "a copy made before must not change"
    torch.testing.assert_close(outside(INPUT), expected)
    twin = copy.deepcopy(network)
    assert isinstance(twin[1], convt.nn.ConvTranspose2d)
    torch.testing.assert_close(twin(INPUT), network(INPUT))
    network.train()(INPUT).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parametrizations.parameters())
    convt.accelerate(network.eval())
    weight = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is convt.nn.ConvTranspose2d
    torch.testing.assert_close(layer.weight, weight)


def test_parametrized_after_the_swap():
    layer = parametrizations.weight_norm(convt.accelerate(nn.ConvTranspose2d(3, 4, 3)))
    layer(INPUT)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is convt.nn.ConvTranspose2d


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", (nn.utils.weight_norm, spectral_norm))
def test_hook_style_norms(norm):
    """The older utilities keep a plain tensor as `weight` and recompute it in a forward pre-hook."""
    layer = norm(nn.ConvTranspose2d(3, 4, 3)).eval()
    expected = layer(INPUT)
    convt.accelerate(layer)
    torch.testing.assert_close(layer(INPUT), expected, rtol=1e-4, atol=1e-5)
    (nn.utils.remove_weight_norm if norm is nn.utils.weight_norm else remove_spectral_norm)(layer)
    assert isinstance(layer.weight, nn.Parameter)


def test_deepcopy_pickle_and_save():
    network = convt.accelerate(model())
    expected = network(INPUT)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), torch.load(file, weights_only=False)):
        assert [type(m) for m in other.modules()] == [type(m) for m in network.modules()]
        torch.testing.assert_close(other(INPUT), expected, rtol=1e-4, atol=1e-5)


def test_training_follows_the_same_path(backend):
    """Ten steps of Adam, before and after."""
    losses = []
    for swap in (False, True):
        torch.manual_seed(0)
        network = model().double()
        if swap:
            convt.accelerate(network)
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            loss = (network(INPUT.double()) - 1).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
