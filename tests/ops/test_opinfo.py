"""PyTorch's own OpInfo samples for nn.functional.conv_transpose{1,2,3}d, run against convt."""

from __future__ import annotations

import pytest
import torch

import convt
from reference import assert_accurate, conv_transpose, results, torch_results

methods = pytest.importorskip("torch.testing._internal.common_methods_invocations", reason="it needs expecttest")
OPS = [op for op in methods.op_db if op.name.startswith("nn.functional.conv_transpose")]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def ours(op):
    return getattr(convt, op.name.rpartition(".")[2])


def samples(op, dtype, requires_grad=False):
    return list(op.sample_inputs("cpu", dtype, requires_grad=requires_grad))


def test_all_three_are_there():
    assert sorted(op.name for op in OPS) == [f"nn.functional.conv_transpose{n}d" for n in (1, 2, 3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.aten_name)
def test_samples(backend, op, dtype):
    for source in (op.sample_inputs, op.reference_inputs):
        for sample in source("cpu", dtype):
            actual = ours(op)(sample.input, *sample.args, **sample.kwargs)
            theirs = op(sample.input, *sample.args, **sample.kwargs)
            batch = sample.input if sample.input.dim() == sample.args[0].dim() else sample.input[None]
            exact = conv_transpose(batch, *sample.args, **whole(sample.kwargs, batch.dim() - 2)).view(theirs.shape)
            assert_accurate(actual, exact, theirs, str(sample))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.aten_name)
def test_samples_on_a_gpu(op, dtype):
    with convt.backend("native"), convt.precision("ieee"), convt.settings.cudnn_precision("ieee"):
        for source in (op.sample_inputs, op.reference_inputs):
            for sample in source("cuda", dtype):
                actual = ours(op)(sample.input, *sample.args, **sample.kwargs)
                theirs = op(sample.input, *sample.args, **sample.kwargs)
                batch = sample.input if sample.input.dim() == sample.args[0].dim() else sample.input[None]
                exact = conv_transpose(batch, *sample.args, **whole(sample.kwargs, batch.dim() - 2)).view(theirs.shape)
                assert actual.is_cuda
                assert_accurate(actual, exact, theirs, str(sample))


def whole(keywords, rank):
    return {k: v * rank if isinstance(v, tuple) and len(v) == 1 else v for k, v in keywords.items()}


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.aten_name)
def test_noncontiguous_samples(backend, op):
    for sample in samples(op, torch.float64):
        odd = sample.noncontiguous()
        torch.testing.assert_close(
            ours(op)(odd.input, *odd.args, **odd.kwargs), op(sample.input, *sample.args, **sample.kwargs)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.aten_name)
def test_gradients_of_samples(backend, op, dtype):
    for sample in samples(op, dtype, requires_grad=True):
        tensors = [t for t in (sample.input, *sample.args) if t is not None]
        grad = torch.randn_like(op(sample.input, *sample.args, **sample.kwargs))

        def definition(input, weight, bias=None, keywords=sample.kwargs):
            batch = input if input.dim() == weight.dim() else input[None]
            output = conv_transpose(batch, weight, bias, **whole(keywords, batch.dim() - 2))
            return output if input.dim() == weight.dim() else output[0]

        actual = results(ours(op), tensors, grad, **sample.kwargs)
        theirs = torch_results(op, tensors, grad, **sample.kwargs)
        exact = results(definition, [tensor.double() for tensor in tensors], grad)
        for label, a, e, t in zip(("output", "input", "weight", "bias"), actual, exact, theirs, strict=False):
            assert_accurate(a, e, t, f"{sample} {label}")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.aten_name)
def test_derivatives_of_samples(backend, op):
    assert op.supports_forward_ad and op.supports_fwgrad_bwgrad and op.supports_gradgrad
    for sample in samples(op, torch.float64, requires_grad=True):
        tensors = tuple(t for t in (sample.input, *sample.args) if t is not None)

        def function(*tensors, sample=sample):
            return ours(op)(*tensors, **sample.kwargs)

        torch.autograd.gradcheck(function, tensors, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
        torch.autograd.gradgradcheck(function, tensors, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.aten_name)
def test_error_inputs(backend, op):
    """PyTorch lists none today; what a later version lists runs here."""
    for error in op.error_inputs("cpu") if op.error_inputs_func is not None else ():
        sample = error.sample_input
        with pytest.raises(error.error_type):
            ours(op)(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.aten_name)
def test_dtypes_beyond_ours_are_refused_by_name(op):
    """Complex and integer are in PyTorch's list and not in convt's: a clear refusal, and nothing computed."""
    beyond = [dtype for dtype in op.dtypes if dtype not in DTYPES]
    assert set(beyond) == {torch.complex64, torch.complex128, torch.int64}
    for dtype in beyond:
        sample = samples(op, dtype)[0]
        with pytest.raises(NotImplementedError, match=f"{dtype}.*(complex|integer) is not supported.*torch.float32"):
            ours(op)(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.aten_name)
def test_op_and_functional_agree(backend, op):
    for sample in samples(op, torch.float32):
        lists = {name: value for name, value in sample.kwargs.items() if name != "groups"}
        listed = {name: list(value) if isinstance(value, tuple) else [value] for name, value in lists.items()}
        listed["groups"] = sample.kwargs.get("groups", 1)
        by_op = getattr(torch.ops.convt, op.aten_name)(sample.input, *sample.args, **listed)
        by_function = ours(op)(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(by_op, by_function, rtol=1e-4, atol=1e-4)
