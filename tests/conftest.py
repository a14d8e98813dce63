"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from gpumatch.machine import has_gpu_driver

# Read when Triton is first imported, by whatever imports it: without a GPU its kernels run in its interpreter.
if not has_gpu_driver():
    os.environ["TRITON_INTERPRET"] = "1"


def _module(name, folder=None):
    path = (folder or Path(__file__).parent) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# tests is no package: what several files build on is put where they can import it from.
_module("chance_oracle")
_module("kernel_inputs")
_module("word_encoder")
_module("survivors")
_module("written_rows")

# torch's name for the same processor: gpumatch takes it for a device that is not the host.
TENSORS = "cpu:0"


def pytest_generate_tests(metafunc):
    """Run every test that takes `device` on NumPy arrays ("cpu"), and as on a GPU: with torch's tensors, wherever."""
    if "device" in metafunc.fixturenames:
        import torch  # only kernel tests get here, and they have imported it already

        gpu = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []
        metafunc.parametrize("device", ["cpu", TENSORS, *gpu], scope="session")


@pytest.fixture(scope="session")
def canonical_oracle():
    """The module tests/canonical_oracle.py."""
    return _module("canonical_oracle")


@pytest.fixture(scope="session")
def oracle(canonical_oracle):
    """The module tests/oracle.py, which builds on the other one; tests is no package, so none is imported by name."""
    return _module("oracle")


@pytest.fixture(scope="session")
def put():
    """A function that gives an array as a device has it."""
    from gpumatch.kernels import devices

    return devices.put


@pytest.fixture(scope="session")
def back():
    """A function that gives a device's array to the host."""
    from gpumatch.kernels import devices

    return devices.host


@pytest.fixture(scope="session")
def bad_files():
    """The module tests/bad_files.py."""
    return _module("bad_files")


@pytest.fixture(scope="session")
def scripted():
    """The module bench/scripted_server.py: a language model's server that does as it is told."""
    return _module("scripted_server", Path(__file__).parent.parent / "bench")


@pytest.fixture
def no_sync(monkeypatch):
    """Leave out the syncs: hundreds of stores are opened, and none has to outlive a power cut."""
    from gpumatch.cache import catalogue

    tune = catalogue._tune

    def tune_without_sync(conn):
        tune(conn)
        conn.execute("PRAGMA synchronous = OFF")

    monkeypatch.setattr(catalogue, "_tune", tune_without_sync)
    for call in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, call, lambda fd: None)
