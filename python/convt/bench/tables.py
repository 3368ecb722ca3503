"""`convt bench table`: results files as Markdown, and the places in the documentation that hold it.

A document says what it wants between two comments, paths relative to itself, and `--update` writes it there:

    <!-- convt bench table results/h200_kernelbench.jsonl --kind layers --filter tf32 contiguous -->
    ...
    <!-- end of table -->
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from convt.bench import overhead, record
from convt.bench.record import Line

_PLACE = re.compile(r"(<!-- convt bench table (.*?) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
_MISSING = "*No such measurement is in the repository yet.*"


def read(paths: Sequence[Path], words: Sequence[str] = ()) -> list[Line]:
    """What the plan chose on real sizes: the last line of each problem, direction, precision and layout.

    words name the directions, precisions, layouts and problems to keep, one or several of a kind.

    Raises:
        ValueError: a file is not there, or nothing is left.
    """
    found: dict[tuple[str, ...], Line] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(f"table: there is no file {path}")
        for line in record.read(path):
            if line.forced is None and line.sizes == "full":
                found[line.direction, line.precision, line.layout, line.problem] = line
    for kind in range(4):
        wanted = {word for word in words if any(key[kind] == word for key in found)}
        found = {key: line for key, line in found.items() if not wanted or key[kind] in wanted}
        words = [word for word in words if word not in wanted]
    if words or not found:
        raise ValueError(f"table: nothing in {', '.join(map(str, paths))} matches {' '.join(words) or 'that'}")
    return list(found.values())


# ---- what can be made of them ------------------------------------------------------------------------------------


def layers(lines: Sequence[Line]) -> str:
    """A row per line: our time, predicted and measured, PyTorch's times, errors, PyTorch's rounding; then means."""
    head = (
        "problem", "layer", "config", "predicted", "convt", "p20-p80", "convt / roofline", "TFLOP/s", "GB/s",
        "eager", "eager / convt", "best", "best / convt", "setting", "error", "eager's", "eager multiplies", "",
    )  # fmt: skip
    rows = [
        (
            line.problem,
            line.name,
            line.config or line.kernel or "",
            _number(line.predicted_us, "{:.0f}"),
            _number(line.us, "{:.0f}"),
            "" if line.us is None else f"{_number(line.us_p20, '{:.0f}')}-{_number(line.us_p80, '{:.0f}')}",
            _number(_over(line.us, line.roofline_us), "{:.2f}"),
            _number(line.tflops, "{:.1f}"),
            _number(line.gbs, "{:.0f}"),
            _number(line.eager_us, "{:.0f}"),
            _ratio(_over(line.eager_us, line.us)),
            _number(line.best_us, "{:.0f}"),
            _ratio(_over(line.best_us, line.us)),
            line.best_setting or "",
            _number(line.max_error, "{:.1e}"),
            _number(line.eager_max_error, "{:.1e}"),
            (line.eager_rounding or "").replace("_", " "),
            "" if line.ok else "**wrong**" if line.us is not None else "**failed**",
        )
        for line in lines
    ]
    return f"{facts(lines)}\n\n{_table(head, rows, 'lllrrrrrrrrrrlrrll')}\n\n{means(lines)}"


def training(lines: Sequence[Line]) -> str:
    """A row per line of forward and backward, losses first: times, their parts, memory; then means."""
    head = (
        "problem", "layer", "precision", "layout", "config", "convt", "forward", "backward", "eager", "its forward",
        "its backward", "eager / convt", "best", "best / convt", "setting", "peak MB", "eager's", "error", "eager's",
        "",
    )  # fmt: skip
    lines = [line for line in lines if line.direction == "forward_backward"]
    if not lines:
        raise ValueError("table: no line here is of forward_backward")
    rows = [
        (
            line.problem,
            line.name,
            line.precision,
            line.layout,
            line.config or line.kernel or "",
            _number(line.us, "{:.0f}"),
            _number(line.forward_us, "{:.0f}"),
            _number(line.backward_us, "{:.0f}"),
            _number(line.eager_us, "{:.0f}"),
            _number(line.eager_forward_us, "{:.0f}"),
            _number(line.eager_backward_us, "{:.0f}"),
            _ratio(_over(line.eager_us, line.us)),
            _number(line.best_us, "{:.0f}"),
            _ratio(_over(line.best_us, line.us)),
            line.best_setting or "",
            _number(_over(line.peak_bytes, 1e6), "{:.0f}"),
            _number(_over(line.eager_peak_bytes, 1e6), "{:.0f}"),
            _number(line.max_error, "{:.1e}"),
            _number(line.eager_max_error, "{:.1e}"),
            "" if line.ok else "**wrong**" if line.us is not None else "**failed**",
        )
        for line in sorted(lines, key=lambda line: _over(line.eager_us, line.us) or 0.0)
    ]
    return f"{facts(lines)}\n\n{_table(head, rows, 'lllllrrrrrrrrrlrrrrl')}\n\n{means(lines)}"


def means(lines: Sequence[Line]) -> str:
    """Geometric means for each direction, precision and layout, and where PyTorch is faster."""
    head = ("", "right", "eager / convt", "PyTorch's best / convt", "convt / roofline", "eager faster", "best faster")
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.direction, line.precision, line.layout), []).append(line)
    rows = [
        (
            " ".join(group).replace("forward_backward", "forward and backward"),
            f"{sum(line.ok for line in members)} of {len(members)}",
            _mean((line.eager_us, line.us) for line in members),
            _mean((line.best_us, line.us) for line in members),
            _mean((line.us, line.roofline_us) for line in members),
            _slower(members, lambda line: line.eager_us),
            _slower(members, lambda line: line.best_us),
        )
        for group, members in groups.items()
    ]
    return _table(head, rows, "llrrrll")


def torch_settings(lines: Sequence[Line]) -> str:
    """What PyTorch's settings take: a row per direction, precision and problem, µs, and cuDNN's search in seconds."""
    names: list[str] = []
    rows: dict[tuple[str, str, str], tuple[str, ...]] = {}
    for line in lines:
        for candidate in line.candidates or ():
            name = f"{candidate['layout']}{' benchmark' if candidate['benchmark'] else ''}"
            if name not in names:
                names.append(name)
    names.sort()
    for line in lines:
        if not line.candidates:
            continue
        times = {
            f"{candidate['layout']}{' benchmark' if candidate['benchmark'] else ''}": (
                _number(candidate["us"], "{:.0f}") if candidate["us"] is not None else "fails"
            )
            for candidate in line.candidates
        }
        cells = tuple(times.get(name, "") for name in names)
        searched = _number(line.benchmark_first_call_s, "{:.2f}")
        rows[line.direction, line.precision, line.problem] = (line.problem, line.precision, *cells, searched)
    head = ("problem", "precision", *names, "search, s")
    return f"{facts(lines)}\n\n{_table(head, list(rows.values()), 'll' + 'r' * len(names) + 'r')}"


def facts(lines: Sequence[Line]) -> str:
    """The machine and the versions in one sentence."""

    def said(values: Iterable[object], otherwise: str) -> str:
        return ", ".join(dict.fromkeys(otherwise if value is None else str(value) for value in values))

    words = [
        said((line.device for line in lines), ""),
        "driver " + said((line.driver for line in lines), "unknown"),
        "CUDA " + said((line.cuda for line in lines), "none"),
        "cuDNN " + said((line.cudnn for line in lines), "none"),
        "torch " + said((line.torch for line in lines), ""),
        "commit " + said((line.commit for line in lines), "unknown"),
    ]
    rates = sorted({(line.precision, line.roofline_tflops, line.roofline_gbs) for line in lines if line.roofline_us})
    ceilings = {precision: f"{tflops:.0f} TFLOP/s {precision}" for precision, tflops, _ in rates if tflops}
    if ceilings:
        words.append(f"roofline {', '.join(ceilings.values())}, {max(gbs or 0.0 for *_, gbs in rates):.0f} GB/s")
    if any(line.quick for line in lines):
        words.append("three turns only")
    return "; ".join(words) + "."


KINDS: dict[str, Callable[[Sequence[Line]], str]] = {
    "layers": layers,
    "training": training,
    "means": means,
    "torch": torch_settings,
    "facts": facts,
}


# ---- documents ---------------------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `convt bench table` and the comments in documents may say."""
    parser.add_argument("results", nargs="*", type=Path, help="files of `convt bench kernelbench --out`")
    parser.add_argument("--kind", choices=(*KINDS, "overhead"), default="layers", help="what to make of them (layers)")
    parser.add_argument(
        "--filter", nargs="+", default=[], metavar="WORD", help="directions, precisions, layouts, problems"
    )


def filled(document: Path) -> str:
    """The document's text with every table made anew; one that was not measured says so."""
    made = [_made(options) for _, options in _places(document)]
    return _PLACE.sub(lambda match: f"{match[1]}\n{made.pop(0)}\n\n{match[4]}", document.read_text())


def made(options: argparse.Namespace) -> str:
    """The table that a comment or a command asks for. Raises ValueError where there is no such measurement."""
    if options.kind == "overhead":
        return _overhead(overhead.read(options.results, options.filter))
    return KINDS[options.kind](read(options.results, options.filter))


def _made(options: argparse.Namespace) -> str:
    try:
        return made(options)
    except ValueError:
        return _MISSING


def _overhead(lines: Sequence[overhead.Line]) -> str:
    """A row per way to call, and the machine and versions in one sentence."""
    head = ("call", "convt.backend", "PyTorch, ns", "convt, ns", "PyTorch / convt")
    rows = [
        (line.call, line.backend, _number(line.torch_ns, "{:.0f}"), _number(line.ns, "{:.0f}"), _ratio(line.ratio))
        for line in lines
    ]
    said = [
        ", ".join(dict.fromkeys(str(getattr(line, name)) for line in lines)) for name in ("device", "torch", "commit")
    ]
    return f"{said[0]}; torch {said[1]}; commit {said[2]}.\n\n{_table(head, rows, 'llrrr')}"


def update(document: Path) -> bool:
    """Write the tables of a document; whether anything changed. Raises ValueError when it has no place for one."""
    if not _places(document):
        raise ValueError(f"table: {document} has no place for a table: see `convt bench table` in docs/tuning.md")
    text = filled(document)
    changed = text != document.read_text()
    if changed:
        document.write_text(text)
    return changed


def _places(document: Path) -> list[tuple[re.Match[str], argparse.Namespace]]:
    parser = argparse.ArgumentParser(prog=str(document), exit_on_error=False)
    arguments(parser)
    found = []
    for match in _PLACE.finditer(document.read_text()):
        options = parser.parse_args(shlex.split(match[2]))
        options.results = [document.parent / path for path in options.results]
        found.append((match, options))
    return found


# ---- cells -------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def _number(value: float | None, format: str) -> str:
    return "" if value is None else format.format(value)


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _ratio(value: float | None) -> str:
    """Bold where PyTorch is faster, as it is written: 0.996 is 1.00."""
    text = _number(value, "{:.2f}")
    return f"**{text}**" if text and float(text) < 1 else text


def _mean(pairs: Iterable[tuple[float | None, float | None]]) -> str:
    logs = [math.log(over / under) for over, under in pairs if over and under]
    return f"{math.exp(sum(logs) / len(logs)):.2f}" if logs else ""


def _slower(lines: Sequence[Line], theirs: Callable[[Line], float | None]) -> str:
    """The problems where PyTorch takes less time than we do, or we have none."""
    timed = [(line, theirs(line)) for line in lines]
    worse = [
        line.problem
        for line, time in timed
        if time is not None and (line.us is None or float(f"{time / line.us:.2f}") < 1)
    ]
    return ", ".join(worse) if worse else "none" if any(time for _, time in timed) else ""
