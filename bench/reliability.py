"""What was said and what was true, bin by bin, in; a reliability diagram as SVG out. Knows nothing of lakes.

A panel for each task and layer, a line for each lake; on the diagonal what is said is true (Murphy and Winkler, 1977).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import curves as diagrams  # beside this file: Python puts a script's folder on its path

AXES = diagrams.Axes("confidence", "share that is true", right=1.0, top=1.0, diagonal=True)


@dataclass(frozen=True)
class Curve:
    """One line: for each bin (mean confidence, share that is true, matches), or None where it has none."""

    panel: str
    name: str
    points: Sequence[tuple[float, float, int] | None]


def drawn(curves: Sequence[Curve]) -> str:
    """Return the diagram; the area of a point grows with its matches."""
    sized = [
        diagrams.Curve(one.panel, one.name, [(x, y, 1 + math.log10(n)) for x, y, n in filter(None, one.points)])
        for one in curves
    ]
    return diagrams.drawn(sized, AXES)
