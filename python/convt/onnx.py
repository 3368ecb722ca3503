"""ONNX export: convt's ops as ONNX's ConvTranspose. Needs onnxscript, and torch 2.6 for the table's place.

    torch.onnx.export(model, args, "model.onnx", dynamo=True,
                      custom_translation_table=convt.onnx.translation_table())

Nothing else imports this module: `import convt.onnx`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import ir, opset18

from .problem import Ints

op: Any = opset18  # its annotations are those of values in a model, not of what builds one

__all__ = ["translation_table"]


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What torch.onnx.export takes as custom_translation_table: convt's forward and its public ops as ConvTranspose.

    All that is legal in PyTorch is expressed, with the attributes kernel_shape (where the weight's is known), strides,
    pads, output_padding, dilations and group. ONNX wants output_padding smaller than stride: where it is not, the same
    is said by unequal pads, and by zeros after the input. bfloat16 is computed in float32, as convt does.

    Exporting raises RuntimeError where an attribute is not a number at that time, such as an output_padding that
    depends on a dynamic size. Gradients are not translated.
    """
    ops = torch.ops.convt
    table: dict[Callable[..., Any], Callable[..., Any]] = {ops.forward.default: _forward}
    for packet in (ops.conv_transpose1d, ops.conv_transpose2d, ops.conv_transpose3d):
        table[packet.default] = _conv_transpose
    return table


def _numbers(name: str, values: Any, rank: int) -> Ints:
    """An attribute's value, one number per axis."""
    entries = tuple(values) if isinstance(values, Sequence) else (values,)
    if not all(isinstance(entry, int) for entry in entries):
        raise RuntimeError(
            f"ONNX's ConvTranspose takes {name} as numbers, got {values}: it must not depend on a dynamic size"
        )
    return entries * rank if len(entries) == 1 else entries


def _forward(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Any:
    """convt::forward in ONNX's ops, batched."""
    rank = len(weight.shape) - 2
    strides, begin = _numbers("stride", stride, rank), _numbers("padding", padding, rank)
    more, after, end = list(_numbers("output_padding", output_padding, rank)), [0] * rank, list(begin)
    for axis in range(rank):
        if more[axis] >= strides[axis]:
            # A zero after the input makes the output longer by a stride; what is too much of it is cut off again.
            after[axis] = max(0, -((begin[axis] - more[axis]) // strides[axis]))
            end[axis], more[axis] = begin[axis] - more[axis] + after[axis] * strides[axis], 0
    if any(after):
        input = op.Pad(input, op.Constant(value_ints=[0] * (rank + 2) + [0, 0, *after]))
    narrow = weight.dtype == ir.DataType.BFLOAT16  # the input may be a result of this function, whose type is not told
    operands = [input, weight] + ([] if bias is None else [bias])
    if narrow:
        operands = [op.Cast(operand, to=ir.DataType.FLOAT) for operand in operands]
    sizes = list(weight.shape[2:])
    shape = {"kernel_shape": sizes} if all(isinstance(size, int) for size in sizes) else {}
    result = op.ConvTranspose(
        *operands,
        strides=list(strides),
        pads=[*begin, *end],
        output_padding=more,
        dilations=list(_numbers("dilation", dilation, rank)),
        group=_numbers("groups", groups, 1)[0],
        **shape,
    )
    return op.Cast(result, to=ir.DataType.BFLOAT16) if narrow else result


def _conv_transpose(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Any:
    """A public op, batched or not."""
    shared = stride, padding, output_padding, groups, dilation
    if len(input.shape) == len(weight.shape):
        return _forward(input, weight, bias, *shared)
    axis = op.Constant(value_ints=[0])
    return op.Squeeze(_forward(op.Unsqueeze(input, axis), weight, bias, *shared), axis)
