"""convt.accelerate: swap a model's transposed convolutions for convt's, in place."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch.nn.utils import parametrize

from . import nn
from .problem import DTYPES

_Model = TypeVar("_Model", bound=torch.nn.Module)

_SWAPS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.ConvTranspose1d: nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d: nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d: nn.ConvTranspose3d,
}


def accelerate(model: _Model) -> _Model:
    """Make every torch.nn.ConvTranspose1d, 2d and 3d of a model compute with convt; returns the model itself.

    Only the class of a module changes (convt's are subclasses of torch's with the same attributes), so parameters,
    buffers, hooks, parametrizations, training flag, names and optimizer references stay what they are. Left alone:
    subclasses of torch's modules (they may compute something else), lazy modules that have no shape yet, and modules
    whose weight has a dtype that convt does not compute (complex). Calling it again changes nothing.
    """
    for module in model.modules():
        kind = type(module)
        parametrized = parametrize.is_parametrized(module)
        swap = _SWAPS.get(kind.__bases__[0] if parametrized else kind)
        if swap is not None and all(parameter.dtype in DTYPES for parameter in module.parameters()):
            module.__class__ = _rebased(kind, swap) if parametrized else swap
    return model


def _rebased(kind: type[torch.nn.Module], base: type[torch.nn.Module]) -> type[torch.nn.Module]:
    """The class that parametrize made for one module, on another base.

    A new class rather than new __bases__: copies of the module outside the model share the old one.
    """
    body = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), body)
