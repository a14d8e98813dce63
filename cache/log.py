"""A catalogue's write-ahead log comes in; whether committed frames in it can no longer be read goes out.

SQLite takes the first frame that fails its checksum for the end of the log and says nothing, as a kill in the middle of
a commit looks like that too. But a kill leaves no frame that is whole in length and marked as a commit. It must never
write.

What cannot be told from a kill: damage to the 12 bytes that mark the very last commit. The last put is then not there.
The other way round, a kill in the microseconds between the mark of a commit and its page, over an older log, is told as
damage; no vector is wrong by either.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
#: A writer may be at work while the log is read: what is found must be there this often, unchanged, over 40 ms.
LOOKS, WAIT_SECONDS = 3, 0.02


def why_log_damaged(log: Path) -> str:
    """Tell what is wrong with a log; empty where nothing is, and where there is none."""
    found = _look(log)
    for _ in range(LOOKS - 1):
        if found is None:
            return ""
        time.sleep(WAIT_SECONDS)
        if _look(log) != found:
            return ""
    return "" if found is None else found[0]


def _look(log: Path) -> tuple[str, int, bytes] | None:
    """Return what is wrong, the number of good frames, and the header; none where nothing is wrong."""
    try:
        raw = log.read_bytes()
    except OSError:
        return None
    if len(raw) <= HEADER_BYTES:
        return None
    header = np.frombuffer(raw, ">u4", 8)
    magic, page = int(header[0]), int(header[2])
    order = ">u4" if magic & 1 else "<u4"
    start = _checksum(np.frombuffer(raw, order, 6)[None], np.zeros(2, np.uint32))
    if magic not in (0x377F0682, 0x377F0683) or not np.array_equal(start, header[6:]):
        return "its header fails its checksum", 0, raw[:HEADER_BYTES]
    size = FRAME_HEADER_BYTES + page
    n = (len(raw) - HEADER_BYTES) // size
    frames = np.frombuffer(raw, np.uint8, n * size, HEADER_BYTES).reshape(n, size)
    fields = np.ascontiguousarray(frames[:, :FRAME_HEADER_BYTES]).view(">u4")
    of_this_log = (fields[:, 2:4] == header[4:6]).all(axis=1)
    summed = np.ascontiguousarray(np.delete(frames, np.s_[8:FRAME_HEADER_BYTES], axis=1)).view(order)
    good = _good_frames(summed, fields[:, 4:6], of_this_log, start)
    lost = int((of_this_log[good:] & (fields[good:, 1] != 0)).sum())
    if not lost:
        return None
    return f"frame {good + 1} of {n} is not what was written; {lost} commits are lost", good, raw[:HEADER_BYTES]


def _good_frames(
    summed: NDArray[np.uint32], checksums: NDArray[np.uint32], of_this_log: NDArray[np.bool_], start: NDArray[np.uint32]
) -> int:
    """Count the frames before the first that fails: each one's checksum goes on from the one before."""
    if not len(summed):
        return 0
    before = np.concatenate([start[None], checksums[:-1].astype(np.uint32)])
    power, weights = _coefficients(summed.shape[1] // 2)
    expected = before @ power.T + _native(summed) @ weights
    fails = ~(of_this_log & (expected == checksums).all(axis=1))
    return int(fails.argmax()) if fails.any() else len(fails)


def _checksum(words: NDArray[np.uint32], before: NDArray[np.uint32]) -> NDArray[np.uint32]:
    power, weights = _coefficients(words.shape[1] // 2)
    summed: NDArray[np.uint32] = (before[None] @ power.T + _native(words) @ weights)[0]
    return summed


def _native(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return words.astype(np.uint32)


@cache
def _coefficients(n_pairs: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """SQLite sums pairs by s0 += x0 + s1; s1 += x1 + s0, modulo 2^32: a linear map of the sums before and the words.

    Returns:
        uint32 [2, 2], of the sums before; uint32 [2 n_pairs, 2], of the words.
    """
    step, enter = np.array([[1, 1], [1, 2]], np.uint32), np.array([[1, 0], [1, 1]], np.uint32)
    power, weights = np.eye(2, dtype=np.uint32), np.zeros((2 * n_pairs, 2), np.uint32)
    for pair in reversed(range(n_pairs)):
        weights[2 * pair : 2 * pair + 2] = (power @ enter).T
        power = power @ step
    return power, weights
