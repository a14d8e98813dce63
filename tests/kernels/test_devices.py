"""Where arrays are, and what room there is."""

import torch

from gpumatch.kernels.devices import device_bytes


def test_what_torch_holds_and_does_not_use_is_free(monkeypatch):
    held = {"mem_get_info": (40, 100), "memory_reserved": 30, "memory_allocated": 10}
    for name, found in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    assert device_bytes("cuda", 7) == (60, 100)
    assert device_bytes("cpu:0", 7) == (7, 7)
