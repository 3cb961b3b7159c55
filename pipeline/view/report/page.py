"""The page: one file that asks nobody for anything. All that comes from data is escaped."""

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.view.report import drawing
from pipeline.view.report.block import Section
from pipeline.view.report.chart import Chart
from pipeline.view.report.data import data
from pipeline.view.report.evaluation import evaluation
from pipeline.view.report.lineage import at_a_glance, lineage
from pipeline.view.report.run import Run
from pipeline.view.report.scoring import scoring
from pipeline.view.report.training import training

_HERE = Path(__file__).parent
_SECTIONS = (at_a_glance, data, scoring, training, evaluation, lineage)


def sections(runs: Sequence[Run]) -> list[Section]:
    return [section(runs) for section in _SECTIONS]


def html(runs: Sequence[Run], live: str = "") -> str:
    """`live`: the version that a page which is served follows; none of a file."""
    return _html(sections(runs), runs, live)


def write(runs: Sequence[Run], path: Path) -> list[Path]:
    """The page as `path`, and beside it a PNG a chart, STEM-CHART.png. Returns the files, the page first."""
    made = sections(runs)
    files = [_put(path, _html(made, runs, "").encode())]
    charts = [block for section in made for block in section.blocks if isinstance(block, Chart)]
    return files + [_put(path.with_name(f"{path.stem}-{chart.name}.png"), drawing.png(chart)) for chart in charts]


def _put(path: Path, content: bytes) -> Path:
    """Under a temporary name first: who reads sees a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_bytes(content)
    return unfinished.rename(path)


def _html(made: Sequence[Section], runs: Sequence[Run], live: str) -> str:
    style, script = _palette() + _read("page.css"), _read("page.js")
    page: str = _template().render(
        sections=made,
        title=" and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        style=style,
        script=script,
        script_digest=_digest(script),
        live=live,
        now=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    )
    return page


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Of what is drawn and of our own files alone; a chart has no words from data but ticks and axes, which are escaped.
    environment.filters |= {"svg": lambda chart: Markup(drawing.svg(chart)), "ours": Markup}
    return environment.get_template("page.html.j2")


@cache
def _read(name: str) -> str:
    return (_HERE / name).read_text()


def _palette() -> str:
    """The colours of lines as CSS knows them, in both themes."""
    light, dark = (
        "".join(f"--series-{number}:{pair[theme]};" for number, pair in enumerate(drawing.SERIES)) for theme in (0, 1)
    )
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"


def _digest(text: str) -> str:
    """As a Content-Security-Policy has it: no other script runs, whatever stands in the data."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
