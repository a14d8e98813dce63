"""Named lines in panels in, an SVG out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SIDE, MARGIN, COLUMNS = 220, 52, 3
# Okabe and Ito's colours, told apart by everybody.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DOT = 2.5


@dataclass(frozen=True)
class Curve:
    """One line: its points (x, y, radius of the dot) by rising x; of a single point a dot."""

    panel: str
    name: str
    points: Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Axes:
    """What x and y are, and up to where they go; None: as far as the panel's own points.

    diagonal: whether to draw where the two are equal.
    """

    x: str
    y: str
    right: float | None = None
    top: float | None = None
    diagonal: bool = False


def drawn(curves: Sequence[Curve], axes: Axes) -> str:
    """Return the panels."""
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    step = SIDE + 2 * MARGIN
    width, height = COLUMNS * step, math.ceil(len(panels) / COLUMNS) * step
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for at, panel in enumerate(panels):
        here = [curve for curve in curves if curve.panel == panel]
        right = axes.right or max((x for curve in here for x, _, _ in curve.points), default=0) or 1.0
        top = axes.top or max((y for curve in here for _, y, _ in curve.points), default=0) * 1.05 or 1.0
        parts.append(f'<g transform="translate({at % COLUMNS * step + MARGIN} {at // COLUMNS * step + MARGIN})">')
        parts.append(_frame(panel, axes, right, top))
        parts += [_line(curve, i, right, top) for i, curve in enumerate(here)]
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _frame(title: str, axes: Axes, right: float, top: float) -> str:
    ticks = "".join(
        f'<text x="{SIDE * i / 4:g}" y="{SIDE + 14}" text-anchor="middle">{right * i / 4:.2g}</text>'
        f'<text x="-4" y="{SIDE - SIDE * i / 4 + 4:g}" text-anchor="end">{top * i / 4:.2g}</text>'
        for i in range(5)
    )
    diagonal = f'<path d="M0 {SIDE}L{SIDE} 0" stroke="#999" stroke-dasharray="4"/>' if axes.diagonal else ""
    return (
        f'<text y="-10" font-weight="bold">{escape(title)}</text>'
        f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>{diagonal}{ticks}'
        f'<text x="{SIDE / 2:g}" y="{SIDE + 30}" text-anchor="middle">{escape(axes.x)}</text>'
        f'<text transform="translate(-40 {SIDE / 2:g}) rotate(-90)" text-anchor="middle">{escape(axes.y)}</text>'
    )


def _line(curve: Curve, place: int, right: float, top: float) -> str:
    colour = COLOURS[place % len(COLOURS)]
    points = [(SIDE * x / right, SIDE - SIDE * y / top, radius) for x, y, radius in curve.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>' for x, y, radius in points)
    return (
        f'<g fill="{colour}"><polyline points="{path}" fill="none" stroke="{colour}"/>{dots}'
        f'<text x="8" y="{16 + 14 * place}">{escape(curve.name)}</text></g>'
    )
