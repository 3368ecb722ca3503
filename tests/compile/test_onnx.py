"""ONNX export: ConvTranspose with the right attributes, and convt's values where the model is run."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import convt
import convt.onnx
from graphs import targets

FUNCTIONS = {1: convt.conv_transpose1d, 2: convt.conv_transpose2d, 3: convt.conv_transpose3d}
SIZES = {1: (7,), 2: (5, 4), 3: (3, 4, 2)}


def exported(module, args, **options):
    """The module as an ONNX model."""
    return torch.onnx.export(
        module.eval(),
        args,
        dynamo=True,
        verbose=False,
        custom_translation_table=convt.onnx.translation_table(),
        **options,
    ).model_proto


def by_onnxruntime(model, *inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {told.name: tensor.numpy() for told, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, feed)]


def by_onnx(model, *inputs):
    """onnx's own definition of the operators."""
    feed = {told.name: tensor.numpy() for told, tensor in zip(model.graph.input, inputs, strict=True)}
    return [torch.from_numpy(np.asarray(output)) for output in ReferenceEvaluator(model).run(None, feed)]


def layers(model):
    """The attributes of every ConvTranspose of a model."""
    return [
        {told.name: told.i if told.name == "group" else list(told.ints) for told in node.attribute}
        for node in model.graph.node
        if node.op_type == "ConvTranspose"
    ]


class Calls(torch.nn.Module):
    """The same input through one call after another."""

    def __init__(self, rank, *calls):
        super().__init__()
        torch.manual_seed(0)
        self.rank, self.calls = rank, calls
        self.weights = torch.nn.ParameterList(
            torch.randn(4, 6 // call.get("groups", 1), *(3, 2, 4)[:rank]) for call in calls
        )
        self.biases = torch.nn.ParameterList(torch.randn(6) for _ in calls)

    def forward(self, input):
        return [
            FUNCTIONS[self.rank](input, weight, bias if index % 2 else None, **call)
            for index, (weight, bias, call) in enumerate(zip(self.weights, self.biases, self.calls, strict=True))
        ]


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_values_and_attributes(rank):
    calls = (
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": (3, 2, 1)[:rank], "groups": 2, "dilation": (1, 2, 2)[:rank], "padding": (0, 1, 2)[:rank]},
    )
    module, input = Calls(rank, *calls), torch.randn(2, 4, *SIZES[rank])
    model = exported(module, (input,))
    expected = module(input)
    for output, value in zip(by_onnxruntime(model, input), expected, strict=True):
        torch.testing.assert_close(output, value, rtol=1e-4, atol=1e-4)
    told = layers(model)
    filters = [3, 2, 4][:rank]
    assert told[1]["strides"] == [2] * rank and told[1]["pads"] == [1] * 2 * rank
    assert told[1]["output_padding"] == [1] * rank
    assert told[2]["dilations"] == [1, 2, 2][:rank] and told[2]["group"] == 2
    assert [entry["kernel_shape"] for entry in told] == [filters] * 3
    assert [len(node.input) for node in model.graph.node if node.op_type == "ConvTranspose"] == [2, 3, 2]


@pytest.mark.parametrize("rank", (1, 2, 3))
def test_output_padding_of_a_stride_or_more(rank):
    """Legal below the dilation in PyTorch, and not in ONNX: said by pads, and by zeros where those do not reach."""
    calls = (
        {"dilation": 3, "output_padding": 2, "padding": 2},
        {"dilation": 3, "output_padding": 2, "padding": 1},
        {"dilation": 5, "output_padding": 4, "stride": 2},
        {"dilation": 4, "output_padding": (0, 3, 1)[:rank], "stride": (2, 1, 3)[:rank], "groups": 2},
    )
    module, input = Calls(rank, *calls), torch.randn(2, 4, *SIZES[rank])
    model = exported(module, (input,))
    for output, value in zip(by_onnxruntime(model, input), module(input), strict=True):
        torch.testing.assert_close(output, value, rtol=1e-4, atol=1e-4)
    for attributes in layers(model):
        pairs = zip(attributes["output_padding"], attributes["strides"], strict=True)
        assert all(more < stride for more, stride in pairs) and min(attributes["pads"]) >= 0


def test_a_model_of_any_length():
    module = torch.nn.Sequential(
        convt.nn.ConvTranspose1d(4, 6, 8, stride=4, padding=2), torch.nn.LeakyReLU(0.1),
        convt.nn.ConvTranspose1d(6, 2, 3, output_padding=1, dilation=2, bias=False), torch.nn.Tanh(),
    )  # fmt: skip
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("length")}
    model = exported(module, (torch.randn(2, 4, 9),), dynamic_shapes=(dims,))
    for batch, length in ((3, 9), (1, 30), (5, 2)):
        input = torch.randn(batch, 4, length)
        (output,) = by_onnxruntime(model, input)
        torch.testing.assert_close(output, module(input), rtol=1e-4, atol=1e-4)


def test_operands_that_are_inputs():
    """Unbatched, in float64, with a weight that the graph computes; decomposed, it is convt::forward."""

    class Model(torch.nn.Module):
        def forward(self, input, weight, bias):
            return convt.conv_transpose2d(input, weight * 2, bias, stride=(2, 1), output_padding=(1, 0))

    args = torch.randn(4, 5, 3).double(), torch.randn(4, 3, 2, 2).double(), torch.randn(3).double()
    program = torch.export.export(Model(), args)
    (output,) = by_onnx(exported(Model(), args), *args)
    torch.testing.assert_close(output, Model()(*args))
    lowered = program.run_decompositions()
    assert "convt.forward.default" in targets(lowered.graph)
    model = torch.onnx.export(
        lowered, dynamo=True, verbose=False, custom_translation_table=convt.onnx.translation_table()
    ).model_proto
    torch.testing.assert_close(by_onnx(model, *args)[0], Model()(*args))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_16_bit(dtype):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = convt.nn.ConvTranspose2d(4, 3, 3, stride=2, dtype=dtype)

        def forward(self, input):
            return self.up(input.to(dtype)).float()

    module, input = Model(), torch.randn(4, 5, 6)
    (output,) = by_onnxruntime(exported(module, (input,)), input)
    torch.testing.assert_close(output, module(input), rtol=1e-2, atol=1e-2)


def test_a_number_that_is_none():
    """An output padding that depends on a dynamic size has no place in an attribute."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = convt.nn.ConvTranspose1d(4, 3, 5, stride=4)

        def forward(self, input, like):
            return self.up(input, output_size=[like.shape[2]])

    args = torch.randn(2, 4, 9), torch.randn(2, 3, 39)
    dims = {2: torch.export.Dim.AUTO}, {2: torch.export.Dim.AUTO}
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(Model(), args, dynamic_shapes=dims)
    chain, error = [], caught.value
    while error is not None:
        chain, error = [*chain, str(error)], error.__cause__
    assert "takes output_padding as numbers" in "\n".join(chain)
