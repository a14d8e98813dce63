"""Where arrays are, and what room there is."""

import warnings

import numpy as np
import torch

from gpumatch.kernels.devices import device_bytes, put


def test_what_torch_holds_and_does_not_use_is_free(monkeypatch):
    held = {"mem_get_info": (40, 100), "memory_reserved": 30, "memory_allocated": 10}
    for name, found in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    assert device_bytes("cuda", 7) == (60, 100)
    assert device_bytes("cpu:0", 7) == (7, 7)


def test_what_cannot_be_written_to_is_carried_without_a_warning_and_what_is_carried_is_a_copy():
    fixed, free = np.arange(6, dtype=np.float32), np.arange(12, dtype=np.float32).reshape(3, 4)[::-1, ::2]
    fixed.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        there = [put(array, "cpu:0") for array in (fixed, free)]
    for array, tensor in zip((fixed, free), there, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
        tensor += 1
        assert not (tensor.numpy() == array).any()
