"""The definition of transposed convolution, in float64, and how far from it a result may be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from convt import _C


def conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
) -> Tensor:
    """Scatter every input to the outputs with o + padding == stride * i + dilation * tap; any rank, differentiable."""
    x, w, rank = input.double(), weight.double(), weight.dim() - 2
    s, p, op, d = ((v,) * rank if isinstance(v, int) else tuple(v) for v in (stride, padding, output_padding, dilation))
    sizes, taps = x.shape[2:], w.shape[2:]
    output = [
        (i - 1) * a - 2 * b + c * (k - 1) + e + 1 for i, k, a, b, e, c in zip(sizes, taps, s, p, op, d, strict=True)
    ]
    canvas = x.new_zeros(x.shape[0], groups, w.shape[1], *(o + 2 * b for o, b in zip(output, p, strict=True)))
    x, w = x.unflatten(1, (groups, -1)), w.unflatten(0, (groups, -1))
    for tap in itertools.product(*map(range, taps)):
        reach = (slice(c * k, c * k + a * (i - 1) + 1, a) for k, i, a, c in zip(tap, sizes, s, d, strict=True))
        product = torch.einsum("ngi...,gio->ngo...", x, w[(..., *tap)])
        canvas[(..., *reach)] += product
    canvas = canvas[(..., *(slice(b, b + o) for b, o in zip(p, output, strict=True)))].flatten(1, 2)
    return canvas if bias is None else canvas + bias.double().reshape(-1, *(1,) * rank)


def assert_accurate(actual: Tensor, exact: Tensor, rival: Tensor, label: str = "") -> None:
    """Within twice the error of the rival (PyTorch at the same dtype), plus rounding relative to the largest value.

    Rounding is a few last places where the sum is kept in more bits than the result, and a random walk of them where it
    is not. The rival counts for no more than that: ATen's bfloat16 weight gradient is now and then not even finite.
    """
    assert actual.dtype == rival.dtype, f"{label}: dtype {actual.dtype}, expected {rival.dtype}"
    assert actual.shape == exact.shape, f"{label}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    error = (actual.double() - exact.double()).abs().max().item()
    rivals = (rival.double() - exact.double()).abs().max().nan_to_num(0.0).item()
    places = 4 if actual.dtype in (torch.bfloat16, torch.float16) else 32
    rounding = places * torch.finfo(actual.dtype).eps * exact.abs().max().item()
    bound = 2 * min(rivals, rounding) + rounding
    assert error <= bound, f"{label}: error {error:.3g} exceeds {bound:.3g} (PyTorch's own is {rivals:.3g})"


@contextmanager
def poisoned() -> Iterator[None]:
    """What native code must not read is NaN: its scratch memory, and (PyTorch's own switch) every new tensor."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    _C.set_poison(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty_strided((2,), (1,)).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled
        _C.set_poison(False)


def results(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], grad_output: Tensor, **keywords
) -> list[Tensor]:
    """Output of function(*tensors, **keywords), and the gradients of the tensors, which keep their strides."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves, **keywords)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output.to(output.dtype))]


def torch_results(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], grad_output: Tensor, **keywords
) -> list[Tensor]:
    """The same for a function of PyTorch's, on contiguous tensors.

    bfloat16 gradients are float32's, rounded: PyTorch's own bfloat16 weight gradient of a transposed convolution reads
    memory that nobody wrote and writes beyond its end (torch 2.13 on a CPU), which kills the process sooner or later.
    """
    tensors = [tensor.contiguous() for tensor in tensors]
    if tensors[0].dtype is not torch.bfloat16:
        return results(function, tensors, grad_output, **keywords)
    gradients = results(function, [tensor.float() for tensor in tensors], grad_output, **keywords)[1:]
    return [function(*tensors, **keywords), *(gradient.bfloat16() for gradient in gradients)]


@dataclass(frozen=True)
class Case:
    """A small problem: shapes of input and weight, and the keyword arguments of the call."""

    name: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    arguments: tuple[tuple[str, int | tuple[int, ...]], ...] = ()

    @property
    def rank(self) -> int:
        return len(self.weight) - 2

    @property
    def keywords(self) -> dict[str, int | tuple[int, ...]]:
        return dict(self.arguments)

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]:
        """stride, padding, output_padding, groups, dilation as the inner operators take them."""
        spread = []
        for label, default in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1)):
            value = self.keywords.get(label, default)
            spread.append((value,) * self.rank if isinstance(value, int) else value)
        groups = self.keywords.get("groups", 1)
        assert isinstance(groups, int)
        return spread[0], spread[1], spread[2], groups, spread[3]

    @property
    def out_channels(self) -> int:
        return self.weight[1] * self.geometry[3]

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0, grad: bool = False) -> list[Tensor]:
        """Input, weight and bias."""
        generator = torch.Generator().manual_seed(seed)
        shapes = self.input, self.weight, (self.out_channels,)
        made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
        return [tensor.requires_grad_(grad) for tensor in made]


def case(name: str, input: tuple[int, ...], weight: tuple[int, ...], **arguments: int | tuple[int, ...]) -> Case:
    """A Case from keyword arguments."""
    return Case(name, input, weight, tuple(arguments.items()))


CASES = (
    case("1d", (2, 3, 5), (3, 2, 3)),
    case("1d-stride-over-filter", (1, 2, 4), (2, 3, 2), stride=5, padding=1, output_padding=4),
    case("1d-gcd", (2, 2, 4), (2, 2, 3), stride=4, dilation=6, padding=3, output_padding=5),
    case("1d-empty-phases", (1, 2, 3), (2, 1, 3), stride=4, dilation=2, output_padding=3),
    case("2d-k4s2p1", (2, 4, 3, 4), (4, 2, 4, 4), stride=2, padding=1),
    case("2d-k2s2", (2, 2, 3, 2), (2, 3, 2, 2), stride=2),
    case("2d-groups", (1, 4, 3, 3), (4, 3, 3, 2), stride=(2, 1), padding=(1, 0), output_padding=(1, 0), groups=2),
    case("2d-depthwise", (2, 4, 3, 3), (4, 1, 3, 3), stride=2, padding=1, output_padding=1, groups=4),
    case("2d-multiplier", (1, 3, 3, 2), (3, 2, 2, 3), stride=(1, 2), groups=3, dilation=(2, 1)),
    case(
        "2d-output-padding-by-dilation",
        (1, 2, 3, 2),
        (2, 2, 2, 3),
        stride=(1, 2),
        dilation=(3, 4),
        output_padding=(2, 3),
    ),
    case("2d-pixel", (3, 4, 1, 1), (4, 2, 3, 4)),
    case("2d-crop", (1, 2, 4, 4), (2, 2, 3, 3), stride=2, padding=4),
    case("3d", (1, 2, 2, 3, 2), (2, 2, 2, 1, 3), stride=(2, 1, 3), padding=(0, 0, 1), output_padding=(1, 0, 2)),
    case(
        "3d-groups-dilated",
        (2, 4, 2, 2, 2),
        (4, 1, 2, 2, 1),
        stride=(1, 2, 1),
        dilation=(2, 1, 1),
        groups=2,
        padding=(1, 0, 0),
    ),
)
