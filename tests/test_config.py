"""Settings: a flag wins over the environment, which wins over gpumatch.toml; what cannot be is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from gpumatch import cli
from gpumatch.config import Settings, resolve_device
from gpumatch.errors import DeviceError, UsageError


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """A working folder without gpumatch.toml, and no settings in the environment."""
    for name in [name for name in os.environ if name.upper().startswith("GPUMATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


# field, then a value from gpumatch.toml, from the environment and from a flag, as written and as read
VALUES = [
    ("task", '"join"', "join", "union", "union", "auto", "auto"),
    ("layer", '"L1"', "L1", "L1+L2", "L1+L2", "L1", "L1"),
    ("k", "3", 3, "4", 4, 5, 5),
    ("device", '"cpu"', "cpu", "cuda", "cuda", "auto", "auto"),
    ("encoder", '"a"', "a", "b", "b", "c", "c"),
    ("threads", "1", 1, "2", 2, 3, 3),
    ("cache_dir", '"/a"', Path("/a"), "/b", Path("/b"), "/c", Path("/c")),
    ("cache", "false", False, "true", True, False, False),
    ("index_cache", "false", False, "1", True, False, False),
    ("batch", "7", 7, "8", 8, 9, 9),
]


def test_every_setting_is_covered():
    assert [row[0] for row in VALUES] == list(Settings.model_fields)


@pytest.mark.parametrize(("name", "toml", "from_toml", "env", "from_env", "flag", "from_flag"), VALUES)
def test_flag_then_environment_then_file(monkeypatch, name, toml, from_toml, env, from_env, flag, from_flag):
    default = getattr(Settings(), name)
    Path("gpumatch.toml").write_text(f"{name} = {toml}\n")
    assert getattr(Settings(), name) == from_toml != default
    monkeypatch.setenv(f"GPUMATCH_{name.upper()}", env)
    assert getattr(Settings(), name) == from_env != from_toml
    assert getattr(Settings(**{name: flag}), name) == from_flag != from_env
    assert getattr(cli._settings(**{name: flag}), name) == from_flag
    assert getattr(cli._settings(**{name: None}), name) == from_env


def test_each_setting_comes_from_the_nearest_place(monkeypatch):
    Path("gpumatch.toml").write_text('k = 1\nbatch = 1\ntask = "join"\n')
    monkeypatch.setenv("GPUMATCH_K", "2")
    monkeypatch.setenv("GPUMATCH_BATCH", "2")
    found = Settings(k=3)
    assert (found.k, found.batch, found.task, found.layer) == (3, 2, "join", "L1+L2")


def test_defaults():
    found = Settings()
    assert (found.task, found.layer, found.k, found.device, found.encoder) == ("auto", "L1+L2", 20, "auto", None)
    assert found.threads == len(os.sched_getaffinity(0))
    assert found.cache_dir.name == "gpumatch"
    assert found.cache
    assert found.index_cache
    assert found.batch == 256


def test_settings_are_read_from_nowhere_else(monkeypatch, tmp_path):
    Path(".env").write_text("GPUMATCH_K=1\n")
    (tmp_path.parent / "gpumatch.toml").write_text("k = 1\n")
    monkeypatch.setenv("K", "1")
    try:
        assert Settings().k == 20
    finally:
        (tmp_path.parent / "gpumatch.toml").unlink()


BAD = [
    ("task", "merge"),
    ("layer", "L3"),
    ("layer", "l1"),
    ("k", -1),
    ("k", "many"),
    ("k", 1.5),
    ("device", "tpu"),
    ("threads", 0),
    ("batch", 0),
    ("cache", "perhaps"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_are_refused_wherever_they_stand(monkeypatch, name, value):
    def refused(**flags):
        with pytest.raises(ValidationError, match=name):
            Settings(**flags)
        with pytest.raises(UsageError) as caught:
            cli._settings(**flags)
        assert name in str(caught.value)
        assert repr(value) in str(caught.value) or str(value) in str(caught.value)

    refused(**{name: value})
    with monkeypatch.context() as patch:
        patch.setenv(f"GPUMATCH_{name.upper()}", str(value))
        refused()
    Path("gpumatch.toml").write_text(f"{name} = {value!r}\n")
    refused()


@pytest.mark.parametrize("content", [b"k = \n", b"not toml at all", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(content):
    Path("gpumatch.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"gpumatch\.toml"):
        cli._settings()


def test_settings_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().k = 5


# --- device


def test_cpu_is_cpu_whatever_there_is(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: pytest.fail("asked"))
    assert resolve_device("cpu") == "cpu"


def test_auto_takes_what_there_is(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == "cpu"


@pytest.mark.parametrize(("built", "said"), [(None, "CPU build"), ("13.0", "no CUDA device")])
def test_cuda_that_is_not_there_is_said(monkeypatch, built, said):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", built)
    with pytest.raises(DeviceError, match=f"{said}.*--device cpu"):
        resolve_device("cuda")
