"""The weights of a BERT and ragged tokens in, one unit vector for each text out, on a CPU.

BERT: Devlin et al., NAACL 2019; the mean over a text's tokens: Reimers and Gurevych, Sentence-BERT, EMNLP 2019.

Nothing is padded: texts lie one behind the other, and only attention knows where each begins. Products are of 16-bit
integers (`linear`), and between two attentions a few dozen tokens at a time go through all steps while they are in the
cache. A text's vector depends on nothing but the text, to the last bit, whatever is encoded beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from gpumatch.kernels.attention import attend, exp, total
from gpumatch.kernels.compiled import compiled
from gpumatch.kernels.linear import TOGETHER, Weights, linear, multiply
from gpumatch.kernels.shorts import square

_ROOT_HALF = np.float32(math.sqrt(0.5))


@dataclass(frozen=True)
class Norm:
    """A layer norm: weight and bias, float32 [W] each."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Layer:
    """One layer. attention: query, key and value in one, [W, 3W]; joined: its output; up, down: the feed-forward."""

    attention: Weights
    joined: Weights
    joined_norm: Norm
    up: Weights
    down: Weights
    down_norm: Norm


@dataclass(frozen=True)
class Bert:
    """A BERT's weights.

    words: float32 [vocabulary, W]. places: float32 [most tokens, W], with the first token type's added.
    heads: of attention, their width a divisor of W. epsilon: of the norms.
    """

    words: np.ndarray
    places: np.ndarray
    norm: Norm
    layers: tuple[Layer, ...]
    heads: int
    epsilon: float

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray], heads: int, epsilon: float) -> Bert:
        """Take weights by the names that transformers' BertModel gives them, float32.

        Raises:
            KeyError: one is missing.
            ValueError: the heads do not share the width, or there is NaN or an infinite number in a layer's weights.
        """
        return cls(
            tensors["embeddings.word_embeddings.weight"],
            places_of(tensors),
            _norm(tensors, "embeddings.LayerNorm"),
            tuple(_layer(tensors, name) for name in layer_names(tensors)),
            heads,
            epsilon,
        )

    @property
    def width(self) -> int:
        """W."""
        return int(self.words.shape[1])


def _norm(tensors: Mapping[str, np.ndarray], name: str) -> Norm:
    return Norm(tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def places_of(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return what is added to a token's word, float32 [most tokens, W]: its place's and the first token type's."""
    places, kinds = (tensors[f"embeddings.{name}_embeddings.weight"] for name in ("position", "token_type"))
    answer: np.ndarray = places + kinds[0]
    return answer


def layer_names(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Return how the names of each layer's weights begin."""
    count = sum(name.endswith(".attention.self.query.weight") for name in tensors)
    return [f"encoder.layer.{i}" for i in range(count)]


def joined_attention(tensors: Mapping[str, np.ndarray], layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Return weight float32 [3W, W] and bias float32 [3W] of a layer's query, key and value in one."""
    names = [f"{layer}.attention.self.{which}" for which in ("query", "key", "value")]
    weight, bias = (np.concatenate([tensors[f"{name}.{what}"] for name in names]) for what in ("weight", "bias"))
    return weight, bias


def _layer(tensors: Mapping[str, np.ndarray], name: str) -> Layer:
    def weights(part: str) -> Weights:
        return Weights.of(tensors[f"{name}.{part}.weight"], tensors[f"{name}.{part}.bias"])

    return Layer(
        Weights.of(*joined_attention(tensors, name)),
        weights("attention.output.dense"),
        _norm(tensors, f"{name}.attention.output.LayerNorm"),
        weights("intermediate.dense"),
        weights("output.dense"),
        _norm(tensors, f"{name}.output.LayerNorm"),
    )


def text_vectors(
    bert: Bert, ids: np.ndarray, start: np.ndarray, between: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Return float32 [n, W], a vector of unit length for each text.

    Args:
        ids: int32 [tokens], text i's at start[i]:start[i+1], each below the size of the vocabulary.
        start: int64 [n+1]; no text is empty, or has more tokens than the model has places.
        between: called before every layer; what it raises ends the work.

    Raises:
        ValueError: an empty or too long text, or a token that the vocabulary does not have.
    """
    lengths = np.diff(start)
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= len(bert.places):
        raise ValueError(f"texts of {lengths.min()} to {lengths.max()} tokens; 1 to {len(bert.places)} fit")
    if len(ids) and not 0 <= ids.min() <= ids.max() < len(bert.words):
        raise ValueError(f"tokens {ids.min()} to {ids.max()}; the vocabulary has {len(bert.words)}")
    epsilon = np.float32(bert.epsilon)
    x = np.empty((len(ids), bert.width), np.float32)
    _look_up(ids, start, bert.words, bert.places, bert.norm.weight, bert.norm.bias, epsilon, x)
    found = np.empty_like(x)
    for layer in bert.layers:
        between()
        attend(linear(x, layer.attention), start, bert.heads, found)
        bad = _feed_forward(
            found, *_parts(layer.joined), layer.joined_norm.weight, layer.joined_norm.bias, *_parts(layer.up),
            *_parts(layer.down), layer.down_norm.weight, layer.down_norm.bias, epsilon, x,
        )  # fmt: skip
        if bad:
            raise ValueError("NaN or an infinite number among the tokens")
    vectors = np.empty((len(lengths), bert.width), np.float32)
    _mean(x, start, vectors)
    return vectors


def _parts(weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return weights.packed, weights.step, weights.bias


@compiled
def _look_up(ids, start, words, places, weight, bias, epsilon, x):
    for text in range(len(start) - 1):
        for token in range(start[text], start[text + 1]):
            row, word, place = x[token], words[ids[token]], places[token - start[text]]
            for i in range(len(row)):
                row[i] = word[i] + place[i]
            _normalise(row, weight, bias, epsilon)


@compiled
def _feed_forward(
    found,
    joined,
    joined_step,
    joined_bias,
    joined_weight,
    joined_shift,
    up,
    up_step,
    up_bias,
    down,
    down_step,
    down_bias,
    down_weight,
    down_shift,
    epsilon,
    x,
):
    """Do the rest of a layer after attention, whose result is float32 [tokens, W]; x is read and replaced.

    Returns:
        Whether NaN or an infinite number came up.
    """
    width, inner = x.shape[1], len(up_step)
    asked = np.empty(TOGETHER * 2 * ((max(width, inner) + 1) // 2), np.int16)
    q_step, q_norm = np.empty(TOGETHER, np.float32), np.empty(TOGETHER, np.float32)
    narrow, wide = np.empty((TOGETHER, width), np.float32), np.empty((TOGETHER, inner), np.float32)
    for a in range(0, len(x), TOGETHER):
        b = min(len(x), a + TOGETHER)
        here = x[a:b]
        bad = multiply(found, a, b, joined, joined_step, joined_bias, asked, q_step, q_norm, narrow.reshape(-1), 0)
        _add(here, narrow, joined_weight, joined_shift, epsilon)
        bad = max(bad, multiply(x, a, b, up, up_step, up_bias, asked, q_step, q_norm, wide.reshape(-1), 0))
        _gelu(wide[: b - a].reshape(-1))
        bad = max(
            bad, multiply(wide, 0, b - a, down, down_step, down_bias, asked, q_step, q_norm, narrow.reshape(-1), 0)
        )
        _add(here, narrow, down_weight, down_shift, epsilon)
        if bad >= 0:
            return True
    return False


@compiled
def _add(x, more, weight, bias, epsilon):
    for t in range(len(x)):
        row, other = x[t], more[t]
        for i in range(len(row)):
            row[i] += other[i]
        _normalise(row, weight, bias, epsilon)


@compiled
def _normalise(row, weight, bias, epsilon):
    """Layer norm (Ba et al., 2016), in place."""
    mean = total(row) / np.float32(len(row))
    for i in range(len(row)):
        row[i] -= mean
    scale = np.float32(1) / np.sqrt(square(row) / np.float32(len(row)) + epsilon)
    for i in range(len(row)):
        row[i] = row[i] * scale * weight[i] + bias[i]


@compiled
def _mean(x, start, out):
    """Write the mean of every text's tokens, at unit length."""
    for text in range(len(out)):
        row = out[text]
        row[:] = 0
        for token in range(start[text], start[text + 1]):
            of_token = x[token]
            for i in range(len(row)):
                row[i] += of_token[i]
        scale = np.float32(1) / max(np.sqrt(square(row)), np.float32(1e-12))
        for i in range(len(row)):
            row[i] *= scale


@compiled
def _gelu(x):
    """x·Φ(x) in place (Hendrycks and Gimpel, 2016), erf by Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most."""
    for i in range(len(x)):
        z = abs(x[i]) * _ROOT_HALF
        t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * z)
        poly = np.float32(1.061405429) * t - np.float32(1.453152027)
        poly = (poly * t + np.float32(1.421413741)) * t - np.float32(0.284496736)
        beyond = (poly * t + np.float32(0.254829592)) * t * exp(-z * z)  # 1 - erf(z)
        x[i] = (max(x[i], np.float32(0))) - np.float32(0.5) * abs(x[i]) * beyond
