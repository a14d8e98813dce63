"""Results and truths come back from files as written, and what is wrong in one is said with its place."""

import csv
import json

import pytest
from written_rows import pair, result

from gpumatch.errors import LakeError, UsageError
from gpumatch.metrics import score_queries
from gpumatch.records import load_results, load_truth


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_results_come_back_as_written(tmp_path, encoding, end):
    rows = [result("q\u2028ü", [("a", 0.5)]), result("q", [], column="k")]
    text = end.join([json.dumps(rows[0], ensure_ascii=False), "", json.dumps(rows[1]), ""])
    assert load_results(write(tmp_path / "r.jsonl", text, encoding)) == rows


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"query_table": ', "line 3: not JSON"),
        ("7", "line 3: found a int, not an object"),
        ('{"query_table": "r"}', "line 3: `matches` must be a list, found None"),
        (json.dumps(result("q", [])), r"line 3: .* answered before at .*r\.jsonl, line 1"),
        (json.dumps(result("r", [("a", 1e999)])), "line 3, match 1: `score` must be a finite number, found inf"),
        ('{"score": ' + "9" * 5_000 + "}", r"line 3: not JSON \(a number of too many digits\)"),
        ("[" * 100_000, r"line 3: not JSON \(nested too deep\)"),
    ],
)
def test_a_bad_result_line_is_named(tmp_path, second, message):
    path = write(tmp_path / "r.jsonl", json.dumps(result("q", [("a", 1.0)])) + "\n\n" + second + "\n")
    with pytest.raises(LakeError, match=r"r\.jsonl, " + message):
        load_results(path)


def test_rows_that_nobody_looks_up_may_repeat(tmp_path):
    rows = [result("q", [("a", 1.0)]), result("q", [("b", 1.0)])]
    path = write(tmp_path / "r.jsonl", "\n".join(map(json.dumps, rows)))
    assert load_results(path, once=False) == rows
    write(path, path.read_text() + '\n{"query_table": "r"}')
    with pytest.raises(LakeError, match=r"line 3: `matches` must be a list"):
        load_results(path, once=False)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_truth_reads_the_same_from_json_and_csv(tmp_path, encoding):
    rows = [pair("q,1", "ü\u2028x", "k", "c"), pair("q2", "b")]
    as_json = load_truth(write(tmp_path / "t.json", json.dumps(rows, ensure_ascii=False), encoding))
    lines = 'query_table,query_column,candidate_table,candidate_column\r\n"q,1",k,ü\u2028x,c\r\nq2,,b,\r\n'
    as_csv = load_truth(write(tmp_path / "t.CSV", lines, encoding))
    assert as_json == rows
    results = [result("q,1", [("ü\u2028x", "c", 1.0)], column="k"), result("q2", [("b", 1.0)])]
    for truth in (as_json, as_csv):
        scored = score_queries(results, truth)
        assert scored.keys == [("q,1", "k"), ("q2", None)]
        assert scored.values[:, 0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("delimiter", ";\t|")
def test_a_truth_may_have_the_delimiter_of_a_spreadsheet(tmp_path, delimiter):
    text = f'query_table{delimiter}candidate_table\n"a,b"{delimiter}c,d\n'
    assert load_truth(write(tmp_path / "t.csv", text)) == [{"query_table": "a,b", "candidate_table": "c,d"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "query_table,candidate_table\nq,a\nq,\n", r"t\.csv, line 3: `candidate_table` must be a name"),
        ("t.csv", "query_table,candidate_table\nq,a\nq\n", r"t\.csv, line 3: `candidate_table` must be a name"),
        ("t.csv", 'query_table,candidate_table\n"q\nq",a\n,b\n', r"t\.csv, line 4: `query_table` must be a name"),
        ("t.csv", "query,candidate\nq,a\n", r"t\.csv, line 2: `query_table` must be a name, found None"),
        ("t.csv", "query_table,candidate_table\n", r"t\.csv: no truth row found"),
        ("t.json", '[{"query_table": "q"}]', r"t\.json, row 1: `candidate_table` must be a name, found None"),
        ("t.json", '[{"query_table": "q", "candidate_table": "a"}, 5]', r"t\.json, row 2: found a int, not an object"),
        ("t.json", '{"q": ["a"]}', r"t\.json: found a JSON dict, not a list"),
        ("t.json", '[\n{"query_table": ]', r"t\.json, line 2: not JSON"),
        ("t.json", "[]", r"t\.json: no truth row found"),
        ("t.json", "[" + "9" * 5_000 + "]", r"t\.json: not JSON \(a number of too many digits\)"),
        ("t.json", "[" * 100_000, r"t\.json: not JSON \(nested too deep\)"),
    ],
)
def test_a_bad_truth_file_is_named(tmp_path, name, text, message):
    with pytest.raises(LakeError, match=message):
        load_truth(write(tmp_path / name, text))


def test_a_truth_file_with_a_field_without_end_is_named(tmp_path):
    limit = csv.field_size_limit(1000)
    try:
        with pytest.raises(LakeError, match=r"t\.csv, line .*: not CSV"):
            load_truth(write(tmp_path / "t.csv", f"query_table,candidate_table\n{'x' * 2000},a\n"))
    finally:
        csv.field_size_limit(limit)


def test_unusable_files_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"t\.xlsx: a truth file is \.json or \.csv"):
        load_truth(tmp_path / "t.xlsx")
    with pytest.raises(LakeError, match=r"gone\.csv: cannot be read"):
        load_truth(tmp_path / "gone.csv")
    with pytest.raises(LakeError, match=r"r\.jsonl: not UTF-8 at byte 1"):
        load_results(write(tmp_path / "r.jsonl", "aü", "latin-1"))
    with pytest.raises(LakeError, match=r"e\.jsonl: no result line found"):
        load_results(write(tmp_path / "e.jsonl", "\n"))
