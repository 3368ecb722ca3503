"""The figures of docs/math.md, drawn from the geometry that the kernels use: `python docs/figures/make.py`.

A figure is two functions: one asks `convt._C.Axis` for numbers, one draws them. The numbers travel in the picture's
metadata (SVG, `description`), so that a test can compare a picture with the geometry of today.
"""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from convt import _C
from convt.testing import kernelbench

HERE = Path(__file__).resolve().parent
PADDED, ALIGNED = _C.Origin.padded, _C.Origin.aligned

# Okabe and Ito's colours, which colour-blind readers tell apart; phases take them in this order.
PHASES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
INK, FAINT, PAPER, EMPTY = "#222222", "#8a8a8a", "#ffffff", "#eeeeee"
ON_PHASES = (PAPER, INK, PAPER, INK, INK)  # legible on them

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.fonttype": "path",  # looks the same without the font
    "svg.hashsalt": "convt",  # the same file from the same numbers
    "hatch.linewidth": 0.6,
}

EXAMPLE = {"input": 4, "filter": 4, "stride": 2, "padding": 1}  # that of docs/math.md
DILATED = {"input": 4, "filter": 3, "stride": 4, "padding": 0, "dilation": 2}

Data = dict[str, Any]


# ---- numbers -----------------------------------------------------------------------------------------------------


def products(axis: _C.Axis, origin: _C.Origin) -> list[dict[str, int]]:
    """Every product of an axis, cropped ones included: pixel, tap, and the phase, q and output that it belongs to."""
    found = []
    for tap in range(axis.filter):
        shift, phase = axis.tap(tap, origin)
        for pixel in range(axis.input):
            output = axis.output_of(pixel + shift, phase, origin)
            found.append({"pixel": pixel, "tap": tap, "phase": phase, "q": pixel + shift, "output": output})
    return found


def taps_data() -> Data:
    """Which pixel reaches which output by which tap."""
    axis = _C.Axis(**EXAMPLE)
    begin, count = axis.q_grid(ALIGNED)
    return {"axis": EXAMPLE, "output": axis.output, "grid": [begin, count], "products": products(axis, ALIGNED)}


def dilation_data() -> Data:
    """The same where stride and dilation have a common divisor: phases without a tap."""
    axis = _C.Axis(**DILATED)
    begin, count = axis.q_grid(ALIGNED)
    reached = {axis.tap(tap, ALIGNED)[1] for tap in range(axis.filter)}
    return {
        "axis": DILATED,
        "output": axis.output,
        "grid": [begin, count],
        "tap_period": axis.tap_period,
        "empty": sorted(set(range(axis.stride)) - reached),
        "products": products(axis, ALIGNED),
    }


def shifts_data() -> Data:
    """Where taps stand among (phase, shift), for both origins and for the rows and columns of a strided problem."""
    problem = kernelbench.PROBLEMS["81"]
    row = {
        "input": problem.input[0],
        "filter": problem.filter[0],
        "stride": problem.stride[0],
        "padding": problem.padding[0],
        "dilation": problem.dilation[0],
    }
    panels = []
    for title, parameters, origin in (
        ("padded", EXAMPLE, PADDED),
        ("aligned", EXAMPLE, ALIGNED),
        ("aligned", row, ALIGNED),
    ):
        axis = _C.Axis(**parameters)
        panels.append(
            {
                "origin": title,
                "axis": parameters,
                "grid": list(axis.q_grid(origin)),
                "taps": [list(axis.tap(tap, origin)) for tap in range(axis.filter)],
            }
        )
    return {"panels": panels}


def patch_data() -> Data:
    """What a box of q positions reads and writes, in two dimensions."""
    parameters = {"input": 8, "filter": 4, "stride": 2, "padding": 1}
    axis = _C.Axis(**parameters)
    box = {"rows": [2, 5], "columns": [3, 7]}
    patch = {side: list(axis.patch(*box[side], ALIGNED)) for side in box}
    reached = {
        side: sorted(
            axis.output_of(q, phase, ALIGNED) for q in range(*box[side]) for phase in range(axis.stride)
        )
        for side in box
    }  # fmt: skip
    return {
        "axis": parameters,
        "output": axis.output,
        "box": box,
        "patch": patch,
        "halo": axis.halo(ALIGNED),
        "reached": reached,
    }


def gather_data() -> Data:
    """The columns of col2im, and the same products sorted by phase, shift and q."""
    axis = _C.Axis(**EXAMPLE)
    taps = [axis.tap(tap, ALIGNED) for tap in range(axis.filter)]
    order = sorted(range(axis.filter), key=lambda tap: (taps[tap][1], taps[tap][0]))
    begin, count = axis.q_grid(ALIGNED)
    return {
        "axis": EXAMPLE,
        "output": axis.output,
        "grid": [begin, count],
        "taps": [list(tap) for tap in taps],
        "order": order,
        "products": products(axis, ALIGNED),
    }


# ---- pictures ----------------------------------------------------------------------------------------------------


def canvas(width: float, height: float, panels: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, panels, figsize=(width, height), squeeze=False, layout="constrained", **options)
    for axis in axes[0]:
        axis.set_axis_off()
        axis.set_aspect("equal")
    return figure, list(axes[0])


def cell(
    axes: Axes,
    x: float,
    y: float,
    text: str = "",
    *,
    fill: str = PAPER,
    ink: str = INK,
    edge: str = INK,
    size: float = 0.8,
    style: str = "-",
    hatch: str | None = None,
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - size / 2, y - size / 2), size, size, boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=fill, edgecolor=edge, linewidth=1.0, linestyle=style, hatch=hatch, zorder=3,
        )
    )  # fmt: skip
    axes.text(x, y - 0.01, text, ha="center", va="center", color=ink, fontsize=9, zorder=4)


def connections(axes: Axes, data: Data, *, labels_at: float = 0.4) -> None:
    """Pixels above, outputs below, a line per product in the colour of its phase, its tap written on it."""
    stride, output = data["axis"]["stride"], data["output"]
    above = 3.2
    places = range(min(p["output"] for p in data["products"]), max(p["output"] for p in data["products"]) + 1)
    reached = {p["output"]: p["phase"] for p in data["products"]}

    def over(pixel: int) -> float:
        # Each pixel stands over the middle of the outputs that its taps reach.
        targets = [p["output"] for p in data["products"] if p["pixel"] == pixel]
        return (min(targets) + max(targets)) / 2

    for product in data["products"]:
        kept = 0 <= product["output"] < output
        colour = PHASES[product["phase"]] if kept else FAINT
        start, end = (over(product["pixel"]), above - 0.4), (product["output"], 0.4)
        axes.plot(
            *zip(start, end, strict=True), color=colour, lw=1.8 if kept else 1.0, ls="-" if kept else ":", zorder=1
        )
        at = [a + labels_at * (b - a) for a, b in zip(start, end, strict=True)]
        axes.text(
            *at, str(product["tap"]), color=colour, ha="center", va="center", fontsize=8.5, fontweight="bold",
            bbox={"boxstyle": "circle,pad=0.12", "facecolor": PAPER, "edgecolor": "none"}, zorder=2,
        )  # fmt: skip
    for pixel in range(data["axis"]["input"]):
        cell(axes, over(pixel), above, f"i{pixel}", fill="#dddddd")
    for place in (*places, *range(max(places) + 1, output)):
        if not 0 <= place < output:
            cell(axes, place, 0, f"{place}", edge=FAINT, ink=FAINT, style=":")
        elif place in reached:
            phase = reached[place]
            cell(axes, place, 0, f"o{place}", fill=PHASES[phase], ink=ON_PHASES[phase], edge=PHASES[phase])
        else:
            cell(axes, place, 0, f"o{place}", fill=EMPTY, ink=INK, edge=FAINT, hatch="////")
    begin, count = data["grid"]
    for q in range(begin, begin + count):
        left, right = stride * q - 0.42, min(stride * q + stride - 1, output - 1) + 0.42
        axes.plot([left, left, right, right], [-0.6, -0.72, -0.72, -0.6], color=INK, lw=1.0)
        axes.text((left + right) / 2, -1.02, f"q = {q}", ha="center", va="center", fontsize=9)
    axes.set_xlim(min(places) - 0.7, max(max(places), output - 1) + 0.7)
    axes.set_ylim(-1.3, above + 0.5)


def key(axes: Axes, x: float, y: float, phases: list[tuple[int, str]], step: float = 2.5) -> None:
    for number, (phase, text) in enumerate(phases):
        colour, hatch = (EMPTY, "////") if "no tap" in text else (PHASES[phase], None)
        cell(axes, x + step * number, y, fill=colour, edge=FAINT if hatch else colour, size=0.42, hatch=hatch)
        axes.text(x + step * number + 0.38, y, text, va="center", fontsize=9)


def draw_taps(data: Data) -> Figure:
    figure, (axes,) = canvas(7.4, 3.9)
    connections(axes, data)
    key(axes, 1.6, 4.2, [(0, "phase 0"), (1, "phase 1")])
    axes.set_ylim(-1.3, 4.6)
    return figure


def draw_dilation(data: Data) -> Figure:
    figure, (axes,) = canvas(10.0, 3.5)
    connections(axes, data, labels_at=0.5)
    reached = sorted({p["phase"] for p in data["products"]})
    words = [(phase, f"phase {phase}") for phase in reached]
    words.append((0, "phases " + " and ".join(map(str, data["empty"])) + ": no tap"))
    key(axes, 4.6, 4.2, words)
    axes.set_ylim(-1.3, 4.6)
    return figure


def draw_shifts(data: Data) -> Figure:
    shapes = []
    for panel in data["panels"]:
        shifts = [shift for shift, _ in panel["taps"]]
        shapes.append(range(min(shifts), max(shifts) + 1))
    figure, panels = canvas(7.0, 3.4, len(shapes))
    for axes, panel, shifts in zip(panels, data["panels"], shapes, strict=True):
        stride = panel["axis"]["stride"]
        place = {(phase, shift): tap for tap, (shift, phase) in enumerate(panel["taps"])}
        for phase in range(stride):
            axes.text(
                shifts.start - 0.65, -phase, f"{phase}", ha="right", va="center", color=PHASES[phase], fontweight="bold"
            )
            for shift in shifts:
                tap = place.get((phase, shift))
                if tap is None:
                    cell(axes, shift, -phase, fill=EMPTY, edge=FAINT, hatch="////")
                else:
                    cell(axes, shift, -phase, f"k{tap}", fill=PHASES[phase], edge=PHASES[phase], ink=ON_PHASES[phase])
        for shift in shifts:
            axes.text(shift, 0.65, f"{shift}", ha="center", va="center")
        middle = (shifts.start + shifts.stop - 1) / 2
        axes.text(middle, 1.12, "shift", ha="center", va="center", color=FAINT)
        axes.text(shifts.start - 1.2, -(stride - 1) / 2, "phase", ha="center", va="center", rotation=90, color=FAINT)
        words = {"filter": "k", "stride": "s", "padding": "p", "dilation": "d"}
        said = " ".join(f"{short}{panel['axis'][name]}" for name, short in words.items() if name in panel["axis"])
        axes.text(middle, 1.95, panel["origin"], ha="center", va="center", fontsize=11, fontweight="bold")
        axes.text(middle, 1.55, f"{said}, I = {panel['axis']['input']}", ha="center", va="center", fontsize=9)
        axes.text(middle, -stride - 0.05, f"{panel['grid'][1]} positions", ha="center", va="center", fontsize=9)
        axes.set_xlim(middle - 3.0, middle + 2.6)
        axes.set_ylim(-5.4, 2.2)
    return figure


def draw_patch(data: Data) -> Figure:
    figure, (left, right) = canvas(9.4, 5.0, 2, width_ratios=[10, 16.6])
    rows, columns = data["box"]["rows"], data["box"]["columns"]
    patch_rows, patch_columns = data["patch"]["rows"], data["patch"]["columns"]
    for y in range(data["axis"]["input"]):
        for x in range(data["axis"]["input"]):
            inside = rows[0] <= y < rows[1] and columns[0] <= x < columns[1]
            halo = patch_rows[0] <= y < patch_rows[1] and patch_columns[0] <= x < patch_columns[1]
            fill = "#7a7a7a" if inside else "#cfcfcf" if halo else PAPER
            cell(left, x, -y, fill=fill, edge=INK if halo else FAINT)
    beyond = [
        (x, y)
        for y in range(*patch_rows)
        for x in range(*patch_columns)
        if not (0 <= y < data["axis"]["input"] and 0 <= x < data["axis"]["input"])
    ]
    for x, y in beyond:
        cell(left, x, -y, "0", fill="#cfcfcf", style=":")
    frame(left, patch_columns, patch_rows, "--")
    frame(left, columns, rows, "-")
    height, width = (patch[1] - patch[0] for patch in (patch_rows, patch_columns))
    left.set_title(f"input: {rows[1] - rows[0]} x {columns[1] - columns[0]} box, {height} x {width} patch", fontsize=11)
    reached = data["reached"]
    stride = data["axis"]["stride"]
    for y in range(data["output"]):
        for x in range(data["output"]):
            made = y in reached["rows"] and x in reached["columns"]
            colour = PHASES[(y % stride) * stride + x % stride]
            cell(right, x, -y, fill=colour if made else PAPER, edge=colour if made else FAINT)
    frame(
        right, [reached["columns"][0], reached["columns"][-1] + 1], [reached["rows"][0], reached["rows"][-1] + 1], "-"
    )
    right.set_title(f"output: {len(reached['rows'])} x {len(reached['columns'])}, every phase of the box", fontsize=11)
    for number in range(stride * stride):
        x = 0.2 + 4 * number
        cell(right, x, -data["output"] - 0.2, fill=PHASES[number], edge=PHASES[number])
        right.text(x + 0.7, -data["output"] - 0.2, f"({number // stride}, {number % stride})", va="center", fontsize=9)
    for axes, extent in ((left, data["axis"]["input"]), (right, data["output"])):
        axes.set_xlim(-0.9, extent - 0.1)
        axes.set_ylim(-extent - 0.9, 0.9)
        axes.set_anchor("N")
    return figure


def frame(axes: Axes, columns: list[int], rows: list[int], style: str) -> None:
    corner = (columns[0] - 0.5, -(rows[1] - 0.5))
    axes.add_patch(
        Rectangle(
            corner, columns[1] - columns[0], rows[1] - rows[0], fill=False, edgecolor=INK, lw=2.0, ls=style, zorder=5
        )
    )


def draw_gather(data: Data) -> Figure:
    figure, (left, right) = canvas(9.6, 3.7, 2, width_ratios=[9, 11])
    input, filter = data["axis"]["input"], data["axis"]["filter"]
    where = {(p["tap"], p["pixel"]): p for p in data["products"]}
    step = 1.7

    def entry(axes: Axes, x: float, y: float, product: dict[str, int]) -> None:
        kept = 0 <= product["output"] < data["output"]
        colour = PHASES[product["phase"]] if kept else FAINT
        axes.add_patch(
            FancyBboxPatch(
                (x - 0.72, y - 0.4), 1.44, 0.8, boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=colour if kept else PAPER, edgecolor=colour, linestyle="-" if kept else ":", zorder=3,
            )
        )  # fmt: skip
        ink = ON_PHASES[product["phase"]] if kept else FAINT
        axes.text(
            x,
            y - 0.01,
            f"k{product['tap']}·i{product['pixel']}",
            ha="center",
            va="center",
            color=ink,
            fontsize=9,
            zorder=4,
        )

    for tap in range(filter):
        left.text(-1.15, -1.25 * tap, f"k{tap}", ha="right", va="center")
        for pixel in range(input):
            entry(left, step * pixel, -1.25 * tap, where[tap, pixel])
            output = where[tap, pixel]["output"]
            said = f"to o{output}" if 0 <= output < data["output"] else "cropped"
            left.text(step * pixel, -1.25 * tap - 0.58, said, ha="center", va="center", fontsize=7.5, color=FAINT)
    for pixel in range(input):
        left.text(step * pixel, 0.8, f"i{pixel}", ha="center", va="center")
    left.set_title("col2im: a column per pixel, scattered", fontsize=11)
    left.set_xlim(-2.0, step * input - 0.6)
    left.set_ylim(-5.0, 1.2)

    begin, count = data["grid"]
    height, previous = 0.0, None
    for tap in data["order"]:
        shift, phase = data["taps"][tap]
        if previous is not None and phase != previous:
            sums(right, step, height + 0.3, previous, data)
            height -= 1.15
        right.text(step * begin - 1.0, height, f"k{tap}, shift {shift}", ha="right", va="center", fontsize=9)
        for q in range(begin, begin + count):
            pixel = q - shift
            if 0 <= pixel < input:
                entry(right, step * (q - begin), height, where[tap, pixel])
            else:
                right.text(step * (q - begin), height, "0", ha="center", va="center", color=FAINT)
        height, previous = height - 0.95, phase
    sums(right, step, height + 0.3, previous, data)
    for q in range(begin, begin + count):
        right.text(step * (q - begin), 0.8, f"q{q}", ha="center", va="center")
    right.set_title("the same products by phase and shift, gathered", fontsize=11)
    right.set_xlim(-3.6, step * count - 0.6)
    right.set_ylim(-5.0, 1.2)
    return figure


def sums(axes: Axes, step: float, y: float, phase: int, data: Data) -> None:
    """The line under a phase's products, and the outputs that they sum up to."""
    begin, count = data["grid"]
    for q in range(begin, begin + count):
        x = step * (q - begin)
        axes.plot([x - 0.72, x + 0.72], [y + 0.12, y + 0.12], color=INK, lw=1.0)
        output = data["axis"]["stride"] * q + phase
        axes.text(x, y - 0.18, f"o{output}", ha="center", va="center", color=PHASES[phase], fontweight="bold")


class Drawing(NamedTuple):
    data: Callable[[], Data]
    draw: Callable[[Data], Figure]


FIGURES = {
    "taps": Drawing(taps_data, draw_taps),
    "shifts": Drawing(shifts_data, draw_shifts),
    "patch": Drawing(patch_data, draw_patch),
    "gather": Drawing(gather_data, draw_gather),
    "dilation": Drawing(dilation_data, draw_dilation),
}


def make(name: str, folder: Path, suffix: str = "svg") -> Path:
    """Draw one figure into a folder; the numbers are its description."""
    data = FIGURES[name].data()
    with plt.rc_context(STYLE):
        figure = FIGURES[name].draw(data)
        path = folder / f"{name}.{suffix}"
        metadata = {"Date": None, "Description": json.dumps(data)} if suffix == "svg" else {}
        figure.savefig(path, metadata=metadata, facecolor=PAPER, dpi=110)
        plt.close(figure)
    return path


def data_of(path: Path) -> Data:
    """The numbers that an SVG was drawn from."""
    description = ElementTree.parse(path).getroot().find(".//{http://purl.org/dc/elements/1.1/}description")
    assert description is not None and description.text is not None, f"{path} has no description"
    data: Data = json.loads(description.text)
    return data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*FIGURES, []], help="all of them unless named")
    parser.add_argument("--folder", type=Path, default=HERE)
    parser.add_argument("--suffix", choices=("svg", "png"), default="svg")
    options = parser.parse_args()
    for chosen in options.names or FIGURES:
        print(make(chosen, options.folder, options.suffix))
