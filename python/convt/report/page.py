"""`convt report RESULTS...`: the page, its pictures, and the comparison with an older file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import convt
from convt.bench.record import Line
from convt.report import pictures
from convt.report.compare import Change, compare
from convt.report.results import (
    DIRECTIONS,
    PRECISIONS,
    Group,
    groups,
    mean,
    over,
    read,
    roofs,
    speedup,
    verdict,
)

ABSENT = "not recorded"


@dataclass(frozen=True)
class Cell:
    """One cell of a sortable table: what is read, what it sorts by, and how it looks."""

    text: str
    value: float | str | None = None
    look: str = ""


@dataclass(frozen=True)
class Column:
    head: str
    about: str
    cell: Callable[[Line], Cell]
    is_number: bool = True


def _words(get: Callable[[Line], object], look: str = "") -> Callable[[Line], Cell]:
    def cell(line: Line) -> Cell:
        text = get(line)
        return Cell(ABSENT, "", "absent") if text in (None, "") else Cell(str(text), str(text), look)

    return cell


def _number(get: Callable[[Line], float | None], format: str, look: str = "") -> Callable[[Line], Cell]:
    def cell(line: Line) -> Cell:
        value = get(line)
        return Cell("–", None, "absent") if value is None else Cell(format.format(value), value, look)

    return cell


def _ratio(theirs: Callable[[Line], float | None]) -> Callable[[Line], Cell]:
    def cell(line: Line) -> Cell:
        value = over(theirs(line), line.us)
        if value is None:
            return Cell("–", None, "absent")
        return Cell(f"{value:.2f}×", value, "loss" if round(value, 2) < 1 else "win" if round(value, 2) > 1 else "")

    return cell


def _spread(line: Line) -> Cell:
    if line.us_p20 is None or line.us_p80 is None:
        return Cell("–", None, "absent")
    return Cell(f"{_us(line.us_p20)}–{_us(line.us_p80)}", line.us_p80 - line.us_p20, "muted")


def _us(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if value >= 100 else f"{value:.3g}"


def _time(get: Callable[[Line], float | None], look: str = "") -> Callable[[Line], Cell]:
    def cell(line: Line) -> Cell:
        value = get(line)
        return Cell("–", None, "absent") if value is None else Cell(_us(value), value, look)

    return cell


def _judged(line: Line) -> Cell:
    if line.ok:
        return Cell("right", 1, "muted")
    return Cell("wrong" if line.us is not None else "failed", 0, "loss")


def _times_roofline(line: Line) -> float | None:
    return over(line.us, line.roofline_us)


COLUMNS = (
    Column("problem", "its name in the suite", _words(lambda line: line.problem, "name"), False),
    Column("layer", "the problem in words", _words(lambda line: line.name), False),
    Column("direction", "", _words(lambda line: DIRECTIONS.get(line.direction, line.direction)), False),
    Column("precision", "", _words(lambda line: PRECISIONS.get(line.precision, line.precision)), False),
    Column("layout", "", _words(lambda line: line.layout.replace("_", " ")), False),
    Column("config", "what the plan chose", _words(lambda line: line.config or line.kernel, "code"), False),
    Column("convt, µs", "median", _time(lambda line: line.us, "strong")),
    Column("p20–p80", "20th and 80th percentile", _spread),
    Column("eager, µs", "PyTorch at its defaults", _time(lambda line: line.eager_us)),
    Column("eager / convt", "above 1 convt is faster", _ratio(lambda line: line.eager_us)),
    Column("best, µs", "PyTorch's fastest setting at this precision", _time(lambda line: line.best_us)),
    Column("best / convt", "above 1 convt is faster", _ratio(lambda line: line.best_us)),
    Column("setting", "the fastest one", _words(lambda line: line.best_setting), False),
    Column("compiled / convt", "torch.compile at its defaults", _ratio(lambda line: line.compile_us)),
    Column("× roofline", "our time over the machine's least", _number(_times_roofline, "{:.1f}")),
    Column("TFLOP/s", "", _number(lambda line: line.tflops, "{:.3g}")),
    Column("GB/s", "", _number(lambda line: line.gbs, "{:.3g}")),
    Column("peak MB", "allocated beyond the operands", _number(lambda line: over(line.peak_bytes, 1e6), "{:.1f}")),
    Column("eager's MB", "the same of PyTorch", _number(lambda line: over(line.eager_peak_bytes, 1e6), "{:.1f}")),
    Column("error", "largest, relative to the sum of the products", _number(lambda line: line.max_error, "{:.1e}")),
    Column("eager's error", "the same of PyTorch", _number(lambda line: line.eager_max_error, "{:.1e}")),
    Column("verdict", "against the definition in float64", _judged),
)  # fmt: skip


def _table(lines: Iterable[Line]) -> dict[str, Any]:
    """Columns and rows; columns without an entry are left out and named."""
    lines = list(lines)
    rows = [[column.cell(line) for column in COLUMNS] for line in lines]
    kept = [index for index in range(len(COLUMNS)) if any(row[index].look != "absent" for row in rows)]
    gone = [COLUMNS[index].head for index in range(len(COLUMNS)) if index not in kept]
    return {
        "columns": [COLUMNS[index] for index in kept],
        "rows": [[row[index] for index in kept] for row in rows],
        "absent": gone,
    }


def _facts(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """What the lines were measured on and with; several values where files differ."""

    def said(get: Callable[[Line], object]) -> str:
        values = dict.fromkeys(ABSENT if get(line) is None else str(get(line)) for line in lines)
        return ", ".join(values)

    on_gpu = any(line.driver for line in lines)
    facts = [("device", said(lambda line: line.device))]
    if on_gpu:
        facts += [("driver", said(lambda line: line.driver)), ("CUDA", said(lambda line: line.cuda))]
        facts += [("cuDNN", said(lambda line: line.cudnn))]
    else:
        facts += [("instruction set", said(lambda line: line.isa)), ("threads", said(lambda line: line.threads))]
    facts += [("PyTorch", said(lambda line: line.torch)), ("commit", said(lambda line: line.commit))]
    facts += [("backend", said(lambda line: line.backend)), ("sizes", said(lambda line: line.sizes))]
    if any(line.quick for line in lines):
        facts.append(("turns", "three per line: numbers are rough"))
    return facts


@dataclass(frozen=True)
class Summary:
    """A group in one row."""

    group: Group
    right: int
    eager: float | None
    best: float | None
    compiled: float | None
    roofline: float | None
    wins: int
    losses: int


def _summary(group: Group) -> Summary:
    lines = group.lines
    verdicts = [verdict(line) for line in lines if speedup(line)]
    return Summary(
        group,
        sum(line.ok for line in lines),
        mean(lines, speedup),
        mean(lines, lambda line: over(line.best_us, line.us)),
        mean(lines, lambda line: over(line.compile_us, line.us)),
        mean(lines, _times_roofline),
        verdicts.count("win"),
        verdicts.count("loss"),
    )


def _drawn(group: Group, number: int) -> dict[str, Any]:
    drawn: dict[str, Any] = {"summary": _summary(group)}
    for kind, draw in (("roofline", pictures.roofline), ("speedups", pictures.speedups)):
        made = draw(group, pictures.THEMED)
        drawn[kind] = None if made is None else Markup(pictures.svg(*made, name=f"g{number}{kind[0]}"))
    return drawn


def html(lines: Sequence[Line], paths: Sequence[Path], changes: Sequence[Change] | None = None, old: str = "") -> str:
    """The page: one file that needs neither network nor any other file."""
    parts = groups(lines, roofs(paths))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"us": lambda value: "–" if value is None else _us(value)}
    environment.filters |= {"times": lambda value: "–" if value is None else f"{value:.2f}×"}
    kinds = ("wrong", "slower", "same", "faster", "right")
    return environment.get_template("page.html.j2").render(
        facts=_facts(lines),
        count=len(lines),
        right=sum(line.ok for line in lines),
        files=[path.name for path in paths],
        groups=[_drawn(group, number) for number, group in enumerate(parts)],
        table=_table(line for group in parts for line in group.lines),
        changes=changes,
        counts=None if changes is None else {kind: sum(change.kind == kind for change in changes) for kind in kinds},
        old=old,
        version=convt.__version__,
        words={"directions": DIRECTIONS, "precisions": PRECISIONS},
    )


def write(paths: Sequence[Path], out: Path, *, against: Path | None = None) -> list[Change]:
    """Write index.html and a PNG of each picture into the directory `out`; returns the changes since `against`.

    Raises:
        ValueError: a file is not there, holds no line of a layer, or has no problem in common with `against`.
    """
    lines = read(paths)
    changes: list[Change] | None = None
    if against is not None:
        changes = compare(lines, read([against]))
        if not changes:
            raise ValueError(f"report: {against} has no problem in common with {', '.join(map(str, paths))}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(html(lines, paths, changes, "" if against is None else against.name))
    for group in groups(lines, roofs(paths)):
        for kind, draw in (("roofline", pictures.roofline), ("speedups", pictures.speedups)):
            made = draw(group, pictures.LIGHT)
            if made is not None:
                (out / f"{group.slug}-{kind}.png").write_bytes(pictures.png(made[0]))
    return changes or []
