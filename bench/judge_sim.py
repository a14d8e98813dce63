"""What a language model's verdicts would be worth: judges that are right as often as told, and MAP against calls.

    python bench/judge_sim.py NAME=TASK:LAKE[:QUERIES] …

Search, evidence, selection, prompts, pool, replies and fusion are gpumatch's own; only the model is scripted: it knows
the truth and says the right thing with a given probability, of every candidate anew for every seed. For the first
--served seeds `ours` is run over HTTP against `scripted_server.py`, and what the pool brings back has to move every
score as the same verdicts do without a server, which is how the other seeds are measured.

Policies, all with the same requests' size and the same fusion:

    all       every survivor of every query
    random    so many of those requests, drawn
    margin    requests of the queries whose first two scores are closest, from their first survivors on
    ours      `judge.selection`, and where calls are fewer, by the same order as with --llm-max-calls

At most one call a query is ours; `calls` are shares of the calls of `all`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cases import SYNTAX, Case, cases_of  # beside this file: Python puts a script's folder on its path
from curves import DOT, Axes, Curve, drawn
from jobs import RESULTS, append, say
from rich.console import Console
from rich.table import Table
from scripted_server import Asked, ScriptedServer

from gpumatch import pipeline
from gpumatch.cache.verdicts import VerdictStore
from gpumatch.config import Settings
from gpumatch.judge.fusion import Ranking, moves, worth
from gpumatch.judge.judge import Judge, Wanted
from gpumatch.judge.prompt import compact
from gpumatch.judge.selection import candidates, most, uncertainty
from gpumatch.judge.transport import HttpTransport
from gpumatch.records import load_truth
from gpumatch.run import Run

ACCURACIES = (0.5, 0.7, 0.85, 1.0)
# Shares of the calls of `all` that every policy is measured at.
SHARES = (0.025, 0.05, 0.1, 0.15, 0.3, 0.6)
FIELDS = (
    "date",
    "commit",
    "lake",
    "task",
    "queries",
    "judge",
    "policy",
    "seeds",
    "calls",
    "share",
    "MAP",
    "gain",
    "of all",
)
CONCURRENCY = 64

Line = dict[str, Any]
Request = tuple[int, np.ndarray]


@dataclass(frozen=True)
class Query:
    """One query row that has a truth: what the judge is given, which survivors are true, and how many there are."""

    wanted: Wanted
    true: np.ndarray
    n_true: int

    @property
    def ranking(self) -> Ranking:
        """Its survivors."""
        return self.wanted.ranking


def main() -> None:
    """Measure every lake, print one table, draw the curves, and append the lines to bench/results/judge.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar=SYNTAX)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--served", type=int, default=2, help="seeds that are run against a server")
    options = parser.parse_args()
    lines: list[Line] = []
    for case in cases_of(options.cases):
        queries = queries_of(case)
        say(f"{case.name}: {len(queries)} queries with a truth")
        for seed in range(options.served):
            check_served(queries, seed)
        about = {"lake": case.name, "task": case.task, "queries": len(queries), "seeds": options.seeds}
        lines += [about | line for accuracy in ACCURACIES for line in measured(queries, accuracy, options.seeds)]
    _report(lines)
    append("judge.csv", FIELDS, lines)
    (RESULTS / "judge.svg").write_text(_curves(lines), encoding="utf-8")


# --- queries


class _Recorder:
    """Stands where a judge stands, and keeps what it is given."""

    def __init__(self) -> None:
        self.wanted: list[Wanted] = []

    def ask(self, batch: Sequence[Wanted], share: float) -> None:
        self.wanted += batch


def queries_of(case: Case) -> list[Query]:
    """Rank the survivors of a lake's queries as `match --layer L1+L2+L3 -k 0` does, and say which of them are true."""
    run = Run(Settings(task=case.task, layer="L1+L2+L3", k=0))
    recorder = _Recorder()
    queries = case.query_path and str(case.query_path)
    pipeline.plan(case.lake, run, queries=queries, judge=recorder)
    plain = Run(Settings(task=case.task, k=0))
    rows = list(pipeline.match(case.lake, plain, queries=queries))
    truth: dict[str, set[str]] = {}
    for pair in load_truth(case.truth):
        truth.setdefault(pair["query_table"], set()).add(pair["candidate_table"])
    there = {match["table"] for row in rows for match in row["matches"]} | {row["query_table"] for row in rows}
    found = []
    for row, wanted in zip(rows, recorder.wanted, strict=True):
        true = (truth.get(row["query_table"], set()) & there) - {row["query_table"]}
        if true:
            names = [match["table"] for match in row["matches"]]
            found.append(Query(wanted, np.array([name in true for name in names], bool), len(true)))
    return found


def average_precision(query: Query, scores: np.ndarray) -> float:
    """Return AP of the survivors by falling score (float64 [n]); ties stay in their order."""
    hits = np.flatnonzero(query.true[np.argsort(-np.round(scores, 6), kind="stable")])
    return float((np.arange(1, len(hits) + 1) / (hits + 1)).sum() / query.n_true)


# --- judges and policies


def said(queries: Sequence[Query], accuracy: float, seed: int) -> list[np.ndarray]:
    """Return what a judge says of every survivor of every query, float64 [n] each, +1 or -1."""
    rng = np.random.default_rng([seed, round(1000 * accuracy)])
    return [np.where((rng.random(len(one.true)) < accuracy) == one.true, 1.0, -1.0) for one in queries]


def requests_for_all(queries: Sequence[Query]) -> list[list[Request]]:
    """Return each query's requests under the policy `all`: its survivors in order, in pieces of a request's size."""
    return [
        [(i, np.arange(start, min(start + most(n), n))) for start in range(0, n, most(n))]
        for i, n in enumerate(len(one.true) for one in queries)
    ]


def requests_of(policy: str, queries: Sequence[Query], n: int, seed: int) -> list[Request]:
    """Return the n requests, or fewer, that a policy sends."""
    every = requests_for_all(queries)
    if policy == "ours":
        chosen = [(i, candidates(one.ranking)) for i, one in enumerate(queries)]
        chosen = [(i, places) for i, places in chosen if len(places)]
        chosen.sort(key=lambda one: (-uncertainty(queries[one[0]].ranking, one[1]), one[0]))
        return chosen[:n]
    if policy == "random":
        flat = [one for some in every for one in some]
        return [flat[i] for i in np.random.default_rng(seed).permutation(len(flat))[:n]]
    if policy == "margin":
        gaps = [float(np.subtract(*one.ranking.scores[:2])) if len(one.true) > 1 else np.inf for one in queries]
        return [one for i in np.argsort(gaps, kind="stable") for one in every[i]][:n]
    return [one for some in every for one in some]


def fused(queries: Sequence[Query], requests: Sequence[Request], signs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the scores of every query's survivors after the verdicts on the requests' candidates."""
    places: list[list[np.ndarray]] = [[] for _ in queries]
    for i, some in requests:
        places[i].append(some)
    joined = [np.concatenate([np.empty(0, np.int64), *some]) for some in places]
    sign = [signs[i][at] for i, at in enumerate(joined)]
    sure = [one.ranking.confidence[at] for one, at in zip(queries, joined, strict=True)]
    scores = []
    for batch in range(0, len(queries), 256):  # as many query rows as gpumatch believes a judge by
        some = slice(batch, batch + 256)
        believed = worth(np.concatenate(sure[some]), np.concatenate(joined[some]), np.concatenate(sign[some]))
        for query, at, told in zip(queries[some], joined[some], sign[some], strict=True):
            scores.append(query.ranking.scores + moves(query.ranking, at, told, believed))
    return scores


def measured(queries: Sequence[Query], accuracy: float, seeds: int) -> list[Line]:
    """Return a line for every policy and share of the calls, MAP over so many judges."""
    n_all = sum(map(len, requests_for_all(queries)))
    before = np.array([average_precision(one, one.ranking.scores) for one in queries])
    plans = [("all", 1.0)] + [(policy, share) for policy in ("random", "margin", "ours") for share in SHARES]
    totals = dict.fromkeys(plans, 0.0)
    calls = {}
    sent = {plan: requests_of(plan[0], queries, int(plan[1] * n_all), 0) for plan in plans}
    for seed in range(seeds):
        signs = said(queries, accuracy, seed)
        for policy, share in plans:
            if policy == "random":
                sent[policy, share] = requests_of(policy, queries, int(share * n_all), seed)
            requests = sent[policy, share]
            calls[policy, share] = len(requests)
            scores = fused(queries, requests, signs)
            after = np.array([average_precision(one, new) for one, new in zip(queries, scores, strict=True)])
            totals[policy, share] += float((after - before).mean()) / seeds
    gain = totals["all", 1.0]
    return [
        {
            "judge": accuracy,
            "policy": policy,
            "calls": calls[policy, share],
            "share": calls[policy, share] / n_all,
            "MAP": float(before.mean()) + total,
            "gain": total,
            "of all": total / gain if gain > 0.02 else None,
        }
        for (policy, share), total in totals.items()
    ]


# --- the same over HTTP


def check_served(queries: Sequence[Query], seed: int) -> None:
    """Ask a server what `ours` asks, by gpumatch's own pool, and compare what comes of it.

    Raises:
        SystemExit: scores differ.
    """
    signs = said(queries, 0.85, seed)
    says = {
        (question.query.text, shown.text): "same" if sign > 0 else "different"
        for one, told in zip(queries, signs, strict=True)
        for question in [one.wanted.question(np.arange(len(one.true)))]
        for shown, sign in zip(question.candidates, told, strict=True)
    }

    def decide(asked: Asked, name: str, text: str) -> str:
        return says[compact(json.loads(asked.query)), compact(json.loads(text))]

    with ScriptedServer(decide) as server, VerdictStore(None) as store:
        judge = Judge(lambda: HttpTransport(server.url, None, CONCURRENCY), "scripted", store, "sim")
        with judge:
            got: list[np.ndarray] = []
            for start in range(0, len(queries), 256):
                rows = judge.ask([one.wanted for one in queries[start : start + 256]], 1.0)
                got += [judged.moves for judged in judge.answered(rows)]
        n = server.requests
    requests = requests_of("ours", queries, sys.maxsize, seed)
    # Tables that look the same to a model are answered alike, by the last of them.
    alike = [
        np.array([1.0 if says[question.query.text, shown.text] == "same" else -1.0 for shown in question.candidates])
        for one in queries
        for question in [one.wanted.question(np.arange(len(one.true)))]
    ]
    wanted = fused(queries, requests, alike)
    apart = max(
        float(np.abs(one.ranking.scores + moved - new).max(initial=0))
        for one, moved, new in zip(queries, got, wanted, strict=True)
    )
    say(f"  served seed {seed}: {n} calls over HTTP, scores differ by at most {apart:.1e}")
    if n != len(requests) or apart > 1e-9:
        sys.exit("the pool's verdicts do not do what the same verdicts do without it")


# --- reports


def _report(lines: Sequence[Line]) -> None:
    table = Table(title="MAP by a simulated judge")
    for heading in ("lake", "judge right", "policy", "calls", "of all calls", "MAP", "gain", "of all's gain"):
        table.add_column(heading, justify="left" if heading in ("lake", "policy") else "right")
    for line in lines:
        if line["policy"] == "all" or (line["policy"] == "ours" and 0.1 < line["share"] <= 0.15):
            of_all = "n/a" if line["of all"] is None else f"{line['of all']:.2f}"
            table.add_row(
                line["lake"], f"{line['judge']:.2f}", line["policy"], str(line["calls"]), f"{line['share']:.1%}",
                f"{line['MAP']:.3f}", f"{line['gain']:+.4f}", of_all,
            )  # fmt: skip
    Console(width=120).print(table)


def _curves(lines: Sequence[Line]) -> str:
    some = [line for line in lines if line["judge"] == 0.85]
    curves = []
    for lake in dict.fromkeys(line["lake"] for line in some):
        for policy in ("ours", "margin", "random", "all"):
            mine = [line for line in some if (line["lake"], line["policy"]) == (lake, policy)]
            points = sorted((line["share"], line["gain"], DOT) for line in mine)
            curves.append(Curve(lake, policy, points if policy == "all" else [(0.0, 0.0, DOT), *points]))
    return drawn(curves, Axes("calls, as a share of asking about all", "gain in MAP"))


if __name__ == "__main__":
    main()
