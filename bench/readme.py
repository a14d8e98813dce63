"""The newest benchmark lines and the commands' own help in, the tables of README and docs/ out: no number is typed.

python bench/readme.py             write the pages
python bench/readme.py --check     exit 1 where one is not what this would write
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN = "gpumatch"
PAGES = ("README.md", "docs/ACCURACY.md", "docs/SPEED.md", "docs/REFERENCE.md")
RESULTS = ROOT / "bench" / "results"
# What the headline job is to take on two cores, and on one H100: the most seconds of a state, start-up included or not.
SECONDS = {"cpu": {"cold": (240, False), "warm": (20, False)}, "cuda": {"cold": (5, False), "warm": (1, True)}}
HOST_MB, TEXTS_PER_SECOND = 4_000, 60_000
COMMANDS = (
    "match", "index", "eval", "explain", "report", "align", "demo", "cache stats", "cache verify", "cache prune",
    "cache clear", "doctor", "config show",
)  # fmt: skip


def main() -> None:
    """Write the pages, or say which are out of date."""
    before = read()
    after = render(before)
    changed = [page for page in PAGES if before[page] != after[page]]
    if "--check" in sys.argv[1:]:
        if changed:
            sys.exit(f"out of date: {', '.join(changed)}; run: python bench/readme.py")
        return
    for page in changed:
        (ROOT / page).write_text(after[page], encoding="utf-8")


def read() -> dict[str, str]:
    """Return the text of every page."""
    return {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}


def render(pages: dict[str, str]) -> dict[str, str]:
    """Return the pages with what stands between their markers made anew; every part stands in one place."""
    pages = dict(pages)
    for name, make in PARTS.items():
        made = make()
        marker = re.compile(rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = 0
        for page, text in pages.items():
            pages[page], here = marker.subn(lambda match, made=made: match[1] + made + match[2], text)
            found += here
        if found != 1:
            sys.exit(f"{found} places between <!-- {name}: … --> and <!-- /{name} --> in the pages, expected one")
    return pages


def accuracy_table() -> str:
    """Return the MAP of gpumatch and of every system that ranked the same queries, lake by lake, the best one bold."""
    lakes = _peers()
    others = list(dict.fromkeys(system for systems in lakes.values() for system in systems if system != OWN))
    rows, shown = [], []
    for (lake, task), systems in lakes.items():
        own = systems[OWN]
        same = {system: line for system, line in systems.items() if line["queries"] == own["queries"]}
        cells = {system: _number(line["MAP"], 3) for system, line in same.items()}
        best = max(same, key=lambda system: float(same[system]["MAP"]))
        cells[best] = f"**{cells[best]}**"
        rows.append([lake, task, own["queries"], *(cells.get(system, "") for system in (OWN, *others))])
        shown += same.values()
    kept = [column for column in range(len(rows[0])) if any(row[column] for row in rows)]
    heads = ["lake", "task", "queries", OWN, *others]
    table = _table([heads[column] for column in kept], [[row[column] for column in kept] for row in rows])
    return table + _measured(shown)


def speed_table() -> str:
    """Return how long the whole job takes on each device, and by the design that gpumatch replaces."""
    states = ("cold", "warm", "indexed")
    rows, shown = [], []
    for lines in _by_device(_lines("headline.csv")):
        best = _best_runs(lines)
        seconds = [f"{float(best[state]['seconds']):.1f}" if state in best else "" for state in states]
        last = lines[-1]
        rows.append([f"{OWN}, {_device(last)}", last["cores"], *seconds, best["warm"]["peak_mb"]])
        shown.append(last)
    for line in _newest_baseline():
        if line["form"] == "own":
            name = f"one task per query, {line['workers']} worker{'s' * (line['workers'] != '1')}"
            rows.append([name, line["cores"], "", _number(line["job_seconds"], 0), "", _number(line["peak_mb"], 0)])
            shown.append(line)
    return _table(["by", "cores", "cold, s", "warm, s", "indexed, s", "warm, MB"], rows) + _measured(shown)


def quality_table() -> str:
    """Return the newest line of the recipe on each lake and layer."""
    newest: dict[tuple[str, str], dict[str, str]] = {}
    for line in _lines("quality.csv"):
        if line["system"] == "recipe":
            newest[line["lake"], line["layer"]] = line
    heads = ("Hit@1", "Hit@3", "Hit@5", "R@5", "P@10", "MAP")
    rows = [
        [lake, line["task"], layer, line["queries"], *(f"{float(line[head]):.3f}" for head in heads),
         f"{float(line['MAP from']):.3f} to {float(line['MAP to']):.3f}", _difference(line)]
        for (lake, layer), line in newest.items()
    ]  # fmt: skip
    table = _table(["lake", "task", "layer", "queries", *heads, "MAP, 95%", "over TF-IDF"], rows)
    return table + _measured(newest.values())


def robust_table() -> str:
    """Return the newest line of each lake and kind of change, lakes in the order in which they were first measured."""
    newest: dict[str, dict[str, dict[str, str]]] = {}
    for line in _lines("robust.csv"):
        newest.setdefault(line["lake"], {})[line["kind"]] = line
    rows = [
        [lake, line["task"], kind, _number(line["MAP"], 3), _number(line["changed"], 3),
         f"{float(line['share']):+.0%}", f"{float(line['from']):+.0%} to {float(line['to']):+.0%}"]
        for lake, kinds in newest.items()
        for kind, line in kinds.items()
    ]  # fmt: skip
    table = _table(["lake", "task", "what is changed", "MAP", "MAP then", "change", "95%"], rows)
    return table + _measured(line for kinds in newest.values() for line in kinds.values())


def columns_table() -> str:
    """Return the newest line of each lake and layer."""
    newest = {(line["lake"], line["layer"]): line for line in _lines("columns.csv")}
    rows = [
        [line["lake"], line["by"], line["layer"], line["queries"], _number(line["MRR"], 3),
         f"{float(line['MRR from']):.3f} to {float(line['MRR to']):.3f}", _number(line["Hit@1"], 3),
         _number(line["aligned"], 3) if line["aligned"] else ""]
        for line in newest.values()
    ]  # fmt: skip
    table = _table(["lake", "by", "layer", "queries", "MRR", "MRR, 95%", "Hit@1", "true pairs aligned"], rows)
    return table + _measured(newest.values())


def calibration_table() -> str:
    """Return the newest line of each lake that was left out, of the layer that is the default."""
    newest = {(line["task"], line["lake"]): line for line in _lines("calibration.csv") if line["layer"] == "L1+L2"}
    heads = (
        "Brier", "Brier, its rate", "Brier, others' rate", "calibration error", "mixed Brier", "mixed Brier, its rate",
        "mixed calibration error", "nothing fits", "nothing fits, 99%",
    )  # fmt: skip
    rows = [[lake, task, *(_number(line[head], 3) for head in heads)] for (task, lake), line in newest.items()]
    return _table(["lake", "task", *heads], rows) + _measured(newest.values())


def judges_table() -> str:
    """Return what a judge's verdicts gain on each lake, by the newest lines: all asked about, and as gpumatch asks."""
    newest: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for line in _lines("judge.csv"):
        if line["policy"] == "all" or (line["policy"] == "ours" and 0.1 < float(line["share"]) <= 0.15):
            newest.setdefault((line["lake"], line["judge"]), {})[line["policy"]] = line
    rows = []
    for (lake, judge), by in newest.items():
        if float(judge) in (0.5, 0.85):
            ours, every = by["ours"], by["all"]
            of_all = f"{float(ours['of all']):.0%}" if ours["of all"] else "n/a"
            before = float(ours["MAP"]) - float(ours["gain"])
            calls = float(ours["calls"]) / float(ours["queries"])
            gains = [f"{float(line['gain']):+.3f}" for line in (every, ours)]
            share = f"{float(ours['share']):.1%}"
            rows.append([lake, f"{float(judge):.0%}", f"{before:.3f}", *gains, of_all, f"{calls:.2f}", share])
    heads = [
        "lake",
        "judge is right",
        "MAP",
        "all asked",
        "as gpumatch asks",
        "of that gain",
        "calls a query",
        "of all calls",
    ]
    return _table(heads, rows) + _measured(line for by in newest.values() for line in by.values())


def load_table() -> str:
    """Return the newest lines: of a server that answers, by candidates, and of one that does not."""
    newest = {(line["server"], line["candidates"]): line for line in _lines("judge_load.csv")}
    rows = [
        [line["server"], f"{int(line['candidates']):,}", f"{int(line['calls']):,}", _number(line["seconds"], 1),
         f"{float(line['of_ideal']):.1%}" if line["of_ideal"] else "", line["most_in_flight"],
         _number(line["peak_mb"], 0) if line["peak_mb"] else "", line["missing"]]
        for line in newest.values()
    ]  # fmt: skip
    heads = ["server", "candidates", "calls", "seconds", "of the ideal rate", "most in flight", "MB more", "no verdict"]
    return _table(heads, rows) + _measured(newest.values())


def headline_table() -> str:
    """Return, for each device, the best run of each state of the commit that was measured last, with its stages."""
    return "\n".join(_headline_on(lines) for lines in _by_device(_lines("headline.csv")))


def _by_device(lines: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    devices = dict.fromkeys(line["device"] for line in lines)
    return [[line for line in lines if line["device"] == device] for device in devices]


def _best_runs(lines: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return the fastest run in each state, of those that were measured with the last one."""
    last = lines[-1]
    best: dict[str, dict[str, str]] = {}
    for line in lines:
        same = all(line[key] == last[key] for key in ("date", "commit", "cores", "queries"))
        if same and (line["state"] not in best or float(line["seconds"]) < float(best[line["state"]]["seconds"])):
            best[line["state"]] = line
    return best


def _device(line: dict[str, str]) -> str:
    return line["device"] + (f" ({line['device_name']})" if line["device_name"] else "")


def _headline_on(lines: list[dict[str, str]]) -> str:
    last = lines[-1]
    best = _best_runs(lines)
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
    if any(int(best[state]["peak_device_mb"] or 0) for state in states):
        rows.append(["the device's, MB", *(best[state]["peak_device_mb"] for state in states), ""])
    where = (
        f"{int(last['queries']):,} queries on {last['cores']} cores, {_device(last)}; the best run in each state,\n"
        "in seconds (`bench/results/headline.csv` has them all):\n\n"
    )
    return where + _table(["stage", *states, "floor"], rows) + _measured([last])


def goals_table() -> str:
    """Return what the job was meant to take, and what it took when it was last measured on such a machine."""
    rows, shown = [], []
    for lines in _by_device(_lines("headline.csv")):
        best, device = _best_runs(lines), lines[-1]["device"]
        for state, (most, after_start) in SECONDS[device].items():
            took = float(best[state]["seconds"]) - (json.loads(best[state]["stages"])["start"] if after_start else 0)
            what = f"{state}, seconds" + " after process start" * after_start
            rows.append([_device(lines[-1]), what, f"at most {most}", f"{took:.1f}", _met(took <= most)])
        if device == "cuda":
            memory = max(int(line["peak_mb"]) for line in best.values())
            rows.append(
                [_device(lines[-1]), "host memory, MB", f"at most {HOST_MB:,}", f"{memory:,}", _met(memory <= HOST_MB)]
            )
        shown.append(lines[-1])
    for last, seconds in _encoding():
        if last["device"] == "cuda":
            rate = int(last["texts"]) / seconds["whole"]
            goal = f"at least {TEXTS_PER_SECOND:,}"
            rows.append([last["name"], "texts encoded a second", goal, f"{rate:,.0f}", _met(rate >= TEXTS_PER_SECOND)])
            shown.append(last)
    return _table(["on", "what", "goal", "measured", ""], rows) + _measured(shown)


def _met(reached: bool) -> str:
    return "met" if reached else "not met"


def _encoding() -> list[tuple[dict[str, str], dict[str, float]]]:
    """Return, for each device, its last line, and the best seconds of each part of that run."""
    found = []
    for lines in _by_device(_lines("encoding.csv")):
        last = lines[-1]
        same = [line for line in lines if all(line[key] == last[key] for key in ("commit", "name", "cores", "texts"))]
        seconds: dict[str, float] = {}
        for line in same:
            seconds[line["what"]] = min(float(line["seconds"]), seconds.get(line["what"], float("inf")))
        found.append((last, seconds))
    return found


def encoding_table() -> str:
    """Return what the encoder does a second on each device, newest run."""
    rows, shown = [], []
    for last, seconds in _encoding():
        shown.append(last)
        rows.append(
            [
                f"{last['name']}, {last['cores']} cores",
                f"{int(last['texts']):,}",
                f"{int(last['tokens']):,}",
                *(f"{seconds[what]:.2f}" for what in ("tokens", "device", "whole", "floor")),
                f"{int(last['texts']) / seconds['whole']:,.0f}",
            ]
        )
    heads = ["device", "texts", "tokens", "making tokens, s", "device alone, s", "all into a cache, s", "floor, s"]
    return _table([*heads, "texts a second"], rows) + _measured(shown)


def kernels_table() -> str:
    """Return the newest lines of every op and size: gpumatch's and those of what it is compared with."""
    newest: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for line in _lines("kernels.csv"):
        run = line["date"], line["commit"]
        case = newest.setdefault((line["device"], line["op"], line["size"]), {})
        if case and (next(iter(case.values()))["date"], next(iter(case.values()))["commit"]) != run:
            case.clear()  # what was measured together stays together
        case[line["system"]] = line
    rows = []
    for (_, op, size), systems in newest.items():
        for system, line in systems.items():
            rows.append(
                [op, size, system, _short(float(line["median"])), f"{float(line['of_floor']):.0%}",
                 f"{float(line['times']):.2f}", _number(line["peak_mb"], 0),
                 f"{float(line['of_scores']):.1%}" if line["of_scores"] else ""]
            )  # fmt: skip
            op = size = ""
    last = _lines("kernels.csv")[-1]
    heads = ["op", "size", "by", "seconds", "floor / seconds", "times gpumatch's", "MB more", "of all scores' memory"]
    where = f"{last['device']}, {last['cores']} cores; medians.\n\n"
    return where + _table(heads, rows) + _measured(line for systems in newest.values() for line in systems.values())


def _short(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 10 else f"{seconds:.0f}"


def baseline_table() -> str:
    """Return the newest run of the predecessor's design, both halves of the job together."""
    same = _newest_baseline()
    last = same[-1]
    rows = [
        [
            line["form"],
            line["workers"],
            _number(line["start_seconds"], 1),
            _number(line["seconds_per_query"], 3),
            _number(line["job_seconds"], 0),
            _number(line["encode_seconds"], 0),
            _number(line["peak_mb"], 0),
            _number(line["overlap"], 3),
            _number(line["times_faster"], 1),
            _number(line["times_less_memory"], 1),
        ]
        for line in same
    ]
    heads = [
        "form", "workers", "start, s", "s/query", "whole job, s", "of it encoding, s", "peak memory, MB",
        "same top 10", "gpumatch faster, times", "less memory, times",
    ]  # fmt: skip
    seconds, queries = float(last["gpumatch_seconds"]), int(last["queries"])
    where = (
        f"{queries:,} queries on {last['cores']} cores; the whole job is extrapolated from a\n"
        f"sample of each lake's queries, start-up left out. gpumatch, warm, start-up included: {seconds:.1f} s,\n"
        f"{1000 * seconds / queries:.1f} ms a query, {_number(last['gpumatch_peak_mb'], 0)} MB.\n\n"
    )
    return where + _table(heads, rows) + _measured(same)


def _newest_baseline() -> list[dict[str, str]]:
    lines = _lines("baseline.csv")
    return [line for line in lines if line["date"] == lines[-1]["date"] and line["task"] == "both"]


def _peers() -> dict[tuple[str, str], dict[str, dict[str, str]]]:
    """Return the newest line of each lake, task and system, lakes in the order in which they were first measured."""
    newest: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for line in _lines("peers.csv"):
        systems = newest.setdefault((line["lake"], line["task"]), {})
        systems.pop(line["system"], None)  # systems stand in the order of the newest run
        systems[line["system"]] = line
    return newest


def peers_table() -> str:
    """Return what every system does on every lake: accuracy, seconds, memory."""
    lakes = _peers()
    heads = ("Hit@1", "Hit@5", "R@5", "P@10", "MAP")
    rows = [
        [lake, task, system, line["version"], line["queries"], *(_number(line[head], 3) for head in heads),
         _difference(line), _number(line["index_seconds"], 1), _number(line["query_seconds"], 1), line["peak_mb"]]
        for (lake, task), systems in lakes.items()
        for system, line in systems.items()
    ]  # fmt: skip
    heads = (*heads, "MAP less gpumatch's", "index, s", "queries, s", "MB")
    table = _table(["lake", "task", "system", "version", "queries", *heads], rows)
    return table + _measured(line for systems in lakes.values() for line in systems.values())


def weights_text() -> str:
    """Return the shipped weights as files of weights, one a layer."""
    from gpumatch.recipes import LAYERS, TASKS, recipe_for

    lines = ["<details><summary>The shipped weights as such a file</summary>"]
    for layer in LAYERS:
        lines += ["", f"`--layer {layer}`:", "", "```toml"]
        for recipe in (recipe_for(task, layer) for task in TASKS):
            lines += [f"[{recipe.task}]", *(f"{name} = {float(weight)}" for name, weight in recipe.weights.items())]
            lines += [f"density = {recipe.density}"] if recipe.density else []
        lines.append("```")
    return "\n".join([*lines, "", "</details>"]) + "\n"


def help_text() -> str:
    """Return the help of every command, as a terminal of 100 columns shows it."""
    parts = []
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "TERMINAL_WIDTH": "100"}
    for command in COMMANDS:
        shown = subprocess.run(
            [sys.executable, "-m", "gpumatch", *command.split(), "--help"],
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


def _difference(line: dict[str, str]) -> str:
    """Return a difference in MAP with its interval, nothing where the line has none."""
    if not line["difference"]:
        return ""
    low, high = (f"{float(line[end]):+.3f}" for end in ("from", "to"))
    return f"{float(line['difference']):+.3f} ({low} to {high})"


def _measured(lines: Iterable[dict[str, str]]) -> str:
    """Return when and at which commits the lines of a table were measured: what stands in two tables can differ."""
    lines = sorted(lines, key=lambda line: line["date"])
    dates = list(dict.fromkeys(line["date"][:10] for line in lines))
    commits = list(dict.fromkeys(line["commit"].removesuffix("-dirty") for line in lines))
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"\nMeasured {days} at {', '.join(commits)}.\n"


def _number(cell: str, decimals: int) -> str:
    return f"{float(cell):.{decimals}f}"


def _lines(name: str) -> list[dict[str, str]]:
    path = RESULTS / name
    lines = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    if not lines:
        sys.exit(f"{path.relative_to(ROOT)} holds no line; run the benchmark that writes it")
    return lines


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines) + "\n"


# Marker in a page → what makes what stands there.
PARTS = {
    "accuracy": accuracy_table,
    "speed": speed_table,
    "quality": quality_table,
    "robust": robust_table,
    "columns": columns_table,
    "calibration": calibration_table,
    "judges": judges_table,
    "load": load_table,
    "headline": headline_table,
    "encoding": encoding_table,
    "goals": goals_table,
    "baseline": baseline_table,
    "kernels": kernels_table,
    "peers": peers_table,
    "weights": weights_text,
    "help": help_text,
}

if __name__ == "__main__":
    main()
