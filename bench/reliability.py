"""What was said and what was true, bin by bin, in; a reliability diagram as SVG out. Knows nothing of lakes.

A panel for each task and layer, a line for each lake; on the diagonal what is said is true (Murphy and Winkler, 1977).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SIDE, MARGIN, COLUMNS = 220, 44, 2
# Okabe and Ito's colours, told apart by everybody.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True)
class Curve:
    """One line: for each bin (mean confidence, share that is true, matches), or None where it has none."""

    panel: str
    name: str
    points: Sequence[tuple[float, float, int] | None]


def drawn(curves: Sequence[Curve]) -> str:
    """Return the diagram; the area of a point grows with its matches."""
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    step = SIDE + 2 * MARGIN
    width, height = COLUMNS * step, math.ceil(len(panels) / COLUMNS) * step
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for at, panel in enumerate(panels):
        here = [curve for curve in curves if curve.panel == panel]
        parts.append(f'<g transform="translate({at % COLUMNS * step + MARGIN} {at // COLUMNS * step + MARGIN})">')
        parts.append(_frame(panel))
        for i, curve in enumerate(here):
            parts.append(_line(curve, COLOURS[i % len(COLOURS)], i))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _frame(title: str) -> str:
    ticks = "".join(
        f'<text x="{SIDE * i / 4:g}" y="{SIDE + 14}" text-anchor="middle">{i / 4:g}</text>'
        f'<text x="-6" y="{SIDE - SIDE * i / 4 + 4:g}" text-anchor="end">{i / 4:g}</text>'
        for i in range(5)
    )
    return (
        f'<text y="-10" font-weight="bold">{escape(title)}</text>'
        f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>'
        f'<path d="M0 {SIDE}L{SIDE} 0" stroke="#999" stroke-dasharray="4"/>{ticks}'
        f'<text x="{SIDE / 2:g}" y="{SIDE + 30}" text-anchor="middle">confidence</text>'
        f'<text transform="translate(-32 {SIDE / 2:g}) rotate(-90)" text-anchor="middle">share that is true</text>'
    )


def _line(curve: Curve, colour: str, place: int) -> str:
    points = [(SIDE * p, SIDE - SIDE * true, n) for p, true, n in filter(None, curve.points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{1 + math.log10(n):.1f}"/>' for x, y, n in points)
    return (
        f'<g fill="{colour}"><polyline points="{path}" fill="none" stroke="{colour}"/>{dots}'
        f'<text x="8" y="{16 + 14 * place}">{escape(curve.name)}</text></g>'
    )
