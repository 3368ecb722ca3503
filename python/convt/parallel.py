"""Transposed convolutions spread over the ranks of a torch.distributed group: by channels, or by space.

The batch needs nothing from here: DDP, FSDP2 and DTensors shard it with convt's modules as with PyTorch's own.
Importing this module imports torch.distributed.tensor; `import convt` does not.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement

from . import nn
from .functional import conv_transpose1d, conv_transpose2d, conv_transpose3d
from .sharding import splits_well

__all__ = ["ColwiseParallel", "RowwiseParallel", "output_extents", "spatially_sharded"]

_FUNCTIONS = {1: conv_transpose1d, 2: conv_transpose2d, 3: conv_transpose3d}


# ---- channels: styles for torch.distributed.tensor.parallel.parallelize_module --------------------------------------


class _ChannelParallel(ParallelStyle):
    """What both styles share: a module's parameters become DTensors, its input and output are laid out by hooks."""

    _channels: str  # the module's attribute that counts the channels that are shared out
    _weight: Placement
    _bias: Placement
    _reads: Placement  # how the module wants its input
    _input: Placement  # what it expects to be given, by default
    _output: Placement  # what it gives, by default

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        super().__init__()
        self.input_layouts = input_layouts or self._input
        self.output_layouts = output_layouts or self._output
        self.use_local_output = use_local_output

    def _apply(self, module: torch.nn.Module, device_mesh: DeviceMesh) -> torch.nn.Module:
        name = type(self).__name__
        if not isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            raise TypeError(
                f"{name}: module must be one of convt.nn (see convt.accelerate), got {type(module).__name__}"
            )
        if module.groups != 1:
            raise ValueError(f"{name}: groups must be 1, got {module.groups}; a group's channels belong together")
        channels = getattr(module, self._channels)
        if device_mesh.ndim != 1 or channels < device_mesh.size() or not splits_well(channels, (device_mesh.size(),)):
            raise ValueError(
                f"{name}: {self._channels} must leave no rank of a mesh of one axis without a channel, got {channels} "
                f"for a mesh of shape {tuple(device_mesh.shape)}"
            )
        before: Any = self._before  # PyTorch's annotation has no result
        return distribute_module(module, device_mesh, self._partition, before, self._after)

    def _partition(self, _: str, module: torch.nn.Module, device_mesh: DeviceMesh) -> None:
        source = {"src_data_rank": self.src_data_rank} if hasattr(self, "src_data_rank") else {}
        for name, placement in (("weight", self._weight), ("bias", self._bias)):
            parameter = getattr(module, name)
            if parameter is not None:
                shard = distribute_tensor(parameter, device_mesh, [placement], **source)
                module.register_parameter(name, torch.nn.Parameter(shard, parameter.requires_grad))

    def _before(self, module: Any, inputs: tuple[Any, ...], device_mesh: DeviceMesh) -> tuple[Any, ...]:
        input, *rest = inputs
        if input.dim() != len(module.kernel_size) + 2:
            raise RuntimeError(
                f"{type(self).__name__}: input must be (batch, in_channels, *spatial), got shape {tuple(input.shape)}"
            )
        if not isinstance(input, DTensor):
            whole: dict[str, Any] = {}
            if self.input_layouts == Shard(1):  # the ranks' shares of the channels need not be even
                shape = torch.Size((input.shape[0], module.in_channels, *input.shape[2:]))
                strides = [1, *accumulate(reversed(shape[1:]), operator.mul)]
                whole = {"shape": shape, "stride": tuple(reversed(strides))}
            input = DTensor.from_local(input, device_mesh, [self.input_layouts], run_check=False, **whole)
        return input.redistribute(placements=[self._reads]), *rest

    def _after(self, _: torch.nn.Module, output: Any, __: DeviceMesh) -> Any:
        output = output.redistribute(placements=[self.output_layouts])
        return output.to_local() if self.use_local_output else output


class ColwiseParallel(_ChannelParallel):
    """Output channels shared out: every rank computes its own from all input channels.

    For a convt.nn module without groups. weight (in_channels, out_channels, *kernel_size) becomes a DTensor sharded
    along 1, bias along 0; the input is replicated, the output (batch, out_channels, ...) sharded along 1, as a local
    tensor unless use_local_output is False. No communication forward, one sum of the input's gradient backward.
    input_layouts: how the input is laid out if it is a local tensor. output_layouts: what the output shall be instead.

    Raises TypeError for other modules, ValueError for one with groups or with fewer output channels than ranks,
    RuntimeError for unbatched input. As torch.distributed.tensor.parallel's style of
    this name for torch.nn.Linear.
    """

    _channels, _weight, _bias = "out_channels", Shard(1), Shard(0)
    _reads, _input, _output = Replicate(), Replicate(), Shard(1)


class RowwiseParallel(_ChannelParallel):
    """Input channels shared out: every rank computes its part of all output channels, and the parts are summed.

    For a convt.nn module without groups. weight (in_channels, out_channels, *kernel_size) becomes a DTensor sharded
    along 0, the bias is replicated and added once; the input is sharded along 1, the output replicated, as a local
    tensor unless use_local_output is False. One sum of the output forward, no communication backward: the counterpart
    of ColwiseParallel one layer before. Arguments and errors as there.
    """

    _channels, _weight, _bias = "in_channels", Shard(0), Replicate()
    _reads, _input, _output = Shard(1), Shard(1), Replicate()


# ---- space: slabs of one axis, with halos -------------------------------------------------------------------------


class _Axis(NamedTuple):
    """The integers of the axis that is shared out."""

    taps: int
    stride: int
    padding: int
    output_padding: int
    dilation: int

    @property
    def reach(self) -> int:
        """Outputs that an input pixel touches, from the first to the last, without the first."""
        return self.dilation * (self.taps - 1)


class _Slab(NamedTuple):
    """One rank's part of a call: output pixels [0, length) from input pixels [first, last) of the whole axis."""

    first: int
    last: int
    length: int
    skip: int  # pixels of the local result before the first one that counts
    padding: int
    output_padding: int


def _starts(extents: Sequence[int]) -> list[int]:
    return [0, *accumulate(extents)]


def _output_starts(extents: Sequence[int], axis: _Axis) -> list[int]:
    """A rank's outputs start at stride times its first input; the last rank's end where the output does."""
    starts = _starts(extents)
    end = (starts[-1] - 1) * axis.stride - 2 * axis.padding + axis.reach + axis.output_padding + 1
    cuts = [*(axis.stride * start for start in starts[:-1]), end]
    if min(extents) < 1 or any(low >= high for low, high in pairwise(cuts)):
        raise ValueError(
            f"extents must leave every rank an input and an output, got {tuple(extents)} for an output of {end} pixels "
            f"with {axis}: rank r starts at output stride * (first input of r)"
        )
    return cuts


def _slab(low: int, high: int, size: int, axis: _Axis) -> _Slab:
    """What output pixels [low, high) of an axis with `size` inputs need: o + padding == stride * i + dilation * tap."""
    stride, origin = axis.stride, low + axis.padding
    first = min(max(-((axis.reach - origin) // stride), 0), origin // stride, size - 1)
    last = max(min((high - 1 + axis.padding) // stride + 1, size), first + 1)
    # Without padding the local result starts at stride * first - axis.padding and has so many pixels:
    full = stride * (last - first - 1) + axis.reach + 1
    before, beyond = origin - stride * first, high + axis.padding - stride * first - full
    padding = max(min(before, -beyond), 0)  # cut from both ends, the rest of either by hand
    return _Slab(first, last, high - low, before - padding, padding, max(beyond, 0))


def output_extents(
    extents: Sequence[int],
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    dilation: int = 1,
) -> list[int]:
    """Output pixels of each rank along the sharded axis, from the input pixels of each rank: see spatially_sharded.

    All numbers are those of that axis. Raises ValueError when a rank would have no input or no output.
    """
    cuts = _output_starts(extents, _Axis(kernel_size, stride, padding, output_padding, dilation))
    return [high - low for low, high in pairwise(cuts)]


class _Exchange(torch.autograd.Function):
    """all_to_all of rows; its transpose sends them back, so it is differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, pieces: Tensor, received: list[int], sent: list[int], group: Any) -> Tensor:
        ctx.back = sent, received, group
        result = pieces.new_empty(sum(received), *pieces.shape[1:])
        dist.all_to_all_single(result, pieces.contiguous(), received, sent, group)
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return _Exchange.apply(cotangent, *ctx.back), None, None, None  # type: ignore[no-untyped-call]


def _with_halo(
    input: Tensor, axis: int, slabs: Sequence[_Slab], starts: Sequence[int], rank: int, group: Any
) -> Tensor:
    """Input pixels [first, last) of this rank's slab, its own and those of other ranks."""

    def overlap(owner: int, reader: int) -> tuple[int, int]:
        """What `reader` needs of the pixels of `owner`: the first of them, counted by the owner, and how many."""
        low = max(starts[owner], slabs[reader].first)
        length = max(min(starts[owner + 1], slabs[reader].last) - low, 0)
        return (low - starts[owner] if length else 0), length

    def lengths(pairs: Sequence[tuple[int, int]]) -> list[int]:
        return [overlap(owner, reader)[1] if owner != reader else 0 for owner, reader in pairs]

    everyone = range(len(slabs))
    kept = input.narrow(axis, *overlap(rank, rank))
    if not any(lengths([(owner, reader) for owner in everyone for reader in everyone])):
        return kept
    # Pieces of no pixels too: every rank has to meet the others in the backward pass, whether or not it sends or reads.
    rows = input.movedim(axis, 0)
    pieces = torch.cat([rows.narrow(0, *overlap(rank, reader)) for reader in everyone if reader != rank])
    received = lengths([(owner, rank) for owner in everyone])
    sent = lengths([(rank, reader) for reader in everyone])
    rows = _Exchange.apply(pieces, received, sent, group)  # type: ignore[no-untyped-call]
    before, after = (rows.narrow(0, *part).movedim(0, axis) for part in _sides(received, rank))
    return torch.cat([before, kept, after], axis)


def _sides(lengths: list[int], rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(start, length) of what ranks before and after this one have sent."""
    before = sum(lengths[:rank])
    return (0, before), (before, sum(lengths) - before)


def spatially_sharded(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    axis: int = -1,
    extents: Sequence[int] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """This rank's slab of a transposed convolution whose input lies in slabs, one per rank of a process group.

    input is (batch, in_channels, *spatial) with this rank's pixels along `axis`, slabs in the order of ranks; weight,
    bias and the arguments are conv_transpose{1,2,3}d's, the same on every rank. extents are the pixels of every rank
    along the axis; without them every call asks around. Returns the output pixels from stride times the first input
    pixel of this rank up to the next rank's (output_extents says how many), so the next layer can go on from there.

    Ranks exchange the input pixels that their outputs need and they lack, in one all_to_all_single; nothing is computed
    twice. Differentiable any number of times. The gradients of weight and bias are this rank's share of a sum.

    Raises RuntimeError for what conv_transpose{1,2,3}d refuses, ValueError for an axis that is not spatial, extents
    that do not match the group or the input, and ranks without pixels.
    """
    rank = weight.dim() - 2
    if rank not in _FUNCTIONS or input.dim() != rank + 2:
        raise RuntimeError(
            f"spatially_sharded: input must be (batch, in_channels, *spatial) and weight (in_channels, out_channels // "
            f"groups, *kernel_size) with 1 to 3 spatial axes, got {tuple(input.shape)} and {tuple(weight.shape)}"
        )
    place = (axis if axis >= 0 else axis + input.dim()) - 2
    if not 0 <= place < rank:
        raise ValueError(f"spatially_sharded: axis must be a spatial one, 2 to {rank + 1} or negative, got {axis}")
    size, here = dist.get_world_size(group), dist.get_rank(group)
    if extents is None:
        counts = [torch.zeros(1, dtype=torch.int64, device=input.device) for _ in range(size)]
        dist.all_gather(counts, counts[0].new_tensor([input.shape[place + 2]]), group)
        extents = [int(count) for count in counts]
    if len(extents) != size or extents[here] != input.shape[place + 2]:
        raise ValueError(
            f"spatially_sharded: extents must have one entry for each of {size} ranks, that of rank {here} being the "
            f"input's {input.shape[place + 2]}, got {tuple(extents)}"
        )
    geometry = [
        [value] * rank if isinstance(value, int) else list(value)
        for value in (stride, padding, output_padding, dilation)
    ]
    split = _Axis(weight.shape[place + 2], *(values[place] for values in geometry))
    starts, cuts = _starts(extents), _output_starts(extents, split)
    slabs = [_slab(low, high, starts[-1], split) for low, high in pairwise(cuts)]
    whole = _with_halo(input, place + 2, slabs, starts, here, group)
    return _compute(whole, weight, bias, geometry, groups, place, slabs[here])


def _compute(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[list[int]], groups: int, place: int, slab: _Slab
) -> Tensor:
    """A slab of the output from its input pixels, halos among them."""
    stride, padding, output_padding, dilation = (list(values) for values in geometry)
    padding[place], output_padding[place] = slab.padding, slab.output_padding
    function = _FUNCTIONS[weight.dim() - 2]
    output = function(
        input, weight, bias, tuple(stride), tuple(padding), tuple(output_padding), groups, tuple(dilation)
    )
    return output.narrow(place + 2, slab.skip, slab.length)
