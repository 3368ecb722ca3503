"""The five problems that convt came from, as KernelBench (level 1) states them.

Every file stands alone, in KernelBench's own form: `Model` (torch.nn), `ModelNew` (convt.nn; same constructor, loads
Model's state_dict), `get_inputs()` and `get_init_inputs()`. `reduced` holds arguments of `get_inputs` that make the
problem small enough for a CPU: fewer images and fewer pixels, with channels, filter, stride, padding and dilation kept.
"""

from __future__ import annotations

import importlib
from types import ModuleType

NUMBERS = (64, 79, 71, 81, 68)


def load(number: int) -> ModuleType:
    """The problem with this KernelBench level 1 number.

    Raises:
        ValueError: there is no such problem here.
    """
    if number not in NUMBERS:
        raise ValueError(f"number: {number} is not one of the problems {NUMBERS}")
    return importlib.import_module(f"{__name__}.level1_{number}")
