"""The pictures of a report: a roofline and speed-ups, drawn with matplotlib, as PNG and as the page's own SVG."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from convt.bench.record import Line
from convt.report.results import Group, intensity, interval, over, speedup, verdict


@dataclass(frozen=True)
class Palette:
    """Colours that stay apart for every kind of colour vision (after Okabe and Ito)."""

    ink: str = "#1d2330"
    muted: str = "#667085"
    rule: str = "#dfe3ea"
    paper: str = "#ffffff"
    win: str = "#0072b2"
    loss: str = "#d55e00"
    tie: str = "#98a2b3"


LIGHT = Palette()
# In the SVG these stand for the page's own colours.
_NAMES = ("ink", "muted", "rule", "paper", "win", "loss", "tie")
_STAND_INS = {f"#0a0b{index:02x}": f"var(--{name})" for index, name in enumerate(_NAMES)}
THEMED = Palette(*_STAND_INS)

_FONT = "DejaVu Sans"
_STYLE: Any = {
    "font.family": [_FONT],
    "font.size": 9,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}
_MOST_LABELS = 24


def png(figure: Figure) -> bytes:
    """A figure as a PNG of 160 dots per inch."""
    stream = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", dpi=160)
    return stream.getvalue()


def svg(figure: Figure, titles: dict[str, str], name: str) -> str:
    """A figure as inline SVG: the page's colours and font, `titles` on hovering over what has their ids.

    `name` keeps the ids of several figures on one page apart.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for color, variable in _STAND_INS.items():
        text = text.replace(color, variable)
    text = text.replace(f"'{_FONT}'", "var(--font)")
    # Elements of several figures must not share an id.
    text = re.sub(r'(id="|href="#|url\(#)(?!dot|bar)', rf"\g<1>{name}-", text)
    for key, title in titles.items():
        text = text.replace(f'<g id="{key}">', f'<g id="{name}-{key}"><title>{html.escape(title)}</title>')
    width = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text)
    assert width is not None
    return text.replace(width[0], 'width="100%"', 1)


def _figure(width: float, height: float, palette: Palette) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=palette.paper)
    axes = figure.add_subplot(facecolor="none")
    for side in ("left", "bottom"):
        axes.spines[side].set_color(palette.rule)
    axes.tick_params(colors=palette.muted, which="both")
    return figure, axes


def roofline(group: Group, palette: Palette) -> tuple[Figure, dict[str, str]] | None:
    """TFLOP/s over flop per byte, both logarithmic: one dot per problem, PyTorch's beside it, below what was measured
    as the machine's roof. With a text for each dot; None where a line has no rates.
    """
    lines = [line for line in group.lines if line.us and intensity(line)]
    roof = group.roof
    if not lines or not roof.gbs or not roof.tflops:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(6.4, 4.4, palette)
        unit, scale = ("TFLOP/s", 1.0) if roof.tflops >= 1 else ("GFLOP/s", 1e3)
        peak, slope = roof.tflops * scale, roof.gbs * 1e-3 * scale
        xs = [intensity(line) or 1.0 for line in lines]
        ys = [(line.tflops or 1.0) * scale for line in lines]
        theirs = [over(y * (line.us or 0.0), line.eager_us) for line, y in zip(lines, ys, strict=True)]
        ridge = peak / slope
        left, right = min(*xs, ridge) / 1.8, max(*xs, ridge) * 1.8
        seen = [*ys, *(y for y in theirs if y)]
        axes.set(
            xscale="log", yscale="log", xlim=(left, right), ylim=(min(seen) / 1.8, max(peak * 2.2, max(seen) * 1.8))
        )
        axes.plot([left, ridge, right], [left * slope, peak, peak], color=palette.ink, lw=1.4)
        axes.grid(True, which="major", color=palette.rule, lw=0.6)
        axes.set_axisbelow(True)
        for index, (line, x, y, their) in enumerate(zip(lines, xs, ys, theirs, strict=True)):
            color = getattr(palette, verdict(line))
            if their:
                axes.plot([x, x], [their, y], color=color, lw=1.0, alpha=0.55, zorder=2)
                axes.plot([x], [their], "o", ms=4.6, mfc=palette.paper, mec=palette.muted, mew=1.0, zorder=3)
            axes.plot([x], [y], "o", ms=6.2, color=color, mec=palette.paper, mew=0.7, zorder=4, gid=f"dot{index}")
        axes.annotate(
            f"{_short(peak)} {unit}, matrix product", (right, peak), xytext=(-2, 4), textcoords="offset points",
            ha="right", va="bottom", color=palette.ink, fontsize=8.5, zorder=5,
        )  # fmt: skip
        axes.set_xlabel("flop per byte", color=palette.muted)
        axes.set_ylabel(unit, color=palette.muted)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _short(value)))
            axis.set_minor_formatter(ticker.NullFormatter())
        _along_the_slope(figure, axes, palette, (left, ridge), slope, f"{_short(roof.gbs)} GB/s, copy")
        _labels(figure, axes, palette, [(line.problem, x, y) for line, x, y in zip(lines, xs, ys, strict=True)])
    return figure, {f"dot{index}": _said(line) for index, line in enumerate(lines)}


def _along_the_slope(
    figure: Figure, axes: Any, palette: Palette, ends: tuple[float, float], slope: float, text: str
) -> None:
    figure.draw_without_rendering()
    x = math.sqrt(ends[0] * ends[1])
    first, second = axes.transData.transform([(end, end * slope) for end in ends])
    angle = math.degrees(math.atan2(second[1] - first[1], second[0] - first[0]))
    if axes.get_ylim()[0] < x * slope:
        axes.annotate(
            text, (x, x * slope), xytext=(-4, 6), textcoords="offset points",
            rotation=angle, rotation_mode="anchor", ha="center", color=palette.ink, fontsize=8.5,
        )  # fmt: skip


def _labels(figure: Figure, axes: Any, palette: Palette, dots: Sequence[tuple[str, float, float]]) -> None:
    """Names beside dots, where they fit without covering each other or a dot."""
    if len(dots) > _MOST_LABELS:
        return
    figure.draw_without_rendering()
    points = axes.transData.transform([(x, y) for _, x, y in dots])
    scale = figure.dpi / 72
    taken = [(px - 4 * scale, py - 4 * scale, px + 4 * scale, py + 4 * scale) for px, py in points]
    for (name, x, y), (px, py) in zip(dots, points, strict=True):
        width, height = 5.2 * scale * len(name), 9 * scale
        for dx, align in ((7 * scale, "left"), (-7 * scale - width, "right")):
            box = (px + dx, py - height / 2, px + dx + width, py + height / 2)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axes.annotate(
                    name, (x, y), xytext=(7 if align == "left" else -7, 0), textcoords="offset points", ha=align,
                    va="center_baseline", fontsize=7.5, color=palette.muted,
                )  # fmt: skip
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def speedups(group: Group, palette: Palette) -> tuple[Figure, dict[str, str]] | None:
    """PyTorch's time over convt's, a bar per problem, losses on top; whiskers are percentiles, a tick PyTorch's best.

    With a text for each bar; None where nothing was compared.
    """
    lines = [line for line in group.lines if speedup(line)]
    if not lines:
        return None
    ratios = [speedup(line) or 1.0 for line in lines]
    bests = [over(line.best_us, line.us) for line in lines]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(6.4, 0.75 + 0.235 * max(len(lines), 4), palette)
        spreads = [interval(line) or (ratio, ratio) for line, ratio in zip(lines, ratios, strict=True)]
        seen = [*ratios, *(best for best in bests if best), *(end for ends in spreads for end in ends)]
        low, high = min([*seen, 0.8]) / 1.1, max([*seen, 1.25]) * 1.1
        columns = (-32, 0) if any(bests) else (0,)
        high *= (high / low) ** (0.2 if any(bests) else 0.12)  # room for the numbers
        axes.set(xscale="log", xlim=(low, high), ylim=(len(lines) - 0.4, -0.6))
        for index, (line, ratio, best, spread) in enumerate(zip(lines, ratios, bests, spreads, strict=True)):
            color = getattr(palette, verdict(line))
            axes.barh(index, ratio - 1, left=1, height=0.62, color=color, gid=f"bar{index}", zorder=2)
            axes.plot(spread, [index, index], color=palette.ink, lw=0.9, alpha=0.75, zorder=3)
            if best:
                axes.plot([best, best], [index - 0.38, index + 0.38], color=palette.ink, lw=1.8, zorder=4)
            behind = palette.loss if best and round(best, 2) < 1 else palette.muted
            for at, value, shade in ((columns[0], ratio, color), (columns[-1], best, behind)):
                if value:
                    axes.annotate(
                        f"{value:.2f}", (1, index), xycoords=axes.get_yaxis_transform(), xytext=(at, 0),
                        textcoords="offset points", ha="right", va="center_baseline", fontsize=8, color=shade,
                    )  # fmt: skip
        for at, head in zip(columns, ("eager", "best"), strict=False):
            axes.annotate(
                head, (1, -0.9), xycoords=axes.get_yaxis_transform(), xytext=(at, 0), textcoords="offset points",
                ha="right", va="baseline", fontsize=7.5, color=palette.muted,
            )  # fmt: skip
        axes.axvline(1, color=palette.ink, lw=1.0, zorder=5)
        axes.set_yticks(range(len(lines)), [line.problem for line in lines], color=palette.ink, fontsize=8)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.grid(True, axis="x", color=palette.rule, lw=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(
            ticker.FixedLocator([value for value in _TICKS if low < value < max([*seen, 1.25])])
        )
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.set_xlabel("PyTorch's time over convt's", color=palette.muted)
    return figure, {f"bar{index}": _said(line) for index, line in enumerate(lines)}


_TICKS = (0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _said(line: Line) -> str:
    words = [f"{line.problem}: {line.name}", f"convt {line.us:.0f} µs"]
    for name, theirs in (("eager", line.eager_us), ("best", line.best_us), ("compiled", line.compile_us)):
        if theirs and line.us:
            words.append(f"{name} {theirs:.0f} µs ({theirs / line.us:.2f}×)")
    if line.tflops and line.roofline_us and line.us:
        words.append(f"{line.tflops:.3g} TFLOP/s, {line.us / line.roofline_us:.1f}× roofline")
    return "\n".join([*words, line.config or line.kernel or ""]).strip()
