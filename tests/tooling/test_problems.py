"""The five problems: KernelBench's shapes, and ModelNew in Model's place."""

import math

import pytest
import torch

import convt
from convt import problems
from convt.testing import problem_of

# Number: input and output of the real problem, billions of floating-point operations.
SHAPES = {
    64: ((64, 128, 65536), (64, 128, 65538), 412.317),
    79: ((16, 32, 131072), (16, 64, 262145), 25.770),
    71: ((8, 32, 512, 1024), (8, 32, 514, 1026), 77.309),
    81: ((16, 32, 64, 128), (16, 64, 318, 638), 4.832),
    68: ((16, 32, 64, 64, 64), (16, 64, 66, 68, 68), 1288.490),
}


def layer_of(model):
    (layer,) = model.children()
    return layer


@pytest.mark.parametrize("number", problems.NUMBERS)
def test_shapes_are_kernelbenchs(number):
    source = problems.load(number)
    with torch.device("meta"):
        (input,) = source.get_inputs()
        (small,) = source.get_inputs(**source.reduced)
    layer = layer_of(source.Model(*source.get_init_inputs()))
    problem = problem_of(layer, input.shape)
    assert (problem.input_size, problem.output_size) == SHAPES[number][:2]
    assert 2e-9 * problem.macs == pytest.approx(SHAPES[number][2], abs=1e-3)
    assert layer.bias is None
    assert small.shape[1] == input.shape[1]
    assert small.ndim == input.ndim
    assert math.prod(small.shape) * 4 <= 64 << 20


@pytest.mark.parametrize("number", problems.NUMBERS)
def test_model_new_takes_models_place(number):
    source = problems.load(number)
    model, new = source.Model(*source.get_init_inputs()), source.ModelNew(*source.get_init_inputs())
    assert new.load_state_dict(model.state_dict()) == torch.nn.modules.module._IncompatibleKeys([], [])
    assert type(layer_of(model)).__module__.startswith("torch.")
    assert type(layer_of(new)) is getattr(convt.nn, type(layer_of(model)).__name__)
    (input,) = source.get_inputs(batch_size=2, spatial=(5,) * layer_of(model).weight[0, 0].ndim)
    assert input.min() >= 0, "KernelBench draws from [0, 1)"
    with convt.backend("native"):
        torch.testing.assert_close(new(input), model(input))


def test_an_unknown_number_is_named():
    with pytest.raises(ValueError, match="57"):
        problems.load(57)
