"""Curves of many points, made of few: the least and the greatest of each stretch stay, so that no spike is lost."""

from collections.abc import Sequence
from typing import Any

from pipeline.view.report.chart import Point


def thinned(points: Sequence[Point], most: int) -> tuple[Point, ...]:
    """At most `most` of them (4 or more), in their order, the first and the last among them."""
    if len(points) <= most:
        return tuple(points)
    inner, stretches = points[1:-1], (most - 2) // 2
    kept = [points[0]]
    for number in range(stretches):
        stretch = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        ends = {min(stretch, key=_height), max(stretch, key=_height)}
        kept += sorted(ends)
    return (*kept, points[-1])


def _height(point: Point) -> float:
    return point[1]


def some(rows: Sequence[Any], most: int) -> list[Any]:
    """At most `most` rows (2 or more), evenly, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(number * (len(rows) - 1) / (most - 1))] for number in range(most)]
