"""The wheel: kernels/ and cache/ inside gpumatch, the demo lake with it, and nothing else at the top."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source") / "gpumatch"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)],
        check=True,
    )
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_gpumatch_and_nothing_else(wheel):
    names = wheel.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"gpumatch"}
    for needed in (
        "kernels/topk.py",
        "kernels/__init__.py",
        "cache/vectors.py",
        "cache/__init__.py",
        "py.typed",
        "cli.py",
    ):
        assert f"gpumatch/{needed}" in names
    for task in ("join", "union"):
        for file in ("tables", "queries", "ground_truth"):
            assert f"gpumatch/demo_lake/{task}/{file}.json" in names
    assert not [name for name in names if "test" in name or "bench" in name]


def test_the_bare_names_are_not_ours():
    # in a process of its own: the workers of pytest-xdist have the current folder on their path
    code = "import importlib.util as u; print([u.find_spec(name) for name in ('kernels', 'cache')])"
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert str(ROOT) not in found.stdout


def test_ranges_and_pins_agree():
    pins = dict(
        line.strip().lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    from packaging.requirements import Requirement

    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text
