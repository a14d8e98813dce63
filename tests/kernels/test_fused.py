"""Where Triton's kernels cannot run, torch's operations do, and the reason is known."""

import subprocess
import sys

import pytest
import torch

from gpumatch.kernels import maxsim, topk
from gpumatch.kernels.fused import fused_trouble

triton_maxsim = pytest.importorskip("gpumatch.kernels.triton_maxsim", exc_type=ModuleNotFoundError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def anew():
    fused_trouble.cache_clear()
    yield
    fused_trouble.cache_clear()


def test_they_run_here():
    assert fused_trouble(DEVICE) == ""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable"),
        subprocess.CalledProcessError(1, ["gcc", "main.c"]),
        ImportError("libtriton.so: undefined symbol"),
    ],
    ids=["no compiler", "no headers", "another libc"],
)
def test_what_cannot_run_is_tried_once_and_done_by_torch(error, monkeypatch):
    tried = []

    def launched(*_):
        tried.append(1)
        raise error

    monkeypatch.setattr(triton_maxsim, "maxsim_fused", launched)
    monkeypatch.setattr(torch, "ones", lambda shape, device: torch.zeros(shape))  # in place of a device
    assert topk._fused() is None
    assert maxsim._fused() is maxsim._on_device
    assert fused_trouble() == f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert len(tried) == 1


def test_a_lack_of_memory_says_nothing_of_whether_they_run(monkeypatch):
    def launched(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    monkeypatch.setattr(triton_maxsim, "maxsim_fused", launched)
    assert fused_trouble(DEVICE) == ""


@pytest.mark.parametrize("name", ["triton_maxsim", "triton_topk"])
def test_without_triton_torch_does_it(name, monkeypatch):
    for module in ("triton_maxsim", "triton_topk"):
        monkeypatch.setitem(sys.modules, f"gpumatch.kernels.{module}", None)
    assert "ModuleNotFoundError" in fused_trouble(DEVICE)
    assert topk._fused() is None
    assert maxsim._fused() is maxsim._on_device
