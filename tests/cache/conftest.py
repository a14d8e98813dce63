"""Small segments for all, and a filled store to damage."""

from __future__ import annotations

import pytest

from gpumatch.cache import shards

from .stores import open_store, some


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    """Many segments from few rows."""
    monkeypatch.setattr(shards, "SEGMENT_ROWS", 16)


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A closed store of two shards, six segments, with the keys and vectors in it."""
    root = tmp_path_factory.mktemp("filled")
    keys, vectors = some(100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SEGMENT_ROWS", 16)
        for part in (slice(0, 40), slice(40, 100)):
            with open_store(root) as store:
                store.put(keys[part], vectors[part])
    return root, keys, vectors
