"""Settings in, everything that a stage needs beside its data out: device, threads, statistics, progress, encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gpumatch.config import Settings, resolve_device
from gpumatch.embed import Encoder, open_encoder
from gpumatch.stats import RunStats


@dataclass
class Run:
    """One run.

    progress: called with (stage, done, total); total 0 where it is not known.
    encoder: given to use one of your own instead of the settings' encoder.
    """

    settings: Settings
    stats: RunStats = field(default_factory=RunStats)
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        self.device = resolve_device(self.settings.device)
        self.stats.device = self.device
        self.stats.settings = self.settings.model_dump(mode="json")

    @property
    def dense(self) -> bool:
        """Whether vectors are wanted."""
        return self.settings.layer != "L1"

    def open_encoder(self) -> Encoder:
        """Return the encoder, opened once."""
        if self.encoder is None:
            self.encoder = open_encoder(self.settings.encoder, self.device)
        return self.encoder
