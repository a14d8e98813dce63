"""README and docs/ say what the commands and the committed benchmark lines say, and nothing typed by hand."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_readme_is_what_the_bench_writes():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "bench" / "readme.py")
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    pages = readme.read()
    assert readme.render(pages) == pages, "run: python bench/readme.py"
