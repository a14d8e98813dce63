"""Settings: a flag wins over the environment, which wins over gpumatch.toml; what cannot be is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from gpumatch import cli, config
from gpumatch.config import Settings, cuda_major, load_settings, resolve_device, shown_settings, unknown_settings
from gpumatch.errors import DeviceError, UsageError
from gpumatch.machine import cpu_count, cuda_devices
from gpumatch.run import Run


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
    ("min_confidence", "0.1", 0.1, "0.2", 0.2, 0.3, 0.3),
    ("device", '"cpu"', "cpu", "cuda", "cuda", "auto", "auto"),
    ("backend", '"faiss"', "faiss", "cupy", "cupy", "torch", "torch"),
    ("encoder", '"a"', "a", "b", "b", "c", "c"),
    ("weights", '"/a.toml"', Path("/a.toml"), "/b.toml", Path("/b.toml"), "/c.toml", Path("/c.toml")),
    ("threads", "1", 1, "2", 2, 3, 3),
    ("cache_dir", '"/a"', Path("/a"), "/b", Path("/b"), "/c", Path("/c")),
    ("cache", "false", False, "true", True, False, False),
    ("index_cache", "false", False, "1", True, False, False),
    ("sample_rows", "10", 10, "20", 20, 30, 30),
    ("follow_links", "true", True, "0", False, True, True),
    ("max_memory", '"4GB"', 4 * 10**9, "1GiB", 2**30, 5, 5),
    ("batch", "7", 7, "8", 8, 9, 9),
    ("llm_url", '"http://a/v1"', "http://a/v1", "http://b/v1", "http://b/v1", "http://c/v1", "http://c/v1"),
    ("llm_model", '"a"', "a", "b", "b", "c", "c"),
    ("llm_key_file", '"/a"', Path("/a"), "/b", Path("/b"), "/c", Path("/c")),
    ("llm_max_calls", "1", 1, "2", 2, 3, 3),
    ("llm_max_tokens", "1", 1, "2", 2, 3, 3),
    ("llm_budget", "0.5", 0.5, "1.5", 1.5, 2.0, 2.0),
    ("llm_price", '"1,2"', "1,2", "3,4", "3,4", "5,6", "5,6"),
    ("llm_concurrency", "1", 1, "2", 2, 3, 3),
    ("llm_timeout", "1.5", 1.5, "2", 2.0, 3.0, 3.0),
    ("llm_deadline", "1.5", 1.5, "2", 2.0, 3.0, 3.0),
    ("llm_rpm", "60", 60.0, "2", 2.0, 3.0, 3.0),
    ("llm_tpm", "60", 60.0, "2", 2.0, 3.0, 3.0),
    ("redact", "true", True, "0", False, True, True),
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


def test_paths_begin_at_home_where_they_say_so():
    found = Settings(cache_dir="~/c", weights="~/w.toml")
    assert (found.cache_dir, found.weights) == (Path.home() / "c", Path.home() / "w.toml")


def test_defaults():
    found = Settings()
    assert (found.task, found.layer, found.k, found.device, found.encoder) == ("auto", "L1+L2", 20, "auto", None)
    assert found.threads == cpu_count() <= len(os.sched_getaffinity(0))
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
    ("min_confidence", 1.5),
    ("min_confidence", -0.1),
    ("min_confidence", "nan"),
    ("device", "tpu"),
    ("threads", 0),
    ("batch", 0),
    ("cache", "perhaps"),
    ("sample_rows", 0),
    ("max_memory", "much"),
    *(
        ("llm_url", url)
        for url in (
            "127.0.0.1:8301/v1",
            "localhost:80/v1",
            "ftp://x",
            "http://",
            "http:///v1",
            "http://x:99999/v1",
            "http://[::1",
            "http://a b/v1",
            "no url",
        )
    ),
    *(("llm_price", price) for price in ("1", "1,2,3", "a,b", "-1,2", "nan,1", "inf,1")),
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


# name, a bad value, how TOML writes it, and what the error says is allowed
REFUSED = [
    ("task", "merge", '"merge"', "auto, join or union"),
    ("layer", "L3", '"L3"', "L1, L1+L2 or L1+L2+L3"),
    ("k", "-1", "-1", "a whole number, at least 0"),
    ("threads", "none", '"none"', "a whole number, at least 1"),
    ("cache", "perhaps", '"perhaps"', "true or false"),
    ("max_memory", "much", '"much"', "a size such as 4GB"),
    ("encoder", None, "7", "text"),
    ("cache_dir", None, "7", "a path"),
    ("cache_dir", None, '""', "a path"),
    ("llm_url", "host:80/v1", '"host:80/v1"', "text such as http://localhost:8000/v1"),
    ("llm_price", "a,b", '"a,b"', "text such as 0.15,0.60"),
    ("llm_price", None, "[1, 2]", "text such as 0.15,0.60"),
    ("weights", None, "7", "a path"),
]


@pytest.mark.parametrize(("name", "value", "toml", "allowed"), REFUSED)
def test_a_refusal_names_the_place_the_value_and_what_is_allowed(monkeypatch, tmp_path, name, value, toml, allowed):
    def said(**flags):
        with pytest.raises(UsageError) as caught:
            load_settings(**flags)
        return str(caught.value)

    Path("gpumatch.toml").write_text(f"{name} = {toml}\n")
    place = tmp_path / "gpumatch.toml"
    assert said().startswith(f"{place}: {name} = {toml.replace(chr(34), chr(39))}, but it takes {allowed} (mend")
    if value is None:  # any text will do
        return
    variable = f"GPUMATCH_{name.upper()}"
    monkeypatch.setenv(variable, value)
    assert said() == f"{variable}: {name} = {value!r}, but it takes {allowed} (unset {variable} for the default)"
    flag = "-k" if name == "k" else f"--{name.replace('_', '-')}"
    assert said(**{name: value}) == f"{flag}: {name} = {value!r}, but it takes {allowed}"


def test_true_is_no_number():
    Path("gpumatch.toml").write_text("k = true\n")
    with pytest.raises(UsageError, match="k = True, but it takes a whole number"):
        load_settings()


def test_an_empty_variable_is_an_unset_one(monkeypatch):
    Path("gpumatch.toml").write_text("k = 3\n")
    for name in Settings.model_fields:
        monkeypatch.setenv(f"GPUMATCH_{name.upper()}", "")
    assert load_settings() == Settings(k=3)
    assert {one.name: one.origin for one in shown_settings()}["cache_dir"] == "default"
    with pytest.raises(UsageError, match="--encoder: encoder = '', but it takes text"):
        load_settings(encoder="")


def test_all_refusals_are_told_at_once(monkeypatch):
    Path("gpumatch.toml").write_text("threads = 0\n")
    monkeypatch.setenv("GPUMATCH_K", "x")
    with pytest.raises(UsageError, match=r"gpumatch\.toml: threads = 0.*; GPUMATCH_K: k = 'x'|GPUMATCH_K.*; .*threads"):
        load_settings()


@pytest.mark.parametrize("argv", [["match", "x", "--task", "join"], ["index", "x", "-o", "y"], ["config", "show"]])
def test_every_command_names_the_place(monkeypatch, capsys, argv):
    monkeypatch.setenv("GPUMATCH_BATCH", "0")
    monkeypatch.setattr("sys.argv", ["gpumatch", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("gpumatch: GPUMATCH_BATCH: batch = '0', but it takes a whole number, at least 1")
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_settings_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().k = 5


# --- config show


def shown(*options):
    found = CliRunner().invoke(cli.app, ["config", "show", *options])
    assert found.exit_code == 0
    return found


def by_name():
    return {one["name"]: one for one in json.loads(shown("--json").stdout)["settings"]}


def test_each_setting_is_shown_with_its_origin(monkeypatch, tmp_path):
    Path("gpumatch.toml").write_text('k = 1\nbatch = 1\nmax_memory = "4GB"\n')
    monkeypatch.setenv("GPUMATCH_K", "2")
    monkeypatch.setenv("gpumatch_cache", "false")
    monkeypatch.setenv("GPUMATCH_CACHE_DIR", "/elsewhere")
    found = by_name()
    assert list(found) == [*Settings.model_fields, *(one for one in config.SECRETS if one not in Settings.model_fields)]
    places = {name: (one["value"], one["origin"], one["place"]) for name, one in found.items()}
    file = str(tmp_path / "gpumatch.toml")
    assert places["k"] == (2, "environment", "GPUMATCH_K")
    assert places["cache"] == (False, "environment", "gpumatch_cache")
    assert places["cache_dir"] == ("/elsewhere", "environment", "GPUMATCH_CACHE_DIR")
    assert places["batch"] == (1, "file", file)
    assert places["max_memory"] == (4 * 10**9, "file", file)
    assert places["task"] == ("auto", "default", "")
    assert all(one["description"] for one in found.values())


def test_config_show_as_text(monkeypatch, tmp_path):
    Path("gpumatch.toml").write_text('max_memory = "4GB"\nencoder = "a\\u001b[31m"\n')
    monkeypatch.setenv("GPUMATCH_CACHE", "0")
    found = shown("--origin").stdout
    lines = {line.split()[0]: line for line in found.splitlines()}
    assert " 4.0GB " in lines["max_memory"]
    assert str(tmp_path / "gpumatch.toml") in lines["max_memory"]
    assert lines["cache"].split()[1:3] == ["false", "GPUMATCH_CACHE"]
    assert lines["batch"].split()[1:3] == ["256", "default"]
    assert "\x1b" not in found
    without = shown("--no-origin").stdout
    assert "GPUMATCH_CACHE" not in without
    assert "reuse and store vectors" in without


@pytest.mark.parametrize(("size", "said"), [("4GB", "4.0GB"), ("4GiB", "4.0GiB"), ("512MiB", "512.0MiB")])
def test_memory_is_shown_as_it_was_typed(monkeypatch, size, said):
    monkeypatch.setenv("GPUMATCH_MAX_MEMORY", size)
    assert f" {said} " in shown().stdout


def test_config_show_loads_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys\nfrom gpumatch.cli import app\n"
        "try: app(['config', 'show'])\nexcept SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


LLM_KEY = "sk-very-secret-0123456789"


def test_a_secret_is_set_or_not_and_never_shown(monkeypatch):
    assert by_name()["llm_api_key"]["value"] == "not set"
    monkeypatch.setenv("GPUMATCH_LLM_API_KEY", LLM_KEY)
    assert by_name()["llm_api_key"] | {"description": ""} == {
        "name": "llm_api_key",
        "value": "set",
        "origin": "environment",
        "place": "GPUMATCH_LLM_API_KEY",
        "description": "",
    }
    assert unknown_settings() == []
    for options in ([], ["--json"]):
        assert LLM_KEY not in shown(*options).output


def test_a_secret_field_is_never_shown_either(monkeypatch):
    class WithSecret(Settings):
        llm_api_key: SecretStr | None = None

    monkeypatch.setattr(config, "Settings", WithSecret)
    assert {one.name: one.value for one in shown_settings()}["llm_api_key"] == "not set"
    monkeypatch.setenv("GPUMATCH_LLM_API_KEY", LLM_KEY)
    found = {one.name: (one.value, one.origin) for one in shown_settings()}
    assert found["llm_api_key"] == ("set", "environment")
    monkeypatch.delenv("GPUMATCH_LLM_API_KEY")
    Path("gpumatch.toml").write_text("llm_api_key = 123456789\n")
    with pytest.raises(UsageError, match=r"gpumatch\.toml: llm_api_key = \(not shown\), but it takes text") as caught:
        load_settings()
    assert "123456789" not in repr(caught.value)
    assert caught.value.__context__ is None


# --- unknown names


def test_unknown_names_are_pointed_out_with_the_nearest(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUMATCH_THREAD", "3")
    monkeypatch.setenv("GPUMATCH_ZZZZ", LLM_KEY)
    file = tmp_path / "gpumatch.toml"
    file.write_text('max-memory = "4GB"\nLayer = "L1"\nllm_api_key = "sk"\nqqqq = 1\n[gpumatch]\nk = 3\n')
    assert unknown_settings() == [
        "GPUMATCH_THREAD in the environment is no setting; GPUMATCH_THREADS is",
        "GPUMATCH_ZZZZ in the environment is no setting",
        f"max-memory in {file} is no setting; max_memory is",
        f"Layer in {file} is no setting; layer is",
        f"llm_api_key in {file} is no setting; GPUMATCH_LLM_API_KEY in the environment or llm_key_file is",
        f"qqqq in {file} is no setting",
        f"gpumatch in {file} is no setting; settings stand outside of any [table]",
    ]
    found = shown()
    assert "warning: GPUMATCH_THREAD in" in found.stderr
    assert "warning" not in found.stdout
    assert json.loads(shown("--json").stdout)["unknown"] == unknown_settings()
    assert LLM_KEY not in found.output


def test_known_names_are_not_pointed_out(monkeypatch):
    for name, _, _, env, *_ in VALUES:
        monkeypatch.setenv(f"GPUMATCH_{name.upper()}", env)
    Path("gpumatch.toml").write_text("".join(f"{name} = {toml}\n" for name, toml, *_ in VALUES))
    assert unknown_settings() == []


# --- device


def test_cpu_is_cpu_whatever_there_is(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: pytest.fail("asked"))
    assert resolve_device("cpu") == "cpu"


def test_auto_asks_torch_only_where_there_is_a_driver(monkeypatch):
    monkeypatch.setattr("gpumatch.config.has_gpu_driver", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: pytest.fail("asked"))
    assert resolve_device("auto") == "cpu"


@pytest.mark.parametrize("version", [None, "hip: Optional[str] = '6.4'\n"])
def test_auto_takes_what_torch_sees_where_the_driver_is_amds_or_nothing_tells(monkeypatch, tmp_path, version):
    torch_built(monkeypatch, tmp_path, version)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == "cpu"


@pytest.mark.parametrize(
    ("version", "major", "there", "where"),
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", 13, 1, "cuda"),
        ("cuda = '13.0'\n", 13, 0, "cpu"),  # CUDA_VISIBLE_DEVICES hides them
        ("cuda: Optional[str] = '14.0'\n", 14, 1, "cpu"),  # the driver is too old for it
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", None, 1, "cpu"),
    ],
)
def test_auto_asks_the_driver_without_loading_torch(monkeypatch, tmp_path, version, major, there, where):
    torch_built(monkeypatch, tmp_path, version)
    monkeypatch.setattr("torch.cuda.is_available", lambda: pytest.fail("asked"))
    monkeypatch.setattr("gpumatch.config.cuda_devices", lambda major: {13: there}.get(major, 0))
    assert (cuda_major(), resolve_device("auto")) == (major, where)


def torch_built(monkeypatch, tmp_path, version):
    """A driver, and a torch whose version.py says that, or has none."""

    class Origin:
        origin = str(tmp_path / "__init__.py")

    if version is not None:
        (tmp_path / "version.py").write_text(version)
    monkeypatch.setattr("gpumatch.config.has_gpu_driver", lambda: True)
    monkeypatch.setattr("gpumatch.config.importlib.util.find_spec", lambda name: Origin)


def test_a_driver_that_cannot_be_asked_has_no_devices(monkeypatch):
    class Driver:
        def cuInit(self, flags):
            return 0

        def cuDriverGetVersion(self, version):
            version._obj.value = 13000
            return 0

        def cuDeviceGetCount(self, count):
            count._obj.value = 2
            return 0

        def cuDeviceGetAttribute(self, value, attribute, device):
            value._obj.value = {75: 9, 76: 0}[attribute]
            return 0

    monkeypatch.setattr("gpumatch.machine.ctypes.CDLL", lambda name: Driver())
    assert [cuda_devices(major) for major in (12, 13, 14)] == [2, 2, 0]
    with monkeypatch.context() as old:  # CUDA 13 has nothing for a V100
        parts = {75: 7, 76: 0}
        old.setattr(Driver, "cuDeviceGetAttribute", lambda self, value, n, _: setattr(value._obj, "value", parts[n]))
        assert [cuda_devices(major) for major in (12, 13)] == [2, 0]
    monkeypatch.setattr(Driver, "cuInit", lambda driver, flags: 100)
    assert cuda_devices(13) == 0

    def none(name):
        raise OSError

    monkeypatch.setattr("gpumatch.machine.ctypes.CDLL", none)
    assert cuda_devices(13) == 0


def test_a_gpu_has_to_be_worth_getting_going(monkeypatch):
    monkeypatch.setattr("gpumatch.run.resolve_device", lambda asked: "cuda")
    run = Run(Settings(threads=2))
    assert [run.device_for(seconds) for seconds in (0, 11.9, 12.1)] == ["cpu", "cpu", "cuda"]
    assert Run(Settings(device="cuda")).device_for(0) == "cuda"
    monkeypatch.setattr("gpumatch.backend.open_backend", lambda *_: None)
    assert Run(Settings(backend="faiss")).device_for(0) == "cuda"


@pytest.mark.parametrize(("built", "said"), [(None, "CPU build"), ("13.0", "no CUDA device")])
def test_cuda_that_is_not_there_is_said(monkeypatch, built, said):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", built)
    with pytest.raises(DeviceError, match=f"{said}.*--device cpu"):
        resolve_device("cuda")
