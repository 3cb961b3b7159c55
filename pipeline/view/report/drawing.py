"""Draws charts with matplotlib: as PNG, and as SVG in the page's colours, so that one drawing serves light and dark."""

import io
import re
from functools import lru_cache
from typing import Any

from pipeline.view.report.chart import Chart, Dot, Interval, Line

# (light, dark) of what page.css calls --series-0, ..; all of them 3:1 and more against their background.
SERIES = (
    ("#1f6feb", "#79b0ff"), ("#b3500a", "#ffa657"), ("#0f7b4f", "#56d39b"), ("#8250df", "#c9a6ff"),
    ("#bf2a77", "#ff8dbf"), ("#5c6773", "#a9b4c0"), ("#866500", "#e3c14c"), ("#00758a", "#56cfe0"),
)  # fmt: skip
_INK, _GRID, _EVENT, _PAPER = "#1b1f24", "#d8dee4", "#cf222e", "#ffffff"
_NAMES = {_INK: "--ink", _GRID: "--grid", _EVENT: "--event"} | {
    light: f"--series-{number}" for number, (light, _) in enumerate(SERIES)
}
_INCHES = (4.6, 2.5)
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "raydpo",  # the same drawing is the same file
    "font.size": 9,
    "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.edgecolor": _INK,
    "axes.grid": True, "grid.color": _GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "text.parse_math": False,  # a name may have a dollar in it
    "legend.fontsize": 7,
}  # fmt: skip


@lru_cache(maxsize=512)
def svg(chart: Chart) -> str:
    """An <svg> without ids of others, fonts, colours and addresses of its own."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        buffer = io.StringIO()
        _figure(chart).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(buffer.getvalue(), chart)


def png(chart: Chart) -> bytes:
    """By itself: with its title and legend, on white."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure = _figure(chart)
        axes = figure.axes[0]
        figure.set_size_inches(_INCHES[0], _INCHES[1] + 0.5)
        figure.subplots_adjust(top=0.88)
        axes.set_title(chart.title, fontsize=10)
        if chart.legend:
            axes.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, facecolor=_PAPER)
    return buffer.getvalue()


def _figure(chart: Chart) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=_INCHES)
    axes = figure.add_subplot()
    figure.subplots_adjust(left=0.15, right=0.97, top=0.95, bottom=0.19)
    for line in chart.lines:
        _line(axes, line)
    for dot in chart.dots:
        _dot(axes, dot)
    for x, _ in chart.events:
        axes.axvline(x, color=_EVENT, linewidth=1, linestyle=(0, (1, 2)))
    if chart.x in ("step", "tokens"):
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    if chart.log:
        axes.set_yscale("log")
    return figure


def colour(number: int) -> str:
    return SERIES[number % len(SERIES)][0]


def _line(axes: Any, line: Line) -> None:
    xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
    alone = len(xs) == 1
    axes.plot(
        xs, ys, color=colour(line.colour), label=line.label, linewidth=1.4,
        linestyle="--" if line.dashed else ":" if line.marked else "-",
        marker=("s" if line.dashed else "o") if line.marked or alone else None, markersize=4,
        drawstyle="steps-post" if line.steps else "default",
    )  # fmt: skip


def _dot(axes: Any, dot: Dot) -> None:
    axes.errorbar(
        dot.x.value, dot.y.value, xerr=_reach(dot.x), yerr=_reach(dot.y), fmt="o", color=colour(dot.colour),
        label=dot.label, capsize=3, markersize=5,
    )  # fmt: skip


def _reach(told: Interval) -> list[list[float]] | None:
    if told.low is None or told.high is None:
        return None
    return [[max(0.0, told.value - told.low)], [max(0.0, told.high - told.value)]]


def _inlined(text: str, chart: Chart) -> str:
    """matplotlib's SVG as a part of a page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    begin = r'<svg viewBox="\1" aria-hidden="true" focusable="false">'
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', begin, text)
    # ids are matplotlib's counts: those that something points to get the chart's name, the others go.
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{chart.name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{chart.name}-", text)
    text = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: _rounded(found[0]), text)
    text = re.sub(r'font-family: [^;"]*;? ?| transform="rotate\(-0 [^"]*"', "", text)
    for light, name in _NAMES.items():
        text = text.replace(light, f"var({name})")
    return re.sub(r"\s+", " ", text).replace("> <", "><").strip()


def _rounded(attribute: str) -> str:
    """A tenth of a point is less than anyone sees, and half the bytes."""
    return re.sub(r"\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}", attribute)
