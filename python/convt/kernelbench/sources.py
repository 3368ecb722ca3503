"""Sources of the 17 problems: a submission with `ModelNew`, and the reference with `Model` that it is judged by.

A submission stands alone and defines nothing but `ModelNew`: KernelBench executes it in the namespace of the reference,
whose globals it must leave alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from convt.problem import Problem
from convt.testing.kernelbench import PROBLEMS

NUMBERS = tuple(PROBLEMS)

# Where cuDNN multiplies float32 as float32 although TF32 is allowed; elsewhere convt follows PyTorch's own switch.
IEEE = ("72", "75")


@dataclass(frozen=True)
class _Constructor:
    """Of a Model: its parameters between kernel_size and bias, how they are typed, and what get_init_inputs gives."""

    parameters: str = "stride padding output_padding groups"
    tuples: bool = False  # the parameters are tuples, with tuples as defaults
    tuple_kernel: bool = False
    given: int = 0  # how many of the parameters get_init_inputs names
    ignored: str = ""  # a parameter that Model does not hand to its layer


_STRIDED = _Constructor("stride padding dilation", given=3)
_CONSTRUCTORS = {
    "57": _Constructor(),
    "58": _Constructor(tuples=True, tuple_kernel=True),
    "61": _Constructor(),
    "64": _Constructor(),
    "65": _Constructor(tuple_kernel=True),
    "68": _Constructor(tuples=True, tuple_kernel=True),
    "69": _Constructor("stride padding output_padding dilation groups", tuples=True, tuple_kernel=True),
    "70": _Constructor("stride padding output_padding dilation groups"),
    "71": _Constructor(),
    "72": _Constructor(tuples=True, tuple_kernel=True, given=4),
    # Its `groups = 4` arrives in the place of output_padding, which Model does not use: the layer has one group.
    "73": _Constructor(given=3, ignored="output_padding"),
    "74": _STRIDED,
    "75": _Constructor("stride padding dilation groups", tuples=True, tuple_kernel=True, given=4),
    "77": _STRIDED,
    "78": _Constructor("stride padding", tuples=True, tuple_kernel=True, given=2),
    "79": _STRIDED,
    "81": _STRIDED,
}
_IN_THE_WRONG_PLACE = {"73": {"output_padding": 4}}


def submission(number: str, *, backend: str = "native") -> str:
    """Python source of ModelNew, as KernelBench takes it.

    Args:
        number: a problem in NUMBERS.
        backend: "native" computes with convt's kernels alone, "auto" lets convt's plan leave layers to PyTorch.

    Raises:
        ValueError: there is no such problem, or backend is neither.
    """
    problem, constructor = _of(number)
    if backend not in ("native", "auto"):
        raise ValueError(f"backend: {backend!r}; legal are 'native', 'auto'")
    layer = f"ConvTranspose{problem.rank}d"
    contexts = [f'convt.backend("{backend}")'] + ['convt.precision("ieee")'] * (number in IEEE)
    why = "  # as cuDNN does here even where TF32 is allowed" if number in IEEE else ""
    return f'''"""KernelBench level 1, problem {number}, computed by convt."""

import convt
from convt.nn import {layer}
from torch import Tensor
from torch.nn import Module


class ModelNew(Module):
    """Constructor, parameters and output of Model."""

    def __init__(
        self,
{_parameters(problem, constructor)}
    ) -> None:
        super().__init__()
        self.{_attribute(problem)} = {layer}(
{_arguments(constructor)}
        )

    def forward(self, x: Tensor) -> Tensor:
        with {", ".join(contexts)}:{why}
            return self.{_attribute(problem)}(x)
'''


def reference(number: str, problem: Problem | None = None) -> str:
    """Python source of Model, get_inputs and get_init_inputs: the problem in KernelBench's form.

    Args:
        problem: the same layer on another batch or input size; KernelBench's own by default.

    Raises:
        ValueError: there is no such problem.
    """
    own, constructor = _of(number)
    problem = problem or own
    layer = f"ConvTranspose{problem.rank}d"
    sizes = ", ".join(map(str, problem.input_size))
    return f"""import torch
from torch import nn


class Model(nn.Module):
    def __init__(
        self,
{_parameters(problem, constructor)}
    ) -> None:
        super().__init__()
        self.{_attribute(problem)} = nn.{layer}(
{_arguments(constructor)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.{_attribute(problem)}(x)


def get_inputs():
    return [torch.rand({sizes})]


def get_init_inputs():
    return [{", ".join(_init_inputs(number, problem, constructor))}]
"""


def _of(number: str) -> tuple[Problem, _Constructor]:
    if number not in PROBLEMS:
        raise ValueError(f"problem: {number!r}; legal are {', '.join(NUMBERS)}")
    return PROBLEMS[number], _CONSTRUCTORS[number]


def _attribute(problem: Problem) -> str:
    return "conv1d_transpose" if problem.rank == 1 else f"conv_transpose{problem.rank}d"


def _parameters(problem: Problem, constructor: _Constructor) -> str:
    lines = ["in_channels: int,", "out_channels: int,"]
    lines.append(f"kernel_size: {'tuple' if constructor.tuple_kernel else 'int'},")
    for name in constructor.parameters.split():
        standard = 1 if name in ("stride", "dilation", "groups") else 0
        if constructor.tuples and name != "groups":
            lines.append(f"{name}: tuple = {(standard,) * problem.rank},")
        else:
            lines.append(f"{name}: int = {standard},")
    lines.append("bias: bool = False,")
    return "\n".join(" " * 8 + line for line in lines)


def _arguments(constructor: _Constructor) -> str:
    handed = [name for name in (*constructor.parameters.split(), "bias") if name != constructor.ignored]
    lines = ["in_channels,", "out_channels,", "kernel_size,", *(f"{name}={name}," for name in handed)]
    return "\n".join(" " * 12 + line for line in lines)


def _init_inputs(number: str, problem: Problem, constructor: _Constructor) -> list[str]:
    def said(values: tuple[int, ...], as_tuple: bool) -> str:
        return str(values if as_tuple else values[0])

    kernel = said(problem.filter, constructor.tuple_kernel)
    values = [str(problem.in_channels), str(problem.out_channels), kernel]
    for name in constructor.parameters.split()[: constructor.given]:
        if name in _IN_THE_WRONG_PLACE.get(number, {}):
            values.append(str(_IN_THE_WRONG_PLACE[number][name]))
        elif name == "groups":
            values.append(str(problem.groups))
        else:
            values.append(said(getattr(problem, name), constructor.tuples))
    return values
