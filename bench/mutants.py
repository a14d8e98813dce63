"""Mutants of the code that decides answers, drawn by a seed, against the tests of their module: how many are killed.

    python bench/mutants.py [--seed 0] [--each 5]

A mutant is one change in one place: a comparison, an operator, a constant, a condition, a swapped `and`. Type hints,
docstrings, messages and checks of arguments (`raise`, `strict=`) are left alone, and so is what a module's constant is
set to where the group's tests set it to other values themselves (sizes of chunks and tiles): they hold whatever it is.
Each runs in a copy of the repository. A survivor is printed as a difference: it is a missing test, or a change that
changes nothing. Where none of a group survives, its tests have to pass without a change too, or killing would mean
nothing.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What is mutated, and which tests have to notice.
GROUPS = {
    "search": (
        ["gpumatch/search.py", "gpumatch/blocks.py", "kernels/topk.py"],
        ["tests/test_search.py", "tests/test_blocks.py", "tests/kernels/test_topk.py"],
    ),
    "re-score": (
        [
            "gpumatch/rescore.py",
            "gpumatch/rescore_columns.py",
            "gpumatch/chunks.py",
            "gpumatch/rank.py",
            "gpumatch/features.py",
            "kernels/maxsim.py",
            "kernels/sparse.py",
        ],
        [
            "tests/test_rescore.py",
            "tests/test_chunks.py",
            "tests/test_recipes.py",
            "tests/test_rank.py",
            "tests/test_features.py",
            "tests/kernels",
        ],
    ),
    "eval": (["gpumatch/metrics.py", "gpumatch/records.py"], ["tests/test_metrics.py", "tests/test_records.py"]),
    "judge": (
        [
            "gpumatch/judge/fusion.py",
            "gpumatch/judge/selection.py",
            "gpumatch/judge/pool.py",
            "gpumatch/judge/limits.py",
            "gpumatch/judge/reply.py",
            "gpumatch/judge/prompt.py",
            "gpumatch/judge/judge.py",
            "cache/verdicts.py",
        ],
        ["tests/judge", "tests/cache/test_verdicts.py"],
    ),
    "cache": (
        ["cache/vectors.py", "cache/shards.py", "cache/catalogue.py", "cache/folder.py", "cache/verify.py"],
        ["tests/cache", "tests/test_flips.py"],
    ),
}
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
SECONDS = 900


def main() -> None:
    """Draw, run and print; end with 1 where fewer than four of five are killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=5, help="mutants of each group")
    options = parser.parse_args()
    killed = total = 0
    for group, (modules, tests) in GROUPS.items():
        tuned = _tuned(tests)
        places = [(module, n) for module in modules for n in range(len(_places(_tree(module), tuned)))]
        dead = []
        for module, n in random.Random(f"{options.seed} {group}").sample(places, options.each):
            before, after = _mutated(module, n, tuned)
            dead.append(_dies(module, after, tests))
            word = "killed" if dead[-1] else "SURVIVED"
            print(f"{group}: {word}: {module}\n{_difference(before, after)}", flush=True)
        if all(dead) and _dies(modules[0], (ROOT / modules[0]).read_text(encoding="utf-8"), tests):
            sys.exit(f"{group}: the tests fail without a change too")
        killed, total = killed + sum(dead), total + len(dead)
    print(f"{killed} of {total} killed")
    sys.exit(killed < 0.8 * total)


def _tuned(tests: list[str]) -> set[str]:
    """Return the names of the constants that tests set to values of their own."""
    files = [file for test in tests for file in [ROOT / test, *(ROOT / test).rglob("*.py")] if file.is_file()]
    setting = re.compile(r'setattr\((?:\w+, "|"[\w.]+\.)(_?[A-Z][A-Z_]+)"')
    return {name for file in files for name in setting.findall(file.read_text(encoding="utf-8"))}


def _tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def _places(tree: ast.Module, tuned: set[str]) -> list[ast.AST]:
    """Return what of a module can be changed, in a fixed order."""
    body = [statement for statement in tree.body if not (_targets(statement) & tuned)]
    return list(_candidates(ast.Module(body, [])))


def _targets(statement: ast.stmt) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _candidates(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.Raise):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr | ast.Import | ast.ImportFrom):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue
            if _changes(child):
                yield child
            yield from _candidates(child)


def _changes(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return type(node.ops[0]) in SWAPS
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        return type(node.op) in SWAPS
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    return isinstance(node, ast.Constant) and type(node.value) in (int, float, bool)


def _mutated(module: str, n: int, tuned: set[str]) -> tuple[str, str]:
    """Return a module's code before and after the change of its n-th place."""
    tree = _tree(module)
    before = ast.unparse(tree)
    node = _places(tree, tuned)[n]
    if isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Constant):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    return before, ast.unparse(ast.fix_missing_locations(tree))


def _dies(module: str, code: str, tests: list[str]) -> bool:
    """Tell whether any test fails, or none ends, with a module replaced."""
    with tempfile.TemporaryDirectory(prefix="gpumatch-mutant-") as scratch:
        there = Path(scratch) / "repository"
        ignored = shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, there, symlinks=True, ignore=ignored)
        (there / module).write_text(code, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": str(there)}
        try:
            done = subprocess.run(
                command, cwd=there, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return True
        if done.returncode not in (0, 1, 2):  # 2: it cannot even be imported
            sys.exit(f"the tests of {module} cannot be run:\n{done.stdout}\n{done.stderr}")
        return done.returncode != 0


def _difference(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return "\n".join(f"    {line}" for line in list(lines)[2:] if not line.startswith("@@"))


if __name__ == "__main__":
    main()
