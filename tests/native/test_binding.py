"""What the binding refuses by itself: whatever would read or write outside a tensor."""

from __future__ import annotations

import pytest
import torch

from convt import _C

SHARED = (1,), (0,), (0,), 1, (1,)


def tensors():
    return torch.ones(2, 3, 5), torch.ones(3, 4, 3), torch.ones(2, 4, 7)


def test_legal_tensors_are_taken():
    input, weight, output = tensors()
    _C.forward(input, weight, None, output, *SHARED)
    _C.forward(input, weight, torch.ones(4), output, *SHARED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, y: (x, w, torch.ones(2, 4, 8)), "output has the wrong sizes"),
        (lambda x, w, y: (x, w, torch.ones(2, 5, 7)), "output has the wrong sizes"),
        (lambda x, w, y: (x, w, y.double()), "output has another dtype"),
        (lambda x, w, y: (x.int(), w, y), "input must be float32, float64, bfloat16 or float16"),
        (lambda x, w, y: (x[0], w, y), "weight has 3 axes"),
        (lambda x, w, y: (x[:, :2], w, y), "weight must be"),
        (lambda x, w, y: (x.to("meta"), w, y), "input"),
        (lambda x, w, y: (x.to_sparse(), w, y), "input is not a strided tensor"),
        (lambda x, w, y: ([1.0], w, y), "input is not a strided tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    input, weight, output = change(*tensors())
    with pytest.raises(ValueError, match=message):
        _C.forward(input, weight, None, output, *SHARED)


@pytest.mark.parametrize(
    "shared",
    [
        ((0,), (0,), (0,), 1, (1,)),
        ((1,), (-1,), (0,), 1, (1,)),
        ((1,), (9,), (0,), 1, (1,)),
        ((1,), (0,), (0,), 2, (1,)),
        ((1,), (0,), (0,), 0, (1,)),
        ((1, 1), (0,), (0,), 1, (1,)),
        ((2**40,), (0,), (0,), 1, (1,)),
        ((2**62,), (0,), (0,), 1, (1,)),
    ],
)
def test_illegal_geometry_is_refused(shared):
    input, weight, output = tensors()
    with pytest.raises(ValueError):
        _C.forward(input, weight, None, output, *shared)


def test_a_wrong_bias_is_refused():
    input, weight, output = tensors()
    with pytest.raises(ValueError, match="bias"):
        _C.forward(input, weight, torch.ones(3), output, *SHARED)


def test_an_empty_batch_gives_empty_results_and_a_zero_gradient():
    input, weight, grad_output = torch.empty(0, 3, 5), torch.ones(3, 4, 3), torch.empty(0, 4, 7)
    _C.forward(input, weight, None, grad_output, *SHARED)
    _C.grad_input(grad_output, weight, input, *SHARED)
    grad_weight, grad_bias = torch.full_like(weight, torch.nan), torch.full((4,), torch.nan)
    _C.grad_weight(grad_output, input, grad_weight, *SHARED)
    _C.grad_bias(grad_output, grad_bias)
    assert grad_weight.count_nonzero() == 0 and grad_bias.count_nonzero() == 0


def test_an_unknown_instruction_set_is_refused_by_name():
    with pytest.raises(ValueError, match=r"isa is 'mmx'; this build on this machine has: .*baseline"):
        _C.set_isa("mmx")


def test_every_usable_instruction_set_can_be_chosen():
    assert _C.isas()[-1] == "baseline"
    for isa in (*reversed(_C.isas()), _C.isas()[0]):
        _C.set_isa(isa)
        assert _C.isa() == isa
