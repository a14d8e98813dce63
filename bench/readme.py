"""The newest benchmark lines and the commands' own help in, the tables of README.md out: no number there is typed.

python bench/readme.py             write README.md
python bench/readme.py --check     exit 1 where README.md is not what this would write
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
COMMANDS = ("match", "index", "eval", "demo")


def main() -> None:
    """Write README.md, or say that it is out of date."""
    before = README.read_text(encoding="utf-8")
    after = render(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            sys.exit("README.md is out of date; run: python bench/readme.py")
        return
    README.write_text(after, encoding="utf-8")


def render(text: str) -> str:
    """Return README.md with what stands between its markers made anew."""
    for name, make in (("quality", quality_table), ("headline", headline_table), ("help", help_text)):
        marker = re.compile(rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, found = marker.subn(lambda match, make=make: match[1] + make() + match[2], text)
        if found != 1:
            sys.exit(f"README.md has {found} places for {name}, expected one")
    return text


def quality_table() -> str:
    """Return the newest line of each lake and layer."""
    newest: dict[tuple[str, str], dict[str, str]] = {}
    for line in _lines("quality.csv"):
        newest[line["lake"], line["layer"]] = line
    heads = ("Hit@1", "Hit@3", "Hit@5", "R@5", "P@10", "MAP")
    rows = [
        [lake, line["task"], layer, line["queries"], *(f"{float(line[head]):.3f}" for head in heads),
         f"{float(line['MAP from']):.3f} to {float(line['MAP to']):.3f}"]
        for (lake, layer), line in newest.items()
    ]  # fmt: skip
    return _table(["lake", "task", "layer", "queries", *heads, "MAP, 95%"], rows)


def headline_table() -> str:
    """Return the best run of each state of the newest day and number of queries, with its stages."""
    lines = _lines("headline.csv")
    last = lines[-1]
    same = [line for line in lines if all(line[key] == last[key] for key in ("date", "device", "cores", "queries"))]
    best: dict[str, dict[str, str]] = {}
    for line in same:
        if line["state"] not in best or float(line["seconds"]) < float(best[line["state"]]["seconds"]):
            best[line["state"]] = line
    states = [state for state in ("cold", "warm", "indexed") if state in best]
    stages = {state: json.loads(best[state]["stages"]) for state in states}
    floors = json.loads(last["floors"])
    names = dict.fromkeys(name for state in states for name in stages[state])
    rows = [
        [
            name,
            *(f"{stages[state][name]:.1f}" if name in stages[state] else "" for state in states),
            f"{floors[name]:.2f}" if name in floors else "",
        ]
        for name in names
    ]
    rows.append(["**all, seconds**", *(f"**{float(best[state]['seconds']):.1f}**" for state in states), ""])
    rows.append(["peak memory, MB", *(best[state]["peak_mb"] for state in states), ""])
    where = (
        f"{int(last['queries']):,} queries on {last['cores']} cores, {last['device']}, {last['date']}; "
        "the best run of that day in each state, in seconds\n"
        "(`bench/results/headline.csv` has them all, each with its commit):\n\n"
    )
    return where + _table(["stage", *states, "floor"], rows)


def help_text() -> str:
    """Return the help of every command, as a terminal of 100 columns shows it."""
    parts = []
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "TERMINAL_WIDTH": "100"}
    for command in COMMANDS:
        shown = subprocess.run(
            [sys.executable, "-m", "gpumatch", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        lines = [line.rstrip().replace("python -m gpumatch", "gpumatch") for line in shown.stdout.strip().splitlines()]
        parts.append(
            f"<details><summary><code>gpumatch {command}</code></summary>\n\n```\n"
            + "\n".join(lines)
            + "\n```\n\n</details>\n"
        )
    return "\n".join(parts)


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _lines(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
