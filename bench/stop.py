"""Ctrl-C at random times: how long a run takes to end, how it ends, and whether it can be continued.

    python bench/stop.py LAKE [--task union] [--times 8] [--seed 0] [--cache DIR] [--llm]

The cache directory should be warm; the runs do not use a stored index. The last run is left alone, and its results are
compared with those of a run that was never stopped. With --llm the runs ask a scripted server, 0.3 s a call, and
every run that is to be stopped begins without verdicts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripted_server import ScriptedServer  # beside this file: Python puts a script's folder on its path


def main() -> None:
    """Stop runs at random times and print a line for each; end with 1 where one takes over two seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--task", default="union")
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--llm", action="store_true", help="with layer 3, against a scripted server")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpumatch-stop-")))
        more = []
        if options.llm:
            server = stack.enter_context(ScriptedServer(lambda asked, name, text: "different", latency=0.3))
            more = ["--layer", "L1+L2+L3", "--llm-url", server.url, "--llm-model", "scripted"]
        done = stop(options, scratch, more)
    sys.exit(0 if done else 1)


def stop(options: argparse.Namespace, scratch: Path, more: Sequence[str] = ()) -> bool:
    """Return whether every run ended in time, with 130, and nothing was lost."""
    cache = options.cache or scratch / "cache"
    environment = os.environ | {"GPUMATCH_CACHE_DIR": str(cache)}

    def command(name: str) -> list[str]:
        return [
            sys.executable, "-m", "gpumatch", "match", str(options.lake), "--task", options.task, "--no-index-cache",
            "-q", "-o", str(scratch / name), *more,
        ]  # fmt: skip

    subprocess.run(command("warm.jsonl"), env=environment, check=False)
    shutil.rmtree(cache / "verdicts", ignore_errors=True)
    begun = time.perf_counter()
    subprocess.run(command("whole.jsonl"), env=environment, check=False)
    whole = time.perf_counter() - begun
    print(f"uninterrupted: {whole:.1f} s")
    drawn, good = random.Random(options.seed), True
    for _ in range(options.times):
        shutil.rmtree(cache / "verdicts", ignore_errors=True)
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
