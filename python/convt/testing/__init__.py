"""What tests, benches and the demo share: named layers, and the definition in float64 to judge results by."""

from collections.abc import Sequence

from convt.testing import kernelbench, zoo
from convt.testing.definition import OPERATORS, ROUNDINGS, Sample, closest, sample, tf32_nearest, tf32_truncated
from convt.testing.gpu_suites import GPU_SUITES, select
from convt.testing.layers import CPU_LAYERS, Entry, Layer, describe, dtype_name, layer, problem_of, torch_function
from convt.testing.sizes import SIZES, resized
from convt.testing.sweep import sweep_layers

SUITES: dict[str, tuple[Layer, ...]] = {"cpu": CPU_LAYERS, "sweep": tuple(sweep_layers())}


def select_layers(suite: str, words: Sequence[str] = ()) -> list[Layer]:
    """The layers of a suite in SUITES whose name contains every word; ValueError with the names when none does."""
    layers = [layer for layer in SUITES[suite] if all(word in layer.name for word in words)]
    if not layers:
        names = "\n  ".join(layer.name for layer in SUITES[suite])
        raise ValueError(f"filter: {' '.join(words)!r} matches no layer of {suite!r}:\n  {names}")
    return layers


__all__ = [
    "GPU_SUITES",
    "OPERATORS",
    "ROUNDINGS",
    "SIZES",
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
    "resized",
    "sample",
    "select",
    "select_layers",
    "tf32_nearest",
    "tf32_truncated",
    "torch_function",
    "zoo",
]
