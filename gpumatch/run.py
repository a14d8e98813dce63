"""Settings in, all that a stage needs beside its data out: device, threads, statistics, progress, encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gpumatch import outputs
from gpumatch.config import Settings, resolve_device
from gpumatch.encoder import Encoder, open_encoder
from gpumatch.errors import MemoryLimitError, UsageError
from gpumatch.memory import sized
from gpumatch.recipes import Recipe, recipe_for
from gpumatch.stats import RunStats
from gpumatch.threads import limited
from gpumatch.weights import load_recipes

if TYPE_CHECKING:
    from gpumatch.kernels.backends import Backend
    from gpumatch.memory import DevicePlan

# What it takes until a GPU works: torch is loaded, the driver's context made, kernels compiled or loaded. 5.2 to 5.9 s
# were measured with an H100.
GPU_START_SECONDS = 6.0


@dataclass
class Run:
    """One run.

    say: gets warnings at once; `stats` keeps them.
    progress: called with (stage, done, total), total 0 if it is not known; for encoding, from another thread.
    encoder: one of your own, used instead of the settings' encoder.
    written: option → the file that will be written; nothing that the run reads may be one of them.
    """

    settings: Settings
    stats: RunStats = field(default_factory=RunStats)
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    encoder: Encoder | None = None
    say: Callable[[str], None] = lambda text: None
    written: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reads(path for path in (self.settings.weights, self.settings.llm_key_file) if path is not None)
        weights = self.settings.weights
        self._own_recipes = {} if weights is None else load_recipes(weights, self.settings.evidence_layer)
        own = [
            task for task in self._own_recipes if self.recipe(task) != recipe_for(task, self.settings.evidence_layer)
        ]
        if own and self.settings.min_confidence:
            raise UsageError(
                f"--min-confidence is fitted to the shipped weights, and {weights} replaces those of {', '.join(own)}; "
                "give only one of --min-confidence and --weights"
            )
        self._backends: dict[str, Backend] = {}
        self.plan: DevicePlan | None = None
        self.device = resolve_device(self.settings.device)
        if self.settings.backend != "torch":
            self.backend(self.device)  # so that a missing package is told before anything is read
        self.stats.resolved_device = self.device
        self.stats.settings = self.settings.model_dump(mode="json")

    def reads(self, paths: Iterable[Path]) -> None:
        """Declare, before any work, what the run reads: files, and folders of which all is needed.

        Raises:
            UsageError: one of these would be written over.
        """
        outputs.keep_apart(self.written, paths)

    def warn(self, text: str) -> None:
        """Tell people something that they may want to stop the run for."""
        self.stats.warnings.append(text)
        self.say(f"warning: {text}")

    @contextmanager
    def watched(self, over: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Limit threads, and watch memory: a run that goes over `max_memory` ends at its next step.

        Args:
            over: called in another thread when it does, to end it sooner by raising SystemExit in the run's own thread.

        Raises:
            MemoryLimitError: with the figures, and what would need less.
        """
        try:
            with limited(self.settings.threads), self.stats.watch_memory(self.settings.max_memory, over):
                yield
        except (SystemExit, MemoryLimitError):
            if not self.stats.over_limit:
                raise
            raise MemoryLimitError(self._too_much()) from None

    def _too_much(self) -> str:
        raised = "raise it or give --threads 1" if self.settings.threads > 1 else "raise it"
        less = "--layer L1 or a smaller --sample-rows" if self.dense else "a smaller --sample-rows"
        peak, most = sized(self.stats.peak_host_bytes), sized(self.settings.max_memory or 0)
        return (
            f"stopped: {peak} are more than --max-memory {most} (in stage {self.stats.over_limit}); "
            f"{raised}, and a run with -o goes on; or need less with {less}, and it starts over"
        )

    def step(self, stage: str, done: int, total: int) -> None:
        """Report how far a stage is, as `progress` takes it.

        Raises:
            MemoryLimitError: the run has gone over its limit.
        """
        self.stats.check_memory()
        self.progress(stage, done, total)

    def device_for(self, seconds: float) -> str:
        """Return the device for work that takes one thread of a CPU so many seconds.

        With --device auto a GPU has to save the seconds that it takes to start. Whether it has started already does not
        count: the same job is done on the same device whatever was done before.
        """
        if self.settings.device != "auto" or self.settings.backend != "torch":
            return self.device
        return self.device if seconds / self.settings.threads > GPU_START_SECONDS else "cpu"

    def backend(self, device: str) -> Backend:
        """Return what searches on a device, opened once."""
        from gpumatch.backend import open_backend  # loads numba, which runs that do not search do without

        if device not in self._backends:
            self._backends[device] = open_backend(self.settings.backend, device, self.settings.threads)
        return self._backends[device]

    @property
    def dense(self) -> bool:
        """Whether vectors are wanted (L1+L2)."""
        return self.settings.layer != "L1"

    @property
    def judging(self) -> bool:
        """Whether a language model is to be asked."""
        return self.settings.layer == "L1+L2+L3"

    @property
    def verdict_folder(self) -> Path | None:
        """Where verdicts are kept, or None: in memory."""
        return self.settings.cache_dir / "verdicts" if self.settings.cache else None

    def recipe(self, task: str) -> Recipe:
        """Return the recipe of one of `recipes.TASKS`: the shipped one, or what the file of weights makes of it."""
        return self._own_recipes.get(task) or recipe_for(task, self.settings.evidence_layer)

    def open_encoder(self) -> Encoder:
        """Return the encoder, opened once."""
        if self.encoder is None:
            self.encoder = open_encoder(self.settings.encoder, self.device, self.settings.threads, self.device_for)
        return self.encoder
