"""Results files written before a line had all of its fields, and the summaries in docs/results, as today's lines."""

from __future__ import annotations

from typing import Any

_PRECISIONS = {"float32": "ieee", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}
_OPERATORS = ("forward", "grad_input", "grad_weight")
_UNKNOWN: dict[str, Any] = {"driver": None, "cuda": None, "forced": None, "sizes": "full", "quick": False}


def forms(values: dict[str, Any]) -> list[dict[str, Any]]:
    """One object of a results file as the fields of today's lines: itself, or several lines where it is a summary."""
    if "torch_us" in values:
        return [_of_a_processor(values)]
    if all(name in values for name in _OPERATORS):
        return [_of_an_operator(values, name) for name in _OPERATORS]
    if "shrunk" in values:
        values = values | {"sizes": "tiny" if values["shrunk"] else "full"}
    return [values]


def _of_a_processor(values: dict[str, Any]) -> dict[str, Any]:
    """`convt bench cpu` and `sweep`, whose rival was PyTorch at its defaults; errors were absolute ones."""
    return {
        **_UNKNOWN,
        **{name: value for name, value in values.items() if name not in ("max_error", "torch_max_error")},
        **{f"eager_us{part}": values[f"torch_us{part}"] for part in ("", "_p20", "_p80")},
        "name": values["problem"],
        "precision": _PRECISIONS[values["dtype"]],
        "cudnn": None,
        "rivals": "eager",
        "kernel": values["plan"],
        "tflops": values["gflops"] * 1e-3,
    }


def _of_an_operator(values: dict[str, Any], operator: str) -> dict[str, Any]:
    """Medians of the three operators of a layer, measured apart and written into one object, all of them right."""
    shared = {name: value for name, value in values.items() if name not in _OPERATORS}
    told = {"name": values["problem"], "direction": operator, "backend": "native", "rivals": "eager", "ok": True}
    return {**_UNKNOWN, **shared, **told, **values[operator]}
