"""A run that is killed at any time and started again gives the bytes of a run that was left in peace."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gpumatch.cache.keys import text_keys
from gpumatch.cache.vectors import VectorStore
from gpumatch.embed import SERIALISER
from gpumatch.index import Index

KILLS = 50
BATCH_TEXTS = 8
WORDS = ["oslo", "rome", "paris", "bergen", "lima", "quito", "cairo", "accra", "lagos", "tunis", "dakar", "riga"]


def lines_of(path):
    """How many lines a file has, none if it is not there or goes away."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


class Server:
    """Starts runs and waits for them; see run_server.py."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, order, kill_after=None, kill_at_row=None):
        """Run to the end, or kill it after some seconds or rows; return its exit code and how long it took."""
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        child, begun = int(self.process.stdout.readline()), time.perf_counter()
        if kill_at_row is not None:
            journal, out = Path(order["out"] + ".partial.journal"), Path(order["out"])
            while lines_of(journal) <= kill_at_row and not out.exists() and time.perf_counter() - begun < 60:
                time.sleep(0.0002)
            os.kill(child, signal.SIGKILL)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return code, time.perf_counter() - begun


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=30)
    server.process.stdout.close()
    server.process.stderr.close()


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """60 tables of a few columns, most of which no other table has."""
    folder = tmp_path_factory.mktemp("lake")
    chance = random.Random(5)
    for number in range(60):
        names = chance.sample(WORDS, 4)
        rows = [",".join(f"{chance.choice(WORDS)} {chance.randrange(40)}" for _ in names) for _ in range(6)]
        (folder / f"t{number:02}.csv").write_text("\n".join([",".join(names), *rows]) + "\n")
    return folder


def order(lake, folder, task):
    folder.mkdir(exist_ok=True)
    return {
        "lake": str(lake),
        "task": task,
        "cache": str(folder / "cache"),
        "out": str(folder / "out.jsonl"),
        "log": str(folder / "encoded.log"),
    }


def encoded(asked):
    log = Path(asked["log"])
    return [text for line in log.read_text().splitlines() for text in json.loads(line)] if log.exists() else []


def assert_whole(asked):
    """Every vector and every index that the killed runs and the last one left is what was put there."""
    texts = sorted(set(encoded(asked)))
    with VectorStore.open(
        Path(asked["cache"]) / "vectors", model="writing", revision="1", serialiser=SERIALISER, dim=16
    ) as store:
        rows, found = store.get(text_keys(texts))
        assert store.damaged == []
    assert found.all()
    np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float32), axis=1), 1, atol=1e-3)
    folders = list((Path(asked["cache"]) / "indexes").iterdir())
    assert len(folders) == 1
    assert Index.load(folders[0]).lake.profiles.n_tables == 60
    assert {path.name.split("-")[0] for path in folders[0].iterdir()} == {"manifest.json", "segment", ".lock"}


@pytest.mark.parametrize("task", ["join", "union"])
def test_killed_anywhere_and_continued(server, lake, tmp_path, task):
    peace = order(lake, tmp_path / "peace", task)
    code, seconds = server.run(peace)
    assert code == 0
    expected, texts = Path(peace["out"]).read_bytes(), set(encoded(peace))
    assert expected.count(b"\n") == 60
    chance = random.Random(task)
    killed, resumed, number = 0, 0, 0
    while killed < KILLS // 2:
        number += 1
        assert number < 4 * KILLS
        asked = order(lake, tmp_path / str(number), task)
        if number % 4 == 0:  # rows are written in a small part of the time
            code, took = server.run(asked, kill_at_row=chance.randrange(1, 50))
        else:
            code, took = server.run(asked, kill_after=chance.uniform(0, seconds))
        killed += code == -signal.SIGKILL
        if code == 0:  # it was over before: on a busy machine the first run says little of the others
            seconds = min(seconds, took)
        partial = Path(asked["out"] + ".partial.journal")
        resumed += lines_of(partial) > 1
        assert code in (0, -signal.SIGKILL)
        before = Counter(encoded(asked))
        assert server.run(asked)[0] == 0
        assert Path(asked["out"]).read_bytes() == expected
        again = Counter(encoded(asked))
        assert set(again) == texts
        assert max(before.values(), default=1) == 1
        assert sum(again.values()) - len(texts) <= BATCH_TEXTS
        assert_whole(asked)
        assert sorted(path.name for path in (tmp_path / str(number)).iterdir()) == ["cache", "encoded.log", "out.jsonl"]
    assert resumed > 0


def test_killed_again_and_again(server, lake, tmp_path):
    """Each run gets a little further; what they have made is never made twice but for one batch a kill."""
    peace = order(lake, tmp_path / "peace", "union")
    assert server.run(peace)[0] == 0
    asked = order(lake, tmp_path / "killed", "union")
    chance, kills, code = random.Random(1), 0, -signal.SIGKILL
    while code != 0:
        code, _ = server.run(asked, kill_after=0.1 + 0.02 * kills + chance.uniform(0, 0.05))
        kills += code != 0
        assert kills < 200
    assert Path(asked["out"]).read_bytes() == Path(peace["out"]).read_bytes()
    assert sum(Counter(encoded(asked)).values()) - len(set(encoded(peace))) <= BATCH_TEXTS * kills
    assert_whole(asked)
