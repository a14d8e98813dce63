"""Flags, environment and gpumatch.toml in, one `Settings` out, or each setting with the place it comes from.

Reads no lake; a secret is only ever said to be set or not.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from platformdirs import user_cache_path
from pydantic import ByteSize, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gpumatch.errors import DeviceError, UsageError, printable
from gpumatch.machine import cpu_count, cuda_devices, has_gpu_driver

_PREFIX = "GPUMATCH_"
_FILE = "gpumatch.toml"
# Read from the environment alone; no field of `Settings` has these names.
SECRETS = {"llm_api_key": "key of the language model's server"}
_TYPES = {
    bool: "true or false", int: "a whole number", float: "a number", ByteSize: "a size such as 4GB",
    str: "text", Path: "a path", SecretStr: "text",
}  # fmt: skip
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Settings(BaseSettings):
    """Every setting of a run. A flag wins over GPUMATCH_<NAME>, which wins over gpumatch.toml in the working folder."""

    # an empty variable, such as a line of an env file leaves, is an unset one
    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, toml_file=_FILE, extra="ignore", frozen=True
    )

    task: Literal["auto", "join", "union"] = Field(
        "auto", description="join, union, or auto: each query row's task_type"
    )
    layer: Literal["L1", "L1+L2", "L1+L2+L3"] = Field(
        "L1+L2",
        description="L1: names and values; L2: also an encoder's vectors; L3: also a language model's verdicts",
    )
    k: int = Field(20, ge=0, description="matches of each query at most; 0 for all")
    min_confidence: float = Field(
        0.0, ge=0, le=1, description="matches less probable are left out; k counts what is left"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    backend: Literal["torch", "faiss", "cupy"] = Field(
        "torch", description="library that searches; all give the same answers"
    )
    encoder: str | None = Field(None, description="folder or hub id of a sentence-transformers model")
    weights: Path | None = Field(None, description="TOML file of weights to score with")
    threads: int = Field(default_factory=cpu_count, ge=1, description="CPU threads")
    cache_dir: Path = Field(default_factory=lambda: user_cache_path("gpumatch"), description="vectors and indexes")
    cache: bool = Field(True, description="reuse and store vectors and indexes under cache_dir")
    index_cache: bool = Field(True, description="reuse and store indexes under cache_dir")
    sample_rows: int = Field(
        100_000, ge=1, description="rows read per table; longer tables are sampled, the same way every time"
    )
    follow_links: bool = Field(False, description="follow links to folders, and out of the lake")
    max_memory: ByteSize | None = Field(None, description="stop a run that needs more memory than this, such as 4GB")
    batch: int = Field(256, ge=1, description="query rows searched and re-scored at once")
    llm_url: str | None = Field(
        None,
        examples=["http://localhost:8000/v1"],
        description="address of an OpenAI-compatible server, such as http://host:8000/v1",
    )
    llm_model: str | None = Field(None, description="name of the model on that server")
    llm_key_file: Path | None = Field(None, description="file that holds the server's key, instead of the environment")
    llm_max_calls: int | None = Field(None, ge=0, description="calls at most, in the whole run")
    llm_max_tokens: int | None = Field(None, ge=0, description="tokens at most, of prompts and replies together")
    llm_budget: float | None = Field(None, ge=0, description="cost at most, in the currency of llm_price")
    llm_price: str | None = Field(
        None,
        examples=["0.15,0.60"],
        description="price of a million tokens of prompts and of replies, such as 0.15,0.60",
    )
    llm_concurrency: int = Field(16, ge=1, description="calls at the same time at most")
    llm_timeout: float = Field(120.0, gt=0, description="seconds for a call, retries included")
    llm_deadline: float | None = Field(None, gt=0, description="seconds for all calls of a run")
    llm_rpm: float | None = Field(None, gt=0, description="calls a minute at most")
    llm_tpm: float | None = Field(None, gt=0, description="tokens a minute at most")
    redact: bool = Field(False, description="send shapes and hashes of tables' values, never values themselves")

    @property
    def reading(self) -> dict[str, Any]:
        """How lakes are read: the keyword arguments of `lake.open_lake`."""
        return {"sample_rows": self.sample_rows, "follow_links": self.follow_links}

    @property
    def evidence_layer(self) -> Literal["L1", "L1+L2"]:
        """The layers that scores are made of; a language model only moves them."""
        return "L1" if self.layer == "L1" else "L1+L2"

    @field_validator("*", mode="before")
    @classmethod
    def _is_itself(cls, value: object, info: ValidationInfo) -> object:
        """Refuse what would be taken for something else: an empty path for the working folder, true for 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if value == "" or (isinstance(value, bool) and kind is not bool):
            raise ValueError("something else")  # `_allowed` says what
        return value

    @field_validator("llm_price")
    @classmethod
    def _is_two_prices(cls, price: str | None) -> str | None:
        if price is not None:
            _prices(price)
        return price

    @field_validator("llm_url")
    @classmethod
    def _is_a_url(cls, url: str | None) -> str | None:
        if url is not None:
            parts = urlsplit(url)  # which, like its port, may be none at all
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or url.split() != [url]:
                raise ValueError("a URL")
        return url

    @field_validator("cache_dir", "weights", "llm_key_file")
    @classmethod
    def _at_home(cls, path: Path | None) -> Path | None:
        """Expand ~, since no shell does it in gpumatch.toml or after the = of an assignment in a Dockerfile."""
        return path and path.expanduser()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read flags, then environment, then gpumatch.toml; no dotenv files."""
        return init_settings, env_settings, _toml_source(settings_cls)


def _toml_source(settings: type[BaseSettings]) -> TomlConfigSettingsSource:
    try:
        return TomlConfigSettingsSource(settings)
    except ValueError as error:
        raise UsageError(f"{Path(_FILE).absolute()} is no TOML: {error}; mend or remove it") from error
    except OSError as error:
        raise UsageError(f"{Path(_FILE).absolute()} cannot be read: {error.strerror}; chmod u+r {_FILE}") from error


def load_settings(**flags: Any) -> Settings:  # noqa: ANN401 - whatever the flags are
    """Return the settings; what is not among the flags comes from the environment, gpumatch.toml or the defaults.

    Raises:
        UsageError: invalid values, each with its place, what was found and what is allowed.
    """
    for name in flags:
        if name not in Settings.model_fields:
            near = _nearest(name, list(Settings.model_fields))
            raise UsageError(f"{name} is no setting{near and f'; {near} is'}")
    try:
        return Settings(**flags)
    except ValidationError as error:
        wrong = [_refusal(str(one["loc"][0]), one["input"], one["msg"], flags) for one in error.errors()]
    raise UsageError("; ".join(dict.fromkeys(wrong)))  # outside the except: the caught error's text would show a secret


def llm_key(settings: Settings) -> SecretStr | None:
    """Return the key of the language model's server, from the environment or from --llm-key-file; None without one.

    Raises:
        UsageError: the file cannot be read, or it holds no key.
    """
    place = f"{_PREFIX}LLM_API_KEY"
    told = os.environ.get(place, "").strip()
    if not told and settings.llm_key_file is not None:
        place = f"--llm-key-file {settings.llm_key_file}"
        try:
            told = settings.llm_key_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UsageError(f"{place} cannot be read: {why}") from None
        if not told:
            raise UsageError(f"{place} is empty; put the key into it, or leave it out where the server needs none")
    if not all("!" <= one <= "~" for one in told):  # libraries show headers that cannot be sent, keys and all
        raise UsageError(f"{place} holds a character that no key has (not shown); give the key alone")
    return SecretStr(told) if told else None


def llm_price(settings: Settings) -> tuple[float, float]:
    """Return what a million tokens of prompts and of replies cost.

    Raises:
        UsageError: --llm-budget has no --llm-price to go by.
    """
    if settings.llm_price is None:
        if settings.llm_budget is not None:
            raise UsageError("--llm-budget needs --llm-price, such as 0.15,0.60 for a million tokens in and out")
        return 0.0, 0.0
    return _prices(settings.llm_price)


def _prices(text: str) -> tuple[float, float]:
    prompt, reply = (float(part) for part in text.split(","))
    if not (0 <= prompt < float("inf") and 0 <= reply < float("inf")):
        raise ValueError("two prices")
    return prompt, reply


def _refusal(name: str, found: object, reason: str, flags: Collection[str]) -> str:
    kind, place = _origin(name, flags)
    shown = "(not shown)" if _is_secret(name) else f"{found!r:.200}"
    mend = {"environment": f" (unset {place} for the default)", "file": " (mend or remove that line)"}.get(kind, "")
    return f"{place}: {name} = {shown}, but it takes {_allowed(name) or reason}{mend}"


def _allowed(name: str) -> str:
    """Say in words what a setting takes; empty if pydantic's own words must do."""
    field = Settings.model_fields[name]
    if get_origin(field.annotation) is Literal:
        *first, last = map(str, get_args(field.annotation))
        return f"{', '.join(first)} or {last}"
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    bounds = [
        f"{word} {getattr(one, key)}" for one in field.metadata for key, word in _BOUNDS.items() if hasattr(one, key)
    ]
    example = f" such as {field.examples[0]}" if field.examples else ""
    return ", ".join([_TYPES[kinds[0]] + example, *bounds]) if kinds[0] in _TYPES else ""


def _is_secret(name: str) -> bool:
    if name not in Settings.model_fields:
        return name in SECRETS
    annotation = Settings.model_fields[name].annotation
    return SecretStr in (annotation, *get_args(annotation))


def _origin(name: str, flags: Collection[str] = ()) -> tuple[Literal["flag", "environment", "file", "default"], str]:
    """Return the kind and the name of the place that a setting comes from; looks where `Settings` itself looks."""
    if name in flags:
        return "flag", f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
    if name in EnvSettingsSource(Settings)():
        return "environment", [one for one in os.environ if one.upper() == f"{_PREFIX}{name}".upper()][-1]
    if name in _toml_source(Settings)():
        return "file", str(Path(_FILE).absolute())
    return "default", ""


@dataclass(frozen=True)
class ShownSetting:
    """A setting for people and for JSON.

    value: plain data; of a secret only "set" or "not set".
    origin: "environment", "file" or "default".
    place: the variable's name or the file's path; empty for a default.
    """

    name: str
    value: Any
    origin: str
    place: str
    description: str


def shown_settings() -> list[ShownSetting]:
    """Return every setting with the place it comes from, without regard to flags.

    Raises:
        UsageError: as `load_settings`.
    """
    settings = load_settings()
    values = settings.model_dump(mode="json")
    shown = []
    for name, field in Settings.model_fields.items():
        value = _set_or_not(getattr(settings, name)) if _is_secret(name) else values[name]
        shown.append(ShownSetting(name, value, *_origin(name), field.description or ""))
    for name, description in SECRETS.items():
        if name not in Settings.model_fields:
            variable = f"{_PREFIX}{name}".upper()
            value = _set_or_not(os.environ.get(variable))
            place = ("environment", variable) if value == "set" else ("default", "")
            shown.append(ShownSetting(name, value, *place, description))
    return shown


def _set_or_not(secret: SecretStr | str | None) -> str:
    return "set" if secret is not None and len(secret) else "not set"


def unknown_settings() -> list[str]:
    """Return a line for each GPUMATCH_ variable and each key of gpumatch.toml that names no setting.

    Raises:
        UsageError: gpumatch.toml is no TOML.
    """
    fields = list(Settings.model_fields)
    variables = fields + [name for name in SECRETS if name not in fields]
    said = []
    for name in sorted(name for name in os.environ if name.upper().startswith(_PREFIX)):
        if (bare := name[len(_PREFIX) :]).lower() not in variables:
            near = _nearest(bare, variables)
            said.append(f"{name} in the environment is no setting{near and f'; {_PREFIX}{near.upper()} is'}")
    for key, value in _toml_source(Settings).toml_data.items():
        if key not in fields:
            near = _nearest(key, fields)
            hint = "; settings stand outside of any [table]" if isinstance(value, dict) else near and f"; {near} is"
            said.append(f"{key} in {Path(_FILE).absolute()} is no setting{hint}")
    return [printable(line) for line in said]


def _nearest(name: str, known: list[str]) -> str:
    bare = name.lower().replace("-", "_").removeprefix(_PREFIX.lower())
    if bare in SECRETS and bare not in known:
        return f"{_PREFIX}{bare.upper()} in the environment or llm_key_file"
    return next(iter(difflib.get_close_matches(bare, known, n=1)), "")


def settings_json(shown: list[ShownSetting]) -> dict[str, Any]:
    """Return settings, and what is unknown, as plain data."""
    return {"settings": [asdict(one) for one in shown], "unknown": unknown_settings()}


def settings_text(shown: list[ShownSetting], *, origin: bool = True) -> str:
    """Return settings as aligned lines: name, value, place, description."""
    rows = [[one.name, _as_text(one), *([one.place or one.origin] if origin else []), one.description] for one in shown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _as_text(shown: ShownSetting) -> str:
    if shown.value is None:
        return "none"
    if isinstance(shown.value, bool):
        return str(shown.value).lower()
    field = Settings.model_fields.get(shown.name)
    if field is not None and ByteSize in (field.annotation, *get_args(field.annotation)):
        # the form that was most likely typed: 4GiB is a whole number of MiB, 4GB is not
        return ByteSize(shown.value).human_readable(decimal=shown.value % 2**20 != 0)
    text = str(shown.value)
    return text if text.isprintable() else repr(text)


def resolve_device(asked: str) -> str:
    """Return "cpu" or "cuda".

    Raises:
        DeviceError: CUDA is asked for and torch sees none.
    """
    if asked == "cpu" or (asked == "auto" and not has_gpu_driver()):
        return "cpu"  # without loading torch, which takes seconds
    if asked == "auto" and (built := _torch_built()) and not built.get("hip"):  # loading torch would tell no more
        major = cuda_major()
        return "cuda" if major and cuda_devices(major) else "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        built_for = "this torch is a CPU build" if torch.version.cuda is None else "torch sees no CUDA device"
        raise DeviceError(
            f"--device cuda: {built_for}; use --device cpu, or install a CUDA build of torch and its driver"
        )
    return "cpu"


def cuda_major() -> int | None:
    """Return the CUDA major that the installed torch is built for, or None; torch is not loaded."""
    found = re.match(r"\d+", _torch_built().get("cuda", ""))
    return int(found[0]) if found else None


def _torch_built() -> dict[str, str]:
    """Return what the installed torch was built as (its version, and its cuda or hip); torch is not loaded."""
    spec = importlib.util.find_spec("torch")
    try:
        text = Path(spec.origin or "").with_name("version.py").read_text("utf-8") if spec else ""
    except OSError:
        return {}
    return dict(re.findall(r"^(\w+)\b[^=\n]*= *'(.*)'", text, re.MULTILINE))
