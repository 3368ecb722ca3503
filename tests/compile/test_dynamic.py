"""Variable sizes under torch.compile: one graph for a hundred lengths of audio, and nothing compiled again."""

from __future__ import annotations

import random

import pytest
import torch
import torch._dynamo.testing
from torch._dynamo.utils import counters

import convt

LENGTHS = random.Random(0).sample(range(5, 400), 100)


class Vocoder(torch.nn.Module):
    """Upsampling as in audio decoders: wide filters, strides that multiply, the last one without a bias."""

    def __init__(self, nn=convt.nn):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(
            (nn.ConvTranspose1d(8, 4, 16, stride=8, padding=4), nn.ConvTranspose1d(4, 2, 4, 2, padding=1, bias=False))
        )

    def forward(self, mel):
        for layer in self.layers:
            mel = layer(torch.nn.functional.leaky_relu(mel, 0.1))
        return mel.tanh()


def step(model, input):
    for parameter in model.parameters():
        parameter.grad = None
    input.grad = None
    output = model(input.requires_grad_())
    output.square().sum().backward()
    return output, input.grad, *(parameter.grad for parameter in model.parameters())


def check(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# How lengths become dynamic, with the number of graphs that this takes: the second length is what tells Dynamo.
WAYS = {"mark_dynamic": 1, "dynamic=True": 1, "automatic": 2}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
def test_a_hundred_lengths(device, compiler, way, training):
    lengths = LENGTHS if compiler == "aot_eager" else LENGTHS[:20]
    model, reference = Vocoder().to(device), Vocoder(torch.nn).to(device)
    compiled = torch.compile(model, fullgraph=True, backend=compiler, dynamic=True if way == "dynamic=True" else None)
    for length in lengths:
        input = torch.randn(2, 8, length, device=device)
        if way == "mark_dynamic":
            torch._dynamo.mark_dynamic(input, 2)
        if training:
            check(step(compiled, input), step(reference, input))
        else:
            with torch.no_grad():
                check([compiled(input)], [reference(input)])
    assert counters["stats"]["unique_graphs"] == WAYS[way]
    assert not counters["graph_break"]


def test_nothing_is_compiled_again():
    """Batch and length at once, with the mode in which any recompilation is an error."""
    model = Vocoder()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, length in ((3, 21), (2, 400), (17, 5), (4, 4), (2, 2)):
            input = torch.randn(batch, 8, length)
            torch._dynamo.mark_dynamic(input, 0)
            torch._dynamo.mark_dynamic(input, 2)
            check(step(compiled, input), step(model, input))


def test_guards_on_a_dynamic_size_are_the_ones_of_a_legal_call():
    """Nothing is asked about a length but that there is one: it has no upper bound, and no remainder matters."""
    length = torch.export.Dim("length", min=1)
    program = torch.export.export(Vocoder(), (torch.randn(2, 8, 30),), dynamic_shapes=({2: length},), strict=False)
    (bounds,) = program.range_constraints.values()
    assert (bounds.lower, bounds.upper.is_infinite) == (1, True) or bounds.upper > 2**40


@pytest.mark.parametrize("rank", (2, 3))
@pytest.mark.parametrize("layout", (torch.contiguous_format, "channels_last"), ids=("contiguous", "channels_last"))
def test_images_of_any_size(rank, layout):
    if layout == "channels_last":
        layout = torch.channels_last if rank == 2 else torch.channels_last_3d
    kind = convt.nn.ConvTranspose2d if rank == 2 else convt.nn.ConvTranspose3d
    # No extent equal to one of the input's: PyTorch would take them for one symbol.
    module = kind(6, 11, 3, stride=2, padding=1, output_padding=1)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, *size in ((2, 5, 7, 4), (3, 8, 5, 5), (5, 4, 9, 8), (4, 7, 8, 9)):
        input = torch.randn(batch, 6, *size[:rank]).to(memory_format=layout)
        results = step(compiled, input)
        assert results[0].is_contiguous(memory_format=layout) and results[1].is_contiguous(memory_format=layout)
        check(results, step(module, input))
    assert counters["stats"]["unique_graphs"] == 1


def test_any_output_size():
    """The output padding that reaches it is a symbol too."""
    module = convt.nn.ConvTranspose1d(3, 4, 5, stride=4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for length, extra in ((7, 2), (9, 3), (20, 2), (31, 3)):
        size = [(length - 1) * 4 + 5 + extra]
        input = torch.randn(2, 3, length)
        check([compiled(input, output_size=size)], [module(input, output_size=size)])
    assert counters["stats"]["unique_graphs"] == 1


def test_a_length_that_only_the_data_knows():
    """Unbacked: the frames that are voiced, however many there are."""

    def function(input, voiced, weight):
        (frames,) = voiced.nonzero(as_tuple=True)
        torch._check(frames.shape[0] >= 1)
        return convt.conv_transpose1d(input.index_select(2, frames), weight, stride=2)

    weight = torch.randn(3, 4, 5)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for count in (3, 8, 5):
            input, voiced = torch.randn(2, 3, 10), torch.arange(10) < count
            check([compiled(input, voiced, weight)], [function(input, voiced, weight)])
    assert counters["stats"]["unique_graphs"] == 1
