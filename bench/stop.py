"""Ctrl-C at random times: how long a run takes to end, how it ends, and whether it can be continued.

    python bench/stop.py LAKE [--task union] [--times 8] [--seed 0] [--cache DIR]

The cache directory should be warm; the runs do not use a stored index. The last run is left alone, and its results are
compared with those of a run that was never stopped.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Stop runs at random times and print a line for each; end with 1 where one takes over two seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--task", default="union")
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpumatch-stop-") as scratch:
        sys.exit(0 if stop(options, Path(scratch)) else 1)


def stop(options: argparse.Namespace, scratch: Path) -> bool:
    """Return whether every run ended in time, with 130, and nothing was lost."""
    environment = os.environ | {"GPUMATCH_CACHE_DIR": str(options.cache or scratch / "cache")}

    def command(name: str) -> list[str]:
        return [
            sys.executable, "-m", "gpumatch", "match", str(options.lake), "--task", options.task, "--no-index-cache",
            "-q", "-o", str(scratch / name),
        ]  # fmt: skip

    subprocess.run(command("warm.jsonl"), env=environment, check=False)
    begun = time.perf_counter()
    subprocess.run(command("whole.jsonl"), env=environment, check=False)
    whole = time.perf_counter() - begun
    print(f"uninterrupted: {whole:.1f} s")
    drawn, good = random.Random(options.seed), True
    for _ in range(options.times):
        child = subprocess.Popen(
            command("stopped.jsonl"),
            env=environment,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a script's background jobs ignore it
        )
        at = drawn.uniform(0, whole)
        time.sleep(at)
        begun = time.perf_counter()
        child.send_signal(signal.SIGINT)
        _, said = child.communicate()
        seconds = time.perf_counter() - begun
        print(f"Ctrl-C after {at:.1f} s: exit code {child.returncode} after {seconds:.2f} s: {said.decode().strip()}")
        good &= seconds <= 2 and child.returncode in (0, 4, 130, -signal.SIGINT)
    subprocess.run(command("stopped.jsonl"), env=environment, check=False)
    same = (scratch / "stopped.jsonl").read_bytes() == (scratch / "whole.jsonl").read_bytes()
    print("continued: the same results" if same else "continued: OTHER results")
    return good and same


if __name__ == "__main__":
    main()
