"""The default model's weights and tokens in, vectors out, on a GPU: half precision, never waiting for the device.

Copies go through pinned memory while the device works, and a batch's event tells when its vectors are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as f
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpumatch.kernels.bert import joined_attention, layer_names, places_of

if TYPE_CHECKING:
    from gpumatch.encoder.minilm import Tokens

# A weight and a bias.
Pair = tuple[Tensor, Tensor]


class _Layer(NamedTuple):
    attention: Pair
    joined: Pair
    joined_norm: Pair
    up: Pair
    down: Pair
    down_norm: Pair


_PARTS = (
    "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip

# Without cuDNN, which torch prefers: it makes a plan for every shape, and hardly two batches have the same.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# The attention kernels want the padded length to be a multiple of this.
_STEP = 8


class OnGpu:
    """See `minilm.Forward`. A batch takes some 12 kB a token at its peak, 800 MB in all.

    Args:
        device: "cuda", or in tests "cpu", where it computes in float32.
    """

    batch_texts, batch_tokens, in_flight = 8192, 65_536, 4

    def __init__(self, tensors: Mapping[str, np.ndarray], heads: int, epsilon: float, device: str) -> None:
        self._device, self._heads, self._epsilon = torch.device(device), heads, epsilon
        self._pinned = self._device.type == "cuda"
        self._type = torch.float16 if self._pinned else torch.float32

        def put(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(self._device, self._type)

        def pair(name: str) -> Pair:
            return put(tensors[f"{name}.weight"]), put(tensors[f"{name}.bias"])

        def layer(name: str) -> _Layer:
            weight, bias = joined_attention(tensors, name)
            return _Layer((put(weight), put(bias)), *(pair(f"{name}.{part}") for part in _PARTS))

        self._words, self._places = put(tensors["embeddings.word_embeddings.weight"]), put(places_of(tensors))
        self._norm = pair("embeddings.LayerNorm")
        self._width = self._words.shape[1]
        self._layers = [layer(name) for name in layer_names(tensors)]

    def begin(self, tokens: Tokens) -> Callable[[], np.ndarray]:
        """See `minilm.Forward`."""
        lengths = tokens.lengths
        width = -(-int(lengths.max()) // _STEP) * _STEP
        padded = torch.zeros((len(tokens), width), dtype=torch.int32, pin_memory=self._pinned)
        there = np.arange(width) < lengths[:, None]
        padded.numpy()[there] = tokens.ids
        mask = torch.empty((len(tokens), width), dtype=torch.bool, pin_memory=self._pinned)
        mask.numpy()[:] = there
        with torch.inference_mode(), sdpa_kernel(_ATTENTION):
            vectors = self._vectors(
                padded.to(self._device, non_blocking=True),
                mask.to(self._device, non_blocking=True),
                ragged=bool(lengths.min() < width),
            )
            found = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=self._pinned)
            found.copy_(vectors, non_blocking=True)
        # Torch does not reuse pinned memory while copies from it are under way.
        event = torch.cuda.Event() if self._pinned else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record()

        def wait() -> np.ndarray:
            if event is not None:
                event.synchronize()
            answer: np.ndarray = found.numpy()
            return answer

        return wait

    def stop(self) -> None:
        """See `minilm.Forward`; the device has only some milliseconds of work left."""

    def _vectors(self, ids: Tensor, mask: Tensor, *, ragged: bool) -> Tensor:
        """Return vectors of unit length [n, D] of padded tokens, ids int32 [n, width], mask bool [n, width]."""
        n, width = ids.shape
        size = self._width // self._heads
        x = f.embedding(ids, self._words) + self._places[:width]
        x = self._normed(x, self._norm)
        seen = mask[:, None, None, :] if ragged else None
        for layer in self._layers:
            asked, key, value = (
                f.linear(x, *layer.attention).view(n, width, 3, self._heads, size).permute(2, 0, 3, 1, 4).unbind(0)
            )
            gathered = f.scaled_dot_product_attention(asked, key, value, attn_mask=seen)
            joined = f.linear(gathered.transpose(1, 2).reshape(n, width, self._width), *layer.joined)
            x = self._normed(x + joined, layer.joined_norm)
            x = self._normed(x + f.linear(f.gelu(f.linear(x, *layer.up)), *layer.down), layer.down_norm)
        # Scaled to unit length, a sum is the same as a mean.
        summed = torch.bmm(mask[:, None, :].to(x.dtype), x)[:, 0].float()
        return f.normalize(summed, dim=1).to(self._type)

    def _normed(self, x: Tensor, norm: Pair) -> Tensor:
        return f.layer_norm(x, (self._width,), *norm, self._epsilon)
