"""Lines of a results file: appended one by one, taken up again by --resume, and shown as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from convt.bench import older
from convt.terminal import plain_table, print_whole


@dataclass(frozen=True)
class Line:
    """One measurement of convt against PyTorch: medians in microseconds; None where something could not run."""

    suite: str
    problem: str
    name: str  # the problem in words
    direction: str  # forward | forward_backward | backward | grad_input | grad_weight
    precision: str  # tf32 | ieee | bf16 | fp16 | fp64
    layout: str  # of input, weight and gradient
    device: str
    driver: str | None
    torch: str
    cuda: str | None
    cudnn: int | None
    commit: str | None
    backend: str  # asked for
    forced: str | None  # the kernel or configuration asked for
    rivals: str  # all | settings | eager | none
    sizes: str  # full | reduced | tiny
    quick: bool
    isa: str | None = None  # of a processor: instruction set and threads
    threads: int | None = None
    kernel: str | None = None  # as planned, "aten" where PyTorch computes; of several operators "a + b + c"
    config: str | None = None
    predicted_us: float | None = None  # of all operators together; None where PyTorch computes one
    us: float | None = None
    us_p20: float | None = None
    us_p80: float | None = None
    turns: int | None = None
    graph: bool | None = None  # whether all of these calls were replayed from a CUDA graph
    eager_us: float | None = None  # PyTorch at its defaults
    eager_us_p20: float | None = None
    eager_us_p80: float | None = None
    best_us: float | None = None  # PyTorch's fastest setting at this precision
    best_us_p20: float | None = None
    best_us_p80: float | None = None
    best_setting: str | None = None
    candidates: list[dict[str, Any]] | None = None  # what best_setting was chosen from
    benchmark_first_call_s: float | None = None  # the longest search of cudnn.benchmark
    compile_us: float | None = None  # PyTorch's defaults under torch.compile
    compile_us_p20: float | None = None
    compile_us_p80: float | None = None
    compile_first_call_s: float | None = None  # compilation
    compile_error: str | None = None
    roofline_us: float | None = None
    roofline_tflops: float | None = None  # the rates behind it
    roofline_gbs: float | None = None
    tflops: float | None = None
    gbs: float | None = None
    forward_us: float | None = None  # of forward_backward: medians of its two parts
    backward_us: float | None = None
    eager_forward_us: float | None = None
    eager_backward_us: float | None = None
    plans: list[dict[str, Any]] | None = None  # of each operator: who computes it, kernel, configuration, prediction
    peak_bytes: int | None = None  # allocated during the whole call beyond its operands, results included
    eager_peak_bytes: int | None = None
    max_error: float | None = None  # relative to the sum of the absolute values of the products
    eager_max_error: float | None = None
    errors: dict[str, float] | None = None  # the same for each result apart
    rounding: str | None = None  # of float32 operands, as the errors tell
    eager_rounding: str | None = None
    eager_rounding_rms: dict[str, float] | None = None  # eager's rms error against each rounding
    ok: bool = False
    error: str | None = None
    eager_error: str | None = None

    @property
    def ratio(self) -> float:
        """PyTorch's best time over ours, its default's where only that was measured; 0 where we have none."""
        theirs = self.best_us or self.eager_us
        if self.us is None:
            return 0.0
        return theirs / self.us if theirs else math.inf


# Lines that agree in these measure the same thing.
SETTINGS = (
    "suite", "problem", "direction", "precision", "layout", "device", "driver", "torch", "cuda", "commit", "backend",
    "forced", "rivals", "sizes", "quick", "isa", "threads",
)  # fmt: skip


def settings_of(line: Line) -> tuple[Any, ...]:
    """What makes two lines the same measurement."""
    return tuple(getattr(line, name) for name in SETTINGS)


def read(path: Path) -> list[Line]:
    """The lines of a file that are whole and of this kind, the last one for each setting."""
    known = {field.name for field in fields(Line)}
    found: dict[tuple[Any, ...], Line] = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            forms = [
                Line(**{name: value for name, value in form.items() if name in known})
                for form in older.forms(json.loads(text))
            ]
        except (ValueError, TypeError, AttributeError, KeyError):  # cut off by a kill, or another kind of line
            continue
        found |= {settings_of(line): line for line in forms}
    return list(found.values())


def append(path: Path, line: Line) -> None:
    """Add a line; one that a kill left unfinished stays a line of its own."""
    values = {name: _json(value) for name, value in asdict(line).items()}
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(values, allow_nan=False) + "\n").encode())


def _json(value: Any) -> Any:
    """NaN and infinity are no JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _json(inner) for name, inner in value.items()}
    return [_json(inner) for inner in value] if isinstance(value, list) else value


def said(line: Line) -> str:
    """A line in one sentence, for logs."""
    where = f"{line.problem} {line.direction} {line.precision} {line.layout}"
    where += f" {line.forced}" if line.forced else ""
    words = [f"{line.us:.0f} us" if line.us is not None else "no time"]
    if line.forward_us is not None and line.backward_us is not None:
        words[0] += f" ({line.forward_us:.0f} + {line.backward_us:.0f})"
    for name, theirs in (("eager", line.eager_us), ("best", line.best_us), ("compiled", line.compile_us)):
        if theirs is not None:
            words.append(f"{name} {theirs:.0f}" + (f" ({theirs / line.us:.2f}x)" if line.us else ""))
    if line.us is not None and line.roofline_us:
        words.append(f"{line.us / line.roofline_us:.2f}x roofline")
    words += [line.config or line.kernel or "", line.rounding or ""]
    return f"{where}: {', '.join(word for word in words if word)}, {'ok' if line.ok else f'WRONG {line.error}'}"


def show(lines: Sequence[Line], console: Console) -> None:
    """The table, worst ratio first, and geometric means per direction, precision and layout."""
    first = lines[0]
    words = [first.device, f"driver {first.driver or 'none'}"]
    words += [] if first.isa is None else [first.isa, f"{first.threads} threads"]
    words += [f"torch {first.torch}", f"commit {first.commit or 'unknown'}", f"backend {first.backend}"]
    words += [] if first.sizes == "full" else [f"{first.sizes} sizes"]
    console.print(
        ", ".join(words),
        highlight=False,
        soft_wrap=True,
    )
    table = plain_table()
    for column in ("problem", "precision", "layout", "config"):
        table.add_column(column, no_wrap=True)
    for column in (
        "µs",
        "forward",
        "backward",
        "p20-p80",
        "roofline",
        "TFLOP/s",
        "GB/s",
        "eager",
        "x",
        "best",
        "x",
        "setting",
        "compiled",
        "x",
        "error",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("eager's", "rounding", ""):
        table.add_column(column, no_wrap=True)
    for line in sorted(lines, key=lambda line: line.ratio):
        table.add_row(*_cells(line))
    print_whole(console, table)
    for line in lines:
        for who, error in (("convt", line.error), ("torch", line.eager_error)):
            if error:
                place = f"{line.problem} {line.direction} {line.precision} {line.layout} {line.forced or ''}"
                console.print(f"{place.strip()}: {who}: {error}", highlight=False, soft_wrap=True, markup=False)
    groups = dict.fromkeys((line.direction, line.precision, line.layout) for line in lines)
    for group in groups:
        members = [line for line in lines if (line.direction, line.precision, line.layout) == group]
        console.print(f"{' '.join(group)}: {_means(members)}", highlight=False, soft_wrap=True)


def _cells(line: Line) -> list[str]:
    def number(value: float | None, format: str) -> str:
        return "" if value is None else format.format(value)

    def times(theirs: float | None) -> str:
        if theirs is None or not line.us:
            return ""
        color = "green" if theirs >= 1.05 * line.us else "red" if theirs < 0.95 * line.us else "default"
        return f"[{color}]{theirs / line.us:.2f}[/]"

    return [
        line.problem + ("" if line.direction == "forward" else f" {line.direction.replace('forward_', '+')}"),
        line.precision,
        line.layout,
        line.config or line.forced or line.kernel or line.backend,
        number(line.us, "{:.0f}"),
        number(line.forward_us, "{:.0f}"),
        number(line.backward_us, "{:.0f}"),
        "" if line.us is None else f"{line.us_p20:.0f}-{line.us_p80:.0f}",
        number(line.us and line.roofline_us and line.us / line.roofline_us, "{:.2f}"),
        number(line.tflops, "{:.1f}"),
        number(line.gbs, "{:.0f}"),
        number(line.eager_us, "{:.0f}"),
        times(line.eager_us),
        number(line.best_us, "{:.0f}"),
        times(line.best_us),
        line.best_setting or "",
        number(line.compile_us, "{:.0f}"),
        times(line.compile_us),
        number(line.max_error, "{:.1e}"),
        number(line.eager_max_error, "{:.1e}"),
        line.eager_rounding or "",
        "[green]ok[/]" if line.ok else "[bold red]WRONG[/]",
    ]


def _means(lines: Sequence[Line]) -> str:
    def mean(pairs: Iterable[tuple[float | None, float | None]]) -> str | None:
        logs = [math.log(over / under) for over, under in pairs if over and under]
        return f"{math.exp(sum(logs) / len(logs)):.2f} ({len(logs)})" if logs else None

    means = {
        "eager / convt": mean((line.eager_us, line.us) for line in lines),
        "best / convt": mean((line.best_us, line.us) for line in lines),
        "compiled / convt": mean((line.compile_us, line.us) for line in lines),
        "convt / roofline": mean((line.us, line.roofline_us) for line in lines),
    }
    text = ", ".join(f"{name} {value}" for name, value in means.items() if value)
    right = sum(line.ok for line in lines)
    return f"{right} of {len(lines)} right; geometric means: {text or 'none'}"
