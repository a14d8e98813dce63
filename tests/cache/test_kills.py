"""Kills: what was acknowledged is there, bit-equal, at whatever place a process dies."""

from __future__ import annotations

import numpy as np

from .stores import assert_holds, batch, child, open_store, the

# Forks children that put batches until they are killed: at a random time, or before the n-th call to the system.
# Prints "<round> <acknowledged batches>" per kill. A batch is acknowledged through a pipe, after put returned.
KILLER = """
root, mode, rounds, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)

def die_at(n):
    count = [0]
    def counted(name, real):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == n:
                if name == "pwrite":
                    real(args[0], args[1][: len(args[1]) // 2], args[2])  # torn
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in ("open", "pwrite", "fsync", "fdatasync", "replace", "unlink", "stat", "fstat", "close"):
        setattr(os, name, counted(name, getattr(os, name)))

next_batch, seen = 0, set()
for round in range(rounds):
    fresh = os.path.join(root, str(round)) if mode == "points" else root
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        if mode == "points":
            die_at(round + 1)
        with open_store(fresh) as store:
            for b in range(next_batch, next_batch + (3 if mode == "points" else 10**9)):
                store.put(*batch(b))
                os.write(into, b.to_bytes(8, "little"))
        os._exit(7)
    os.close(into)
    if mode == "random":
        for _ in range(chance.randrange(4)):  # by progress, so that a slow machine is killed at the same places
            seen.add(int.from_bytes(os.read(out, 8), "little"))
        time.sleep(chance.choice([0.001, 0.004, 0.02]) * chance.random())
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    raw = os.read(out, 1 << 20)
    os.close(out)
    done = [int.from_bytes(raw[i:i + 8], "little") for i in range(0, len(raw), 8)]
    seen.update(done)
    print(round, *(sorted(seen) if mode == "random" else done), flush=True)
    if mode == "points" and os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 7
        break
    if mode == "random":
        next_batch = max([next_batch - 1, *seen]) + 3  # what may be there is not put again
        seen.clear()
"""


def assert_only_true_vectors(store, batches, acknowledged):
    for b in batches:
        keys, vectors = batch(b)
        read, found = store.get(keys)
        assert read[found].tobytes() == vectors[found].tobytes()
        assert found.all() or b not in acknowledged, (b, store.damaged)
        assert found.all() or not found.any(), "a put is one transaction"
    assert store.damaged == []


def test_a_kill_at_a_random_time_loses_nothing_acknowledged(tmp_path):
    rounds, acknowledged = 0, set()
    with child(KILLER, tmp_path, "random", 60, 5) as process:
        for line in process.stdout:
            rounds += 1
            done = [int(word) for word in line.split()[1:]]
            acknowledged.update(done)
            with open_store(tmp_path) as store:  # beside the next child
                assert_only_true_vectors(store, done, acknowledged)
    assert process.returncode == 0
    assert rounds == 60
    assert len(acknowledged) >= 60, "the children were killed before they did anything"
    with open_store(tmp_path) as store:
        assert_only_true_vectors(store, range(max(acknowledged) + 3), acknowledged)
        for b in range(max(acknowledged) + 3):
            store.put(*batch(b))
            assert_holds(store, *batch(b))
    assert_no_litter(tmp_path)


def test_a_kill_at_every_call_to_the_system_loses_nothing_acknowledged(tmp_path):
    with child(KILLER, tmp_path, "points", 500, 0) as process:
        lines = process.communicate()[0].splitlines()
    assert process.returncode == 0
    assert 30 < len(lines) < 500
    assert lines[-1].split()[1:] == ["0", "1", "2"]
    for line in lines:
        number, *done = line.split()
        with open_store(tmp_path / number) as store:
            assert_only_true_vectors(store, range(3), {int(b) for b in done})
            for b in range(3):
                store.put(*batch(b))
                assert_holds(store, *batch(b))
        assert_no_litter(tmp_path / number)


def assert_no_litter(root):
    with open_store(root):
        pass
    folder = the(root, "about.json").parent
    rows = np.fromiter((path.stat().st_size for path in folder.glob("shard-*")), np.int64)
    assert (rows > 0).all()
    assert len(list(folder.glob("catalogue-*.sqlite"))) == 1
    assert not list(folder.glob("damaged-*"))
    assert not list(folder.glob(".*"))
