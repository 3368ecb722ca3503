"""Bad input: the same kind of exception as PyTorch's, a message that names argument, value and what is legal."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import convt

X, W, B = torch.randn(2, 4, 5, 5), torch.randn(4, 6, 3, 3), torch.randn(6)
BIG = 2**62


def bad(text, *args, theirs=None, **keywords):
    """A call that must fail with a message matching text. theirs: the class where PyTorch does not fail in kind."""
    return pytest.param(text, args, keywords, theirs, id=text.replace(" ", "-")[:48])


CASES = [
    bad("input must be 3-dimensional (unbatched) or 4-dimensional (batched), got shape (5, 5)", X[0, 0], W),
    bad("input must be 3-dimensional (unbatched) or 4-dimensional (batched), got shape (1, 2, 4, 5, 5)", X[None], W),
    bad(
        "weight must be 4-dimensional, (in_channels, out_channels // groups, *kernel_size), got shape (6, 3, 3)",
        X,
        W[0],
    ),
    bad("weight must be 4-dimensional, (in_channels, out_channels // groups, *kernel_size)", X, W[..., None]),
    bad("bias must have shape (6,), one entry per output channel, got (6, 1)", X, W, B[:, None]),
    bad("bias must have shape (6,), one entry per output channel, got (5,)", X, W, B[:5]),
    bad("bias must have shape (6,), one entry per output channel, got ()", X, W, B[0]),
    bad(
        "input of shape (2, 4, 5, 5) has 4 channels, but weight of shape (3, 6, 3, 3) with groups 1 expects 3", X, W[:3]
    ),
    bad(
        "weight is (in_channels, out_channels // groups, *kernel_size): pass weight.transpose(0, 1)",
        X,
        W.transpose(0, 1),
    ),
    bad("groups 3 does not divide in_channels 4 of weight", X, W, groups=3),
    bad("groups must be positive, got 0", X, W, groups=0),
    bad("groups must be positive, got -2", X, W, groups=-2),
    bad("negative padding is not supported, got (-1, -1); every entry must be at least 0", X, W, padding=-1),
    bad("negative output_padding is not supported, got (0, -1)", X, W, stride=2, output_padding=(0, -1)),
    bad(
        "output_padding must be smaller than stride or dilation on every axis, got output_padding (2, 2) with stride "
        "(2, 2) and dilation (1, 1)",
        X,
        W,
        stride=2,
        output_padding=2,
    ),
    bad("output_padding must be smaller than stride or dilation", X, W, dilation=(3, 2), output_padding=(2, 2)),
    bad("non-positive stride is not supported, got (0, 0); every entry must be at least 1", X, W, stride=0),
    bad("non-positive stride is not supported, got (1, -1)", X, W, stride=(1, -1)),
    bad("non-positive dilation is not supported, got (0, 0); every entry must be at least 1", X, W, dilation=0),
    bad("non-positive dilation is not supported, got (2, -3)", X, W, dilation=(2, -3)),
    bad("weight has dtype torch.float64 but input has torch.float32; they must be the same", X, W.double()),
    bad("bias has dtype torch.bfloat16 but input has torch.float32", X, W, B.bfloat16()),
    bad("weight is on meta but input is on cpu; they must be on one device", X, W.to("meta"), theirs=RuntimeError),
    bad("bias is on meta but input is on cpu", X, W, B.to("meta"), theirs=RuntimeError),
    bad("output size (-11, -11) must be positive", X, W, padding=9),
    bad("input has spatial size (0, 5); only the batch may be empty", X[:, :, :0], W),
    bad("weight of shape (0, 6, 3, 3) has no channels", X[:, :0], W[:0]),
    bad("weight of shape (4, 0, 3, 3) has no channels", X, W[:, :0]),
    bad("weight has kernel size (0, 3)", X, W[:, :, :0]),
    bad("has 0 channels, but weight of shape (4, 6, 3, 3) with groups 1 expects 4", X[:, :0], W),
    bad(
        "dtype torch.complex64; complex is not supported, legal: torch.float32",
        X.cfloat(),
        W.cfloat(),
        theirs=NotImplementedError,
    ),
    bad("dtype torch.int32; integer is not supported, legal: torch.float32", X.int(), W.int()),
    bad("dtype torch.int64; integer is not supported", X.long(), W.long(), theirs=NotImplementedError),
    bad("dtype torch.bool; bool is not supported", X.bool(), W.bool()),
    bad(
        "dtype torch.float8_e4m3fn; this floating-point format is not supported",
        X.to(torch.float8_e4m3fn),
        W.to(torch.float8_e4m3fn),
    ),
    bad("input has layout torch.sparse_coo; only dense (torch.strided) is supported", X.to_sparse(), W),
    bad(
        "input has layout torch._mkldnn; only dense (torch.strided) is supported", X.to_mkldnn(), W, theirs=RuntimeError
    ),
    bad("output of shape (2, 6, ", X, W, stride=2**30, theirs=RuntimeError),
    bad("overflows 64-bit sizes", X, W, stride=BIG),
    bad("overflows 64-bit sizes", X, W, dilation=BIG),
    bad("must be positive", X, W, padding=BIG),
    bad("stride must fit in 64 bits, got 9223372036854775808", X, W, stride=2**63, theirs=ValueError),
    bad("padding must fit in 64 bits", X, W, padding=(1, 2**70), theirs=ValueError),
    bad("stride must be one integer or 2 integers, got (1, 1, 1)", X, W, stride=(1, 1, 1)),
    bad("padding must be one integer or 2 integers, got ()", X, W, padding=()),
    bad("output_padding must be one integer or 2 integers, got [0, 0, 0]", X, W, output_padding=[0, 0, 0]),
    bad("dilation must be one integer or 2 integers, got (1, 1, 1)", X, W, dilation=(1, 1, 1)),
    bad("stride must be an integer or a tuple of integers, got 1.0 (float)", X, W, stride=1.0),
    bad("stride must be an integer or a tuple of integers, got 1.0 (float)", X, W, stride=(1.0, 1)),
    bad("stride must be an integer or a tuple of integers, got True (bool)", X, W, stride=True),
    bad("padding must be an integer or a tuple of integers, got 'same' (str)", X, W, padding="same"),
    bad("dilation must be an integer or a tuple of integers, got None (NoneType)", X, W, dilation=None),
    bad("groups must be an integer or a tuple of integers, got 1.0 (float)", X, W, groups=1.0),
    bad("weight must be a Tensor, got NoneType", X, None),
    bad("input must be a Tensor, got ndarray", X.numpy(), W),
    bad("bias must be a Tensor, got float", X, W, 1.0),
]


@pytest.mark.parametrize(("text", "args", "keywords", "theirs"), CASES)
def test_kind_and_message(backend, text, args, keywords, theirs):
    """Called as PyTorch's function is; the exception's class is the one that PyTorch raises for the same call."""
    if theirs is None:
        with pytest.raises((RuntimeError, TypeError, ValueError)) as expected:
            F.conv_transpose2d(*args, **keywords)
        theirs = expected.type
    with pytest.raises(theirs, match=re.escape(text)) as caught:
        convt.conv_transpose2d(*args, **keywords)
    assert str(caught.value).startswith("conv_transpose2d: ")


def lists(keywords):
    """Keywords as the op's schema has them."""
    return {
        name: value if name == "groups" else list(value) if isinstance(value, (tuple, list)) else [value] * 2
        for name, value in keywords.items()
    }


# What the op's schema decides by itself, with its own words: the types.
TYPES = ("must be an integer", "must be a Tensor", "must fit in 64 bits")


@pytest.mark.parametrize(("text", "args", "keywords", "theirs"), CASES)
def test_the_op_refuses_the_same(text, args, keywords, theirs):
    """torch.ops.convt too: with real tensors, with fake ones and on the meta device."""
    op = torch.ops.convt.conv_transpose2d
    if any(words in text for words in TYPES):
        if "(bool)" not in text:  # to a schema True is an integer
            with pytest.raises((RuntimeError, TypeError)):
                op(*args, **lists(keywords))
        return
    pattern = re.escape(text.replace("[0, 0, 0]", "(0, 0, 0)"))
    with pytest.raises(RuntimeError, match=pattern):
        op(*args, **lists(keywords))
    if all(arg.layout is torch.strided for arg in args) and "on meta" not in text:
        with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=pattern):
            op(*(mode.from_tensor(arg) for arg in args), **lists(keywords))
        with pytest.raises(RuntimeError, match=pattern):
            op(*(arg.to("meta") for arg in args), **lists(keywords))


@pytest.mark.parametrize(
    "value", (2, (2,), (2, 2), [2, 2], torch.Size([2, 2]), np.int64(2), (np.int64(2), 2), torch.tensor(2)), ids=repr
)
def test_what_torch_takes_for_a_stride(backend, value):
    try:
        theirs = F.conv_transpose2d(X, W, stride=value)
    except RuntimeError:
        pytest.skip(f"torch {torch.__version__} takes no such stride")
    torch.testing.assert_close(convt.conv_transpose2d(X, W, stride=value), theirs, rtol=1e-4, atol=1e-4)


def test_a_bad_call_is_not_cached_as_a_good_one(backend):
    """1.0 and True equal 1 as dictionary keys; the type still decides, every time."""
    convt.conv_transpose2d(X, W, stride=(1, 1), groups=1)
    for keywords in ({"stride": (1.0, 1)}, {"stride": (True, 1)}, {"groups": True}, {"groups": 1.0}):
        with pytest.raises(TypeError, match="must be an integer"):
            convt.conv_transpose2d(X, W, **keywords)
        with pytest.raises(TypeError):
            F.conv_transpose2d(X, W, **keywords)


SHARED = ((2, 2), (1, 1), (1, 1), 1, (1, 1))


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("input must have 3 (unbatched) or 4 (batched) axes", lambda ops: ops.forward(X[0], W, None, *SHARED)),
        ("stride must be one integer or 2 integers, got (1,)", lambda ops: ops.forward(X, W, None, (1,), *SHARED[1:])),
        ("1 to 3 spatial axes, got shape (4, 6)", lambda ops: ops.forward(X, W[..., 0, 0], None, *SHARED)),
        (
            "has 4 channels, but weight of shape (4, 6, 3, 3) with groups 1 expects 6",
            lambda ops: ops.grad_input(X, W, *SHARED, False),
        ),
        ("belongs to no input size", lambda ops: ops.grad_input(torch.randn(1, 6, 5, 5), W, *SHARED, False)),
        ("must have the same number of axes", lambda ops: ops.grad_input(X[0], W, *SHARED, False)),
        (
            "grad_output must have shape (2, 6, 10, 10), got (2, 6, 9, 10)",
            lambda ops: ops.grad_weight(torch.randn(2, 6, 9, 10), X, (3, 3), *SHARED, False),
        ),
        (
            "grad_output must have shape (2, 6, 10, 10), got (3, 6, 10, 10)",
            lambda ops: ops.grad_weight(torch.randn(3, 6, 10, 10), X, (3, 3), *SHARED, False),
        ),
        ("must both have 2 axes more than kernel_size (3,)", lambda ops: ops.grad_weight(X, X, (3,), *SHARED, False)),
        (
            "has 4 channels; it must be a positive multiple of groups 3",
            lambda ops: ops.grad_weight(X, X, (3, 3), *SHARED[:3], 3, (1, 1), False),
        ),
        ("grad_output must have 3 to 5 axes", lambda ops: ops.grad_bias(X[0, 0])),
        (
            "weight has dtype torch.float64 but grad_output has torch.float32",
            lambda ops: ops.grad_input(X, W.double(), *SHARED, False),
        ),
        (
            "input is on meta but grad_output is on cpu",
            lambda ops: ops.grad_weight(X, X.to("meta"), (3, 3), *SHARED, False),
        ),
    ],
    ids=lambda value: value.replace(" ", "-")[:40] if isinstance(value, str) else "",
)
def test_inner_ops_refuse(backend, text, call):
    with pytest.raises(RuntimeError, match=re.escape(text)):
        call(torch.ops.convt)


def test_too_large_to_allocate(backend):
    """Sizes that 64 bits hold and memory does not: the allocator's error, no crash."""
    with pytest.raises(RuntimeError, match=r"can't allocate memory|not enough memory"):
        convt.conv_transpose2d(X, W, dilation=2**21)


def test_nothing_is_written_on_refusal(backend):
    before = X.clone(), W.clone()
    with pytest.raises(RuntimeError):
        convt.conv_transpose2d(X, W, padding=9)
    assert torch.equal(X, before[0]) and torch.equal(W, before[1])


@pytest.mark.parametrize("kind", (convt.nn.ConvTranspose1d, convt.nn.ConvTranspose2d, convt.nn.ConvTranspose3d))
@pytest.mark.parametrize(
    "keywords", ({"groups": 2}, {"groups": 0}, {"padding_mode": "circular"}, {"groups": -1}), ids=str
)
def test_constructors_refuse_as_torchs(kind, keywords):
    theirs = getattr(torch.nn, kind.__name__)
    with pytest.raises((ValueError, ZeroDivisionError)) as expected:
        theirs(3, 3, 3, **keywords)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        kind(3, 3, 3, **keywords)
