"""Named lines in panels in, an SVG out: every panel with its own scale from 0 on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SIDE, MARGIN, COLUMNS = 220, 52, 3
# Okabe and Ito's colours, told apart by everybody.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True)
class Curve:
    """One line: its points (x, y) by rising x; of a single point a dot."""

    panel: str
    name: str
    points: Sequence[tuple[float, float]]


def drawn(curves: Sequence[Curve], x: str, y: str) -> str:
    """Return the panels, with what x and y are."""
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    step = SIDE + 2 * MARGIN
    width, height = COLUMNS * step, math.ceil(len(panels) / COLUMNS) * step
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for at, panel in enumerate(panels):
        here = [curve for curve in curves if curve.panel == panel]
        top = max((value for curve in here for _, value in curve.points), default=0) * 1.05 or 1.0
        right = max((value for curve in here for value, _ in curve.points), default=0) or 1.0
        parts.append(f'<g transform="translate({at % COLUMNS * step + MARGIN} {at // COLUMNS * step + MARGIN})">')
        parts.append(_frame(panel, x, y, right, top))
        parts += [_line(curve, COLOURS[i % len(COLOURS)], i, right, top) for i, curve in enumerate(here)]
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _frame(title: str, x: str, y: str, right: float, top: float) -> str:
    ticks = "".join(
        f'<text x="{SIDE * i / 4:g}" y="{SIDE + 14}" text-anchor="middle">{right * i / 4:.2g}</text>'
        f'<text x="-4" y="{SIDE - SIDE * i / 4 + 4:g}" text-anchor="end">{top * i / 4:.2g}</text>'
        for i in range(5)
    )
    return (
        f'<text y="-10" font-weight="bold">{escape(title)}</text>'
        f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>{ticks}'
        f'<text x="{SIDE / 2:g}" y="{SIDE + 30}" text-anchor="middle">{escape(x)}</text>'
        f'<text transform="translate(-40 {SIDE / 2:g}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )


def _line(curve: Curve, colour: str, place: int, right: float, top: float) -> str:
    points = [(SIDE * a / right, SIDE - SIDE * b / top) for a, b in curve.points]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in points)
    return (
        f'<g fill="{colour}"><polyline points="{path}" fill="none" stroke="{colour}"/>{dots}'
        f'<text x="{SIDE - 8}" y="{SIDE - 60 + 14 * place}" text-anchor="end">{escape(curve.name)}</text></g>'
    )
