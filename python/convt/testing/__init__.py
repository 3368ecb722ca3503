"""What tests, benches and the demo share: named layers, and the definition in float64 to judge results by."""

from convt.testing import kernelbench, zoo
from convt.testing.definition import OPERATORS, ROUNDINGS, Sample, closest, sample, tf32_nearest, tf32_truncated
from convt.testing.gpu_suites import GPU_SUITES, select
from convt.testing.layers import CPU_LAYERS, Entry, Layer, describe, dtype_name, layer, problem_of, torch_function
from convt.testing.sweep import sweep_layers

SUITES: dict[str, tuple[Layer, ...]] = {"cpu": CPU_LAYERS, "sweep": tuple(sweep_layers())}

__all__ = [
    "GPU_SUITES",
    "OPERATORS",
    "ROUNDINGS",
    "SUITES",
    "Entry",
    "Layer",
    "Sample",
    "closest",
    "describe",
    "dtype_name",
    "kernelbench",
    "layer",
    "problem_of",
    "sample",
    "select",
    "tf32_nearest",
    "tf32_truncated",
    "torch_function",
    "zoo",
]
