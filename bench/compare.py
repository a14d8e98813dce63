"""What was measured in, what follows from it out: extrapolated seconds, ratios to gpumatch, and how far answers agree.

Pure; no files, no clocks.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

TOP = 10
# Scores that differ by less are ties: both sides round to six decimals, and sum in another order.
TIE = 1e-4
REASONS = ("ties", "not_in_its_pool", "not_in_gpumatchs_pool", "other")
# Stages of gpumatch that the baseline counts as start-up, or has as a file before its clock starts.
START_UP = ("start", "open", "profile", "read", "encode", "index", "store")

Line = dict[str, Any]
Matches = Sequence[tuple[str, float]]


def extrapolated(run: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of all queries without start-up, from a sample's; no worker encodes a text twice.

    Args:
        run: sample_seconds_per_query, of the pool as a whole; encode_share, of it; seconds_per_text, of one worker;
            texts, the distinct ones of the lake; queries, all of them.
    """
    sampled = run["queries"] * run["sample_seconds_per_query"]
    encoding = sampled * run["encode_share"]
    most = run["texts"] * run["seconds_per_text"]  # workers encode side by side, each all texts at the worst
    whole = sampled - encoding + min(encoding, most)
    return {
        "job_seconds": whole,
        "encode_seconds": min(encoding, most),
        "seconds_per_query": whole / run["queries"],
    }


def ratios(line: Line, ours: Sequence[Line], answering: float | None = None) -> dict[str, float]:
    """Return gpumatch's own figures, the medians of its runs, and how many times they are better."""
    seconds = statistics.median(one["seconds"] for one in ours)
    peak = statistics.median(one["peak_bytes"] for one in ours) / 2**20
    if answering is None:
        answering = statistics.median(_answering(one["stats"]["stages"]) for one in ours)
    return {
        "gpumatch_seconds": seconds,
        "gpumatch_answering_seconds": answering,
        "gpumatch_peak_mb": peak,
        "times_faster": line["job_seconds"] / seconds,
        "times_less_memory": line["peak_mb"] / peak,
    }


def _answering(stages: Mapping[str, Mapping[str, float]]) -> float:
    return sum(stage["seconds"] for name, stage in stages.items() if name not in START_UP)


def both(join: Line, union: Line) -> Line:
    """Return one line for two halves that run one after the other."""
    summed = (
        "tables", "queries", "sample", "start_seconds", "job_seconds", "encode_seconds", "gpumatch_answering_seconds"
    )  # fmt: skip
    line = {name: join[name] + union[name] for name in summed}
    weighed = {
        name: (join[name] * join["sample"] + union[name] * union["sample"]) / line["sample"]
        for name in ("overlap", *REASONS)
    }
    return {
        **{name: join[name] for name in ("form", "start", "workers")},
        **line,
        **weighed,
        "lake": f"{join['lake']} + {union['lake']}",
        "task": "both",
        "seconds_per_query": line["job_seconds"] / line["queries"],
        "peak_mb": max(join["peak_mb"], union["peak_mb"]),
        "score_gap": max(join["score_gap"], union["score_gap"]),
    }


def agreement(answers: Mapping[int, Matches], found: Mapping[int, Matches]) -> dict[str, float]:
    """Compare two systems' matches of the same queries, best first: what share of gpumatch's top 10 the baseline's has.

    And what share each reason has why one is missing there. ties: its score is that of the baseline's tenth;
    not_in_its_pool: the baseline's L1 did not propose it; not_in_gpumatchs_pool: a candidate of the baseline scores
    higher than gpumatch's tenth, so gpumatch's search did not propose that one. score_gap: the largest difference of
    two scores of one pair.

    Args:
        answers: query → the baseline's matches, all that it scored; found: query → gpumatch's.
    """
    counts = dict.fromkeys(REASONS, 0)
    slots, gap = 0, 0.0
    for query, matches in found.items():
        scores = dict(answers[query])
        slots += len(matches[:TOP])
        gap = max([gap, *(abs(scores[name] - score) for name, score in matches if name in scores)])
        for reason in _reasons(scores, matches[:TOP]):
            counts[reason] += 1
    shares = {reason: count / max(1, slots) for reason, count in counts.items()}
    return {"overlap": 1 - sum(shares.values()), "score_gap": gap} | shares


def _reasons(scores: Mapping[str, float], top: Matches) -> list[str]:
    """Say of every candidate among gpumatch's best that is not among the baseline's why that is."""
    best = list(scores)[: len(top)]
    names = {name for name, _ in top}
    pushed_out = any(scores[name] > top[-1][1] + TIE for name in best if name not in names)

    def reason(name: str) -> str:
        if name not in scores:
            return "not_in_its_pool"
        if abs(scores[name] - scores[best[-1]]) < TIE:
            return "ties"
        return "not_in_gpumatchs_pool" if pushed_out else "other"

    return [reason(name) for name in names if name not in best]
