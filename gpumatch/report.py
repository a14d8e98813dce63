"""Result rows in, one page or one table for people out: self-contained HTML, CSV for spreadsheets.

Names are an attacker's text: in HTML all of it is escaped, no script may run and nothing may be fetched; in CSV no cell
is a formula; in neither are there escape sequences. Reads results of other systems too: all but a table's name and
score may be missing.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from gpumatch.explain import is_pair

Row = Mapping[str, Any]

# How much of results a notebook shows.
_QUERIES_SHOWN, _MATCHES_SHOWN = 5, 10
# Characters that are written out: controls, those that turn the direction of the text around them, and lone surrogates.
# Other spaces and joiners are part of how languages are written.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# First characters that make a spreadsheet take a cell for a formula (OWASP).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_FIELDS = (
    "query_table", "query_column", "query_text", "task", "rank", "table", "score", "confidence", "layer", "columns",
)  # fmt: skip

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #888; --bar: #3b82f6; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; }
p { color: var(--quiet); margin-top: 0; }
details { border-top: 1px solid var(--line); padding: .4rem 0; }
details { content-visibility: auto; contain-intrinsic-size: 2.5rem; }
summary { cursor: pointer; }
summary b { font-weight: 600; }
summary span, small { color: var(--quiet); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--quiet); }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem .25rem 0; vertical-align: top; }
td.n { text-align: right; white-space: nowrap; }
td, summary { overflow-wrap: anywhere; }
meter { width: 5rem; vertical-align: middle; }
"""


def to_html(rows: Sequence[Row]) -> str:
    """Return one page with all matches of all query rows."""
    matches = sum(len(row["matches"]) for row in rows)
    unmatched = sum(not row["matches"] for row in rows)
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>gpumatch: {len(rows):,} queries</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{len(rows):,} queries, {matches:,} matches</h1>\n"
        f"<p>{unmatched:,} queries without a match. Open a query to see its matches, best first.</p>\n"
    )
    return "".join([head, *(part for row in rows for part in _query(row)), "</body>\n</html>\n"])


def snippet(rows: Sequence[Row]) -> str:
    """Return the first matches of the first query rows, for a notebook."""
    shown = [dict(row) | {"matches": row["matches"][:_MATCHES_SHOWN]} for row in rows[:_QUERIES_SHOWN]]
    more = f"<p>… and {len(rows) - len(shown):,} more queries</p>\n" if len(rows) > len(shown) else ""
    return "".join([*(part for row in shown for part in _query(row)), more])


def to_csv(rows: Sequence[Row]) -> str:
    """Return a header and a line a match; an apostrophe precedes what a spreadsheet would take for a formula."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_FIELDS)
    for row in rows:
        for rank, match in enumerate(row["matches"], start=1):
            told = {**row, **match, "rank": rank, "columns": "; ".join(_pairs(match))}
            writer.writerow([_cell(told.get(field)) for field in _FIELDS])
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    return f"{chr(39) if value.startswith(_FORMULA) else ''}{_seen(value)}"


def _pairs(match: Row) -> list[str]:
    columns = match.get("columns")
    pairs = [one for one in columns if is_pair(one)] if isinstance(columns, list) else []
    names = [(str(one["query"]["name"]), str(one["candidate"]["name"])) for one in pairs]
    return [query if query == candidate else f"{query} = {candidate}" for query, candidate in names]


def _query(row: Row) -> Iterator[str]:
    asked = [_safe(row[name]) for name in ("query_table", "query_text") if row.get(name) is not None]
    column = f", column <b>{_safe(row['query_column'])}</b>" if row.get("query_column") is not None else ""
    best = f": {_safe(row['matches'][0]['table'])}" if row["matches"] else ""
    about = f"{_safe(row.get('task') or '')} {len(row['matches'])} matches{best}".strip()
    yield f"<details><summary><b>{' · '.join(asked)}</b>{column} <span>{about}</span></summary>\n"
    yield '<div class="wide"><table>\n<tr><th>#<th>table<th>score<th>confidence<th>columns<th>evidence</tr>\n'
    for rank, match in enumerate(row["matches"], start=1):
        yield f'<tr><td class="n">{rank}<td>{_safe(match["table"])}<td class="n">{match["score"]:.4f}'
        yield f"<td>{_confidence(match.get('confidence'))}<td>{'<br>'.join(map(_safe, _pairs(match)))}"
        yield f"<td><small>{_evidence(match)}</small></tr>\n"
    yield "</table></div></details>\n"


def _confidence(sure: object) -> str:
    return f'<meter value="{sure:.4f}"></meter> {sure:.2f}' if isinstance(sure, int | float) else ""


def _evidence(match: Row) -> str:
    evidence, verdict = match.get("evidence"), match.get("verdict")
    signals = evidence.items() if isinstance(evidence, Mapping) else ()
    told = [f"{_safe(name)} {value:.2f}" for name, value in signals if isinstance(value, int | float)]
    if isinstance(verdict, Mapping) and verdict.get("says") is not None:
        told.append(f"a language model says {_safe(verdict['says'])}; its words: {_safe(verdict.get('words', ''))}")
    return ", ".join(told)


def _safe(text: object) -> str:
    return escape(_seen(str(text)))


def _seen(text: str) -> str:
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)
