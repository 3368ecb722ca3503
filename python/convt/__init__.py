"""convt: transposed convolution (1-D, 2-D, 3-D; forward and backward) for PyTorch as one implicit GEMM."""

from . import (
    _C,
    eager,
    functional,
    graph,
    heuristics,
    nn,
    operators,
    ops,
    plan,
    problem,
    recorded,
    sharding,  # noqa: F401 - nothing to call: DTensor's rules, which wait for somebody to import DTensors
    tracing,
)
from .accelerate import accelerate
from .functional import conv_transpose1d, conv_transpose2d, conv_transpose3d
from .graph import compile_backend
from .settings import backend, current_backend, current_precision, precision
from .tuning import tune

tracing.run_as_they_are(eager, heuristics, operators, ops, plan, problem, recorded)

__version__: str = _C.build_info()["version"]

__all__ = [
    "accelerate",
    "backend",
    "compile_backend",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "current_backend",
    "current_precision",
    "functional",
    "graph",
    "nn",
    "precision",
    "tune",
]
