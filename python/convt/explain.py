"""`convt explain`: how a problem is computed, what that should cost, and why the other configurations lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from convt import _C, settings
from convt.plan import OPERATORS, cuda_devices, cuda_plan, measured, plan
from convt.problem import DTYPES, Geometry, Ints, Problem, forward_problem
from convt.testing import describe, kernelbench

# Data sheets; memory_gbs is what a copy reaches. An H200 needs no entry: the compiled module's own default is one.
GPUS: dict[str, dict[str, Any] | None] = {
    "h200": None,
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB",
        "capability": (8, 0),
        "multiprocessors": 108,
        "memory_bytes": 80 * 2**30,
        "shared_per_block": 163 * 1024,
        "shared_per_multiprocessor": 164 * 1024,
        "l2_bytes": 40 * 2**20,
        "clock_ghz": 1.41,
        "memory_gbs": 1750.0,
    },
}
DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def problem_from(
    what: Sequence[str],
    *,
    input: Sequence[int] | None = None,
    weight: Sequence[int] | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
    bias: bool = False,
) -> tuple[Problem, bool]:
    """The problem that a command line names, and whether it has a bias.

    what is ("1d",), ("2d",) or ("3d",) with the shapes of input and weight, or ("kernelbench", NUMBER). Raises
    ValueError for anything else and for a problem that is not legal.
    """
    if what[0] == "kernelbench" and len(what) == 2:
        if what[1] not in kernelbench.PROBLEMS:
            raise ValueError(f"explain kernelbench: {what[1]!r}; legal are {', '.join(kernelbench.PROBLEMS)}")
        return kernelbench.PROBLEMS[what[1]], False
    if what[0] not in ("1d", "2d", "3d") or len(what) != 1:
        raise ValueError(f"explain: {' '.join(what)!r}; legal are 1d, 2d, 3d and kernelbench NUMBER")
    rank = int(what[0][0])
    if input is None or weight is None:
        raise ValueError(f"explain {what[0]}: --input and --weight need {rank + 2} integers each")
    for name, shape in (("--input", input), ("--weight", weight)):
        if len(shape) != rank + 2:
            raise ValueError(f"explain {what[0]}: {name} needs {rank + 2} integers, got {tuple(shape)}")

    def spread(name: str, values: Sequence[int]) -> Ints:
        if len(values) not in (1, rank):
            raise ValueError(f"explain {what[0]}: {name} needs 1 or {rank} integers, got {tuple(values)}")
        return tuple(values) if len(values) == rank else tuple(values) * rank

    geometry = Geometry(
        spread("--stride", stride),
        spread("--padding", padding),
        spread("--output-padding", output_padding),
        groups,
        spread("--dilation", dilation),
    )
    try:
        return forward_problem(tuple(input), tuple(weight), None, geometry), bias
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def choose(
    problem: Problem,
    *,
    dtype: str = "float32",
    precision: str | None = None,
    layout: str = "contiguous",
    bias: bool = False,
    gpu: str = "current",
    config: str | None = None,
    operator: str = "forward",
) -> dict[str, Any]:
    """Everything that is printed about an operator on a GPU, as plain JSON values.

    gpu is "current" (the first GPU here, an H200 where there is none), "h200" or "a100"; config forces a kernel family
    or a configuration. Raises ValueError when that cannot compute the problem.
    """
    here = cuda_devices()
    traits = here[0] if gpu == "current" and here else GPUS["h200" if gpu == "current" else gpu]
    rounding = (precision or settings.current_precision()) if dtype == "float32" else "ieee"
    channels_last = layout == "channels_last"
    made = cuda_plan(
        problem,
        DTYPE_NAMES[dtype],
        operator=operator,
        precision=rounding,
        channels_last=channels_last,
        bias=bias,
        device=traits,
        kernel=config,
    )
    tuned = None
    if gpu == "current" and here and config is None:
        tuned = measured(problem, operator, DTYPE_NAMES[dtype], torch.device("cuda", 0), channels_last, rounding)
    return {
        "tuned": None if tuned is None else f"{tuned.backend} {tuned.kernel or ''}".strip() + f" ({tuned.reason})",
        "problem": describe(problem, DTYPE_NAMES[dtype], layout),
        "device": "NVIDIA H200" if traits is None else traits["name"],
        "precision": rounding,
        "bias": bias and operator == "forward",
        "operator": operator,
        "output": list(problem.output_size),
        "result": list(result_size(problem, operator)),
        **made.explain(),
    }


def result_size(problem: Problem, operator: str) -> Ints:
    """Of what an operator computes."""
    sizes = problem.output_size, problem.input_size, problem.weight_size
    return dict(zip(OPERATORS, sizes, strict=True))[operator]


def on_a_cpu(
    problem: Problem, *, dtype: str = "float32", layout: str = "contiguous", operator: str | None = None
) -> dict[str, Any]:
    """The backend of each operator, or of one, on a CPU, and the reason, as plain JSON values."""
    channels_last = layout == "channels_last" and problem.rank > 1
    plans = {
        name: plan(problem, name, DTYPE_NAMES[dtype], "cpu", channels_last, settings.current_backend())
        for name in (OPERATORS if operator is None else (operator,))
    }
    return {
        "problem": describe(problem, DTYPE_NAMES[dtype], layout),
        "device": "cpu",
        "isa": _C.isa(),
        "output": list(problem.output_size),
        "plans": {name: {"backend": choice.backend, "reason": choice.reason} for name, choice in plans.items()},
    }


def show(facts: dict[str, Any], *, as_json: bool = False, console: Console | None = None) -> int:
    """Print what choose() or on_a_cpu() told, as tables or as one JSON object."""
    if as_json:
        print(json.dumps(facts, indent=2))
        return 0
    console = console or Console()
    console.print(_table(_rows(facts)), highlight=False, soft_wrap=True)
    if facts.get("candidates"):
        console.print()
        console.print(_candidates(facts), highlight=False, soft_wrap=True)
    return 0


def _table(rows: dict[str, str | None]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value)
    return table


def _rows(facts: dict[str, Any]) -> dict[str, str | None]:
    rows: dict[str, str | None] = {
        "problem": facts["problem"],
        "output": " x ".join(map(str, facts["output"])),
        "device": facts["device"],
    }
    if "plans" in facts:
        rows |= {name: f"{choice['backend']} ({choice['reason']})" for name, choice in facts["plans"].items()}
        return rows
    phases, taps = facts.get("phases"), facts.get("taps")
    if isinstance(phases, dict):
        rows["phases"] = f"{phases.get('nonempty')} of {phases.get('total')} have taps"
    predicted, roofline = facts.get("predicted_us"), facts.get("roofline_us")
    rows |= {
        "operator": facts["operator"],
        "measured choice": facts["tuned"],
        "result": None if facts["operator"] == "forward" else _words(facts["result"]),
        "taps": None if taps is None else _words(taps),
        "origin": None if facts.get("origin") is None else _words(facts["origin"]),
        "kernel": f"{facts['kernel']} {facts['config']}",
        "tile": None if not facts.get("tile") else _words(facts["tile"]),
        "way in": _way_in(facts),
        "way out": facts.get("way_out"),
        "split": None if facts.get("split") is None else _words(facts["split"]),
        "grid": None if facts.get("grid") is None else f"{_words(facts['grid'])} x {facts.get('threads')} threads",
        "shared memory": _bytes(facts.get("shared_bytes")),
        "registers": None if facts.get("registers") is None else f"{facts['registers']} per thread",
        "workspace": _bytes(facts.get("workspace_bytes")),
        "operations": None if facts.get("flops") is None else f"{facts['flops'] / 1e9:.4g} GFLOP",
        "memory": _memory(facts.get("bytes_predicted"), facts.get("bytes_minimum")),
        "time": None if predicted is None else f"{predicted:.4g} us predicted" + _against(predicted, roofline),
        "bound": facts.get("bound"),
        "terms": None if not facts.get("terms_us") else _terms(facts["terms_us"]),
    }
    return rows


def _way_in(facts: Mapping[str, Any]) -> str | None:
    """How patches come to shared memory, and how many of them at a time (docs/ways_in.md)."""
    way = facts.get("way_in")
    return None if way is None else f"{way}, {facts['patch_stages']} patches at a time"


def _words(value: Any) -> str:
    """A value of the plan in a line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return " x ".join(map(str, value))
    return str(value)


def _bytes(count: int | None) -> str | None:
    if count is None:
        return None
    return f"{count} bytes" if count < 10_000 else f"{count / 1e3:.1f} kB" if count < 10**7 else f"{count / 1e6:.1f} MB"


def _memory(predicted: float | None, minimum: float | None) -> str | None:
    if predicted is None or not minimum:
        return None
    return f"{predicted / 1e6:.4g} MB predicted, {predicted / minimum:.2f} x the minimum of {minimum / 1e6:.4g} MB"


def _against(predicted: float, roofline: float | None) -> str:
    return f", {predicted / roofline:.2f} x the roofline of {roofline:.4g} us" if roofline else ""


def _terms(terms: dict[str, float]) -> str:
    ordered = sorted(terms.items(), key=lambda term: -term[1])
    return ", ".join(f"{name} {us:.4g} us" for name, us in ordered)


def _candidates(facts: dict[str, Any]) -> Table:
    """The configurations that were considered, best first; those that cannot compute the problem come last."""
    table = Table(box=None, pad_edge=False)
    table.add_column("candidate", no_wrap=True)
    table.add_column("predicted us", justify="right")
    table.add_column("why not", overflow="fold")
    legal = [entry for entry in facts["candidates"] if entry.get("predicted_us") is not None]
    legal.sort(key=lambda entry: entry["predicted_us"])
    best = facts.get("predicted_us")
    for entry in legal:
        is_chosen = entry["name"] in (facts["config"], facts["kernel"], f"{facts['kernel']} {facts['config']}")
        slower = "" if not best or is_chosen else f"{entry['predicted_us'] / best:.2f} x the time"
        table.add_row(entry["name"], f"{entry['predicted_us']:.4g}", entry.get("reason") or slower or "chosen")
    for entry in facts["candidates"]:
        if entry.get("predicted_us") is None:
            table.add_row(entry["name"], "", entry.get("reason") or "")
    return table
