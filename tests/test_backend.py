"""--backend: the same results from all on the shipped lakes, and a line to install what is missing."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from word_encoder import WordEncoder

from gpumatch import backend, pipeline
from gpumatch.backend import open_backend, package_of
from gpumatch.cli import app
from gpumatch.config import Settings
from gpumatch.demo import lake_path
from gpumatch.errors import DeviceError, UsageError
from gpumatch.index import Index, TableSet
from gpumatch.kernels.backends import Product, TorchBackend
from gpumatch.kernels.heaps import ranked
from gpumatch.lake import open_lake
from gpumatch.profile import profile_tables
from gpumatch.recipes import recipe_for
from gpumatch.run import Run
from gpumatch.search import search_tables, table_rows

NEAR = 1e-3
# of each lake: fewer take less time
QUERIES = 25


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What a shipped lake answers, all survivors, by the back end, or by tensors of torch as on a GPU; made once."""
    made, cache = {}, tmp_path_factory.mktemp("cache")

    def of(task, backend, device="cpu"):
        if (task, backend, device) not in made:
            settings = Settings(task=task, k=0, device="cpu", backend=backend, cache_dir=cache, index_cache=False)
            run = Run(settings, encoder=WordEncoder())
            run.device = device
            made[task, backend, device] = list(pipeline.match(lake_path(task), run, max_queries=QUERIES))
        return made[task, backend, device]

    return of


@pytest.mark.parametrize("task", ["join", "union"])
@pytest.mark.parametrize(("other", "where"), [("faiss", "cpu"), ("torch", "cpu:0")])
def test_the_shipped_lakes_have_the_same_results(answers, task, other, where):
    """Scores within 1e-3, and the same order but among scores that are closer than that."""
    if other == "faiss":
        pytest.importorskip("faiss")
    ours, theirs = answers(task, "torch"), answers(task, other, where)
    assert [row["query_table"] for row in ours] == [row["query_table"] for row in theirs]
    assert ours
    for one, another in zip(ours, theirs, strict=True):
        scores = {match["table"]: match["score"] for match in another["matches"]}
        found = {match["table"]: match["score"] for match in one["matches"]}
        worst = min(min(scores.values()), min(found.values()))
        for table in set(scores) ^ set(found):  # one of the two proposed it as its last, and not the other
            assert (scores | found)[table] <= worst + NEAR
        assert len(set(scores) ^ set(found)) <= 2
        for table in set(scores) & set(found):
            assert found[table] == pytest.approx(scores[table], abs=NEAR)
        order = [scores[match["table"]] for match in one["matches"] if match["table"] in scores]
        assert all(a >= b - 2 * NEAR for a, b in pairwise(order))


@pytest.mark.parametrize("task", ["join", "union"])
def test_the_kernel_of_a_gpu_finds_the_same_tables_of_the_shipped_lakes(task):
    """All tables as queries, on a device or as Triton's interpreter runs it: the same order, ties by name."""
    triton_topk = pytest.importorskip("gpumatch.kernels.triton_topk", exc_type=ModuleNotFoundError)
    index = Index.of(TableSet(profile_tables(open_lake(lake_path(task)).tables()), None), {})
    every, k = np.arange(len(index.rows)), 50
    wanted = table_rows(index, index.lake, every, recipe_for(task, "L1"))
    device = "cuda" if torch.cuda.is_available() else "cpu:0"
    ids, scores = ranked(triton_topk.fused_topk(wanted, index.rows, k, every, device))
    ours, of_ours = search_tables(index, wanted, k, every, TorchBackend("cpu", 1))
    np.testing.assert_allclose(scores, of_ours, atol=5e-6)
    gaps = np.abs(np.diff(of_ours, axis=1, prepend=np.inf, append=-np.inf))
    apart = (gaps[:, 1:] > 5e-6) & (gaps[:, :-1] > 5e-6)
    assert (ids == ours)[apart].all()
    assert apart.mean() > 0.5
    # equal scores are in the order of the names, which is that of the rows
    assert ((np.diff(ids, axis=1) > 0) | (np.diff(scores, axis=1) < 0)).all()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_hidden_of_a_tile(seed):
    rng = np.random.default_rng(seed)
    owner = np.sort(rng.integers(0, 6, 30)) if seed % 2 else None
    product, exclude = Product([], 30, owner), rng.integers(-1, 35, 8)
    start, stop = sorted(rng.integers(0, 31, 2).tolist())
    of = np.arange(30) if owner is None else owner
    expected = [(i, row - start) for i in range(8) for row in range(start, stop) if of[row] == exclude[i]]
    assert list(zip(*(some.tolist() for some in product.hidden(start, stop, exclude)), strict=True)) == expected


def test_torch_is_the_default():
    assert Settings().backend == "torch"
    assert isinstance(Run(Settings(device="cpu")).backend("cpu"), TorchBackend)


@pytest.mark.parametrize(
    ("name", "cuda", "where", "package"),
    [
        ("faiss", None, "cpu", "faiss-cpu"),
        ("faiss", 12, "cuda", "faiss-gpu"),
        ("faiss", 13, "cuda", "--no-deps faiss-gpu-cu13-cuvs==1.15.0 libcuvs-cu13==26.6.0"),
        ("cupy", 12, "cuda", "cupy-cuda12x"),
        ("cupy", 13, "cuda", "cupy-cuda13x"),
    ],
)
def test_a_missing_package_says_how_to_install_it(monkeypatch, name, cuda, where, package):
    monkeypatch.setattr("gpumatch.backend.cuda_major", lambda: cuda)
    monkeypatch.setitem(sys.modules, name, None)
    assert package_of(name, where).startswith(package)
    with pytest.raises(DeviceError, match=rf"{name} is not installed; pip install {package}"):
        open_backend(name, where, 1)


def test_a_faiss_that_has_nothing_for_a_gpu(monkeypatch):
    monkeypatch.setattr("gpumatch.backend.cuda_major", lambda: 13)
    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace())
    with pytest.raises(DeviceError, match=r"does not work on cuda: .*force-reinstall --no-deps faiss-gpu-cu13-cuvs"):
        open_backend("faiss", "cuda", 1)


def test_an_error_inside_a_package_is_not_taken_for_a_missing_one(monkeypatch):
    def broken(*_):
        raise ModuleNotFoundError("No module named 'something'", name="something")

    monkeypatch.setattr(backend, "FaissBackend", broken)
    with pytest.raises(ModuleNotFoundError, match="something"):
        open_backend("faiss", "cpu", 1)


def test_cupy_wants_a_device(tmp_path):
    """Told before the lake is read."""
    done = CliRunner().invoke(app, ["match", str(tmp_path / "none"), "--backend", "cupy", "--device", "cpu"])
    assert isinstance(done.exception, DeviceError)
    assert "--backend cupy works on a CUDA device, and there is none; use --backend torch" in str(done.exception)


def test_a_name_that_is_no_back_end(tmp_path):
    done = CliRunner().invoke(app, ["match", str(tmp_path), "--backend", "annoy"])
    assert isinstance(done.exception, UsageError)
    assert "it takes torch, faiss or cupy" in str(done.exception)


def test_the_run_tells_what_searched(tmp_path):
    pytest.importorskip("faiss")
    out, stats = tmp_path / "out.jsonl", tmp_path / "stats.json"
    (tmp_path / "lake").mkdir()
    for name in ("a", "b"):
        (tmp_path / "lake" / f"{name}.csv").write_text("city,people\nOslo,7\nRome,28\n")
    flags = ["--task", "union", "--layer", "L1", "--backend", "faiss", "--stats", str(stats), "-o", str(out)]
    done = CliRunner().invoke(app, ["match", str(tmp_path / "lake"), "--no-cache", *flags])
    assert done.exit_code == 0, done.output
    assert json.loads(stats.read_text())["settings"]["backend"] == "faiss"
    assert len(out.read_text().splitlines()) == 2
