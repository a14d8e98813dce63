"""A BERT's forward pass by small tiles and 16-bit integers: close to float64, and one for each text."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gpumatch.kernels import attention, bert
from gpumatch.kernels.bert import Bert, text_vectors

VOCABULARY, PLACES = 50, 90


def tensors(width, inner, layers, seed=0):
    """Random weights, by the names that transformers gives them."""
    rng = np.random.default_rng(seed)

    def draw(*shape, scale=1.0):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    made = {
        "embeddings.word_embeddings.weight": draw(VOCABULARY, width),
        "embeddings.position_embeddings.weight": draw(PLACES, width, scale=0.3),
        "embeddings.token_type_embeddings.weight": draw(2, width, scale=0.3),
    }
    norms, dense = ["embeddings.LayerNorm"], {}
    for i in range(layers):
        name = f"encoder.layer.{i}"
        dense |= {f"{name}.attention.self.{which}": (width, width) for which in ("query", "key", "value")}
        dense |= {f"{name}.attention.output.dense": (width, width)}
        dense |= {f"{name}.intermediate.dense": (inner, width), f"{name}.output.dense": (width, inner)}
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for name, shape in dense.items():
        made |= {f"{name}.weight": draw(*shape, scale=shape[1] ** -0.5), f"{name}.bias": draw(shape[0], scale=0.1)}
    for name in norms:
        made |= {f"{name}.weight": 1 + draw(width, scale=0.1), f"{name}.bias": draw(width, scale=0.1)}
    return made


def reference(made, heads, epsilon, ids):
    """The vector of one text, all in float64."""
    made = {name: array.astype(np.float64) for name, array in made.items()}

    def linear(x, name):
        return x @ made[f"{name}.weight"].T + made[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + epsilon)
        return scaled * made[f"{name}.weight"] + made[f"{name}.bias"]

    x = made["embeddings.word_embeddings.weight"][ids] + made["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + made["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    erf = np.vectorize(math.erf)
    for i in range(sum(name.endswith("self.query.weight") for name in made)):
        layer = f"encoder.layer.{i}"
        parts = [linear(x, f"{layer}.attention.self.{which}") for which in ("query", "key", "value")]
        gathered = attended(*parts, heads)
        x = norm(x + linear(gathered, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        wide = linear(x, f"{layer}.intermediate.dense")
        wide = wide * (1 + erf(wide / np.sqrt(2))) / 2
        x = norm(x + linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def attended(query, key, value, heads):
    out = np.empty_like(query)
    for some in np.split(np.arange(query.shape[1]), heads):
        score = query[:, some] @ key[:, some].T / np.sqrt(len(some))
        share = np.exp(score - score.max(1, keepdims=True))
        out[:, some] = share / share.sum(1, keepdims=True) @ value[:, some]
    return out


def ragged(lengths, seed=0):
    start = np.append(0, np.cumsum(lengths))
    return np.random.default_rng(seed).integers(0, VOCABULARY, start[-1]).astype(np.int32), start


@pytest.mark.parametrize(("width", "heads", "inner"), [(64, 2, 128), (64, 4, 160), (48, 3, 96)])
def test_vectors_are_close_to_float64(width, heads, inner):
    made = tensors(width, inner, 3)
    ids, start = ragged([1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 48, 49, PLACES, 1])
    found = text_vectors(Bert.of(made, heads, 1e-12), ids, start)
    wanted = [reference(made, heads, 1e-12, ids[a:b]) for a, b in itertools.pairwise(start)]
    assert found.dtype == np.float32
    assert (1 - (found * np.array(wanted)).sum(1)).max() < 1e-5
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_text_has_the_same_bits_whatever_is_beside_it():
    model = Bert.of(tensors(64, 128, 2), 2, 1e-12)
    lengths = np.random.default_rng(3).integers(1, PLACES, 40)
    ids, start = ragged(lengths)
    whole = text_vectors(model, ids, start)
    for i in (0, 7, 39):
        alone = text_vectors(model, ids[start[i] : start[i + 1]], np.array([0, lengths[i]]))
        np.testing.assert_array_equal(alone[0], whole[i])


def test_no_texts():
    model = Bert.of(tensors(64, 128, 1), 2, 1e-12)
    assert text_vectors(model, np.empty(0, np.int32), np.zeros(1, np.int64)).shape == (0, 64)


@pytest.mark.parametrize(
    ("lengths", "token", "said"),
    [([3, 0, 2], 1, "0 to 3 tokens"), ([PLACES + 1], 1, "1 to 90 fit"), ([2], VOCABULARY, "has 50"), ([2], -1, "-1")],
)
def test_what_the_model_has_no_place_for_is_refused(lengths, token, said):
    model = Bert.of(tensors(64, 128, 1), 2, 1e-12)
    ids, start = ragged(lengths)
    ids[0] = token
    with pytest.raises(ValueError, match=said):
        text_vectors(model, ids, start)


def test_what_is_called_between_layers_can_end_the_work():
    model, calls = Bert.of(tensors(64, 128, 3), 2, 1e-12), []

    def between():
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        text_vectors(model, *ragged([3]), between)


def test_a_missing_weight_is_an_error():
    made = tensors(64, 128, 1)
    del made["encoder.layer.0.output.dense.bias"]
    with pytest.raises(KeyError, match=r"output\.dense\.bias"):
        Bert.of(made, 2, 1e-12)


@pytest.mark.parametrize(("scale", "off"), [(0.1, 3e-7), (1.0, 1e-5), (30.0, 0.05)])
def test_attention_is_close_to_float64(scale, off):
    """Large scores too, of which one takes all."""
    ids, start = ragged([1, 3, 16, 17, 70])
    asked = (scale * np.random.default_rng(1).normal(size=(len(ids), 3 * 96))).astype(np.float32)
    out = np.full((len(ids), 96), np.nan, np.float32)
    attention.attend(asked, start, 3, out)
    for a, b in itertools.pairwise(start):
        wanted = attended(*np.split(asked[a:b].astype(np.float64), 3, axis=1), 3)
        np.testing.assert_allclose(out[a:b], wanted, atol=off)


def test_exp_and_gelu_are_close_to_float64():
    x = np.linspace(-87, 0, 50_001).astype(np.float32)
    found = np.array([attention.exp(value) for value in x[::50]])
    np.testing.assert_allclose(found, np.exp(x[::50].astype(np.float64)), rtol=3e-7)
    assert attention.exp(np.float32(-1e30)) < 1e-37
    x = np.linspace(-12, 12, 50_001).astype(np.float32)
    found = x.copy()
    bert._gelu(found)
    wanted = x.astype(np.float64) * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    np.testing.assert_allclose(found, wanted, atol=1e-6)
