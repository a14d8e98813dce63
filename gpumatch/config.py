"""Flags, environment and gpumatch.toml in, one `Settings` out. Reads no lake and no secret."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from platformdirs import user_cache_path
from pydantic import ByteSize, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from gpumatch.errors import DeviceError, UsageError


class Settings(BaseSettings):
    """Every setting of a run. A flag wins over GPUMATCH_<NAME>, which wins over gpumatch.toml in the working folder."""

    model_config = SettingsConfigDict(env_prefix="GPUMATCH_", toml_file="gpumatch.toml", extra="ignore", frozen=True)

    task: Literal["auto", "join", "union"] = Field(
        "auto", description="join, union, or auto: each query row's task_type"
    )
    layer: Literal["L1", "L1+L2"] = Field("L1+L2", description="L1: names and values; L1+L2: and an encoder's vectors")
    k: int = Field(20, ge=0, description="matches a query; 0 for all survivors")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    encoder: str | None = Field(None, description="folder or hub id of a sentence-transformers model")
    threads: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1, description="CPU threads")
    cache_dir: Path = Field(default_factory=lambda: user_cache_path("gpumatch"), description="vectors and indexes")
    cache: bool = Field(True, description="keep vectors and indexes under cache_dir")
    index_cache: bool = Field(True, description="keep and reuse indexes under cache_dir")
    sample_rows: int = Field(
        100_000, ge=1, description="rows of a table that are looked at; of more, the same sample every time"
    )
    follow_links: bool = Field(False, description="follow links that leave the lake")
    max_memory: ByteSize | None = Field(None, description="memory to stay below, such as 4GB")
    batch: int = Field(256, ge=1, description="query rows searched and re-scored at once")

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
        try:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)
        except ValueError as error:
            raise UsageError(f"gpumatch.toml is no TOML: {error}; mend or remove it") from error


def resolve_device(asked: str) -> str:
    """Return "cpu" or "cuda".

    Raises:
        DeviceError: CUDA is asked for and torch sees none.
    """
    if asked == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        built = "this torch is a CPU build" if torch.version.cuda is None else "torch sees no CUDA device"
        raise DeviceError(f"--device cuda: {built}; use --device cpu, or install a CUDA build of torch and its driver")
    return "cpu"
