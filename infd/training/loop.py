"""The only training loop. It knows a stage and hooks, neither Ray nor MLflow.

A stage turns a batch into an update; the loop owns steps, rhythm, the check for finite losses, and timing.
Everything random is a function of (seed, step, sample), so a resumed run needs no generator's state.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from infd.config import LoopConfig
from infd.errors import Interrupted
from infd.training import interruption
from infd.training.world import World

Metrics = dict[str, float]


class Stage(Protocol):
    """What is trained. `step` updates in place; its metrics stay on the device. Each stage has batches of its own kind."""

    def step(self, batch: Any, step: int) -> dict[str, Tensor]: ...

    def validate(self) -> Metrics: ...


class Batches(Protocol):
    """What the loop reads: a loader that begins at the run's step."""

    def __iter__(self) -> Iterator[Any]: ...

    def stats(self) -> dict[str, float]: ...


class Hooks(Protocol):
    """What happens around training; each is called on every rank, at the same steps."""

    def log(self, step: int, metrics: Metrics) -> None: ...

    def validated(self, step: int, metrics: Metrics) -> None: ...

    def preview(self, step: int) -> None: ...

    def save(self, step: int, metrics: Metrics) -> None: ...

    def not_finite(self, step: int) -> None:
        """Keep what is needed to see the cause, and raise TrainingError."""
        ...


def train(
    stage: Stage, batches: Batches, config: LoopConfig, hooks: Hooks, *, world: World, start: int = 0,
    wished: Callable[[], bool] = interruption.wished,
) -> None:
    """Update `stage` from step `start` to `config.steps`; `batches` begins at step `start`.

    `wished`: whether someone asks this rank to stop; each rank asks it whenever metrics are due, and a lone process at
    each step. All ranks then save and raise Interrupted.
    Law: on the CPU a run cut at any checkpoint and resumed ends with the same weights, bit for bit.
    """
    window = Window(world, config, batches)
    latest: Metrics = {}
    for step, batch in zip(range(start + 1, config.steps + 1), batches, strict=False):
        window.add(step, stage.step(batch, step))
        last = step == config.steps
        due = {every: step % getattr(config, every) == 0 or last
               for every in ("log_every", "validate_every", "preview_every", "checkpoint_every")}
        if any(due.values()):
            fetched = window.fetch(hooks)
            latest |= fetched
            hooks.log(step, fetched)
        if due["validate_every"]:
            validation = stage.validate()
            latest |= validation
            hooks.validated(step, validation)
        if due["checkpoint_every"]:
            hooks.save(step, dict(latest))
        if due["preview_every"]:
            hooks.preview(step)
        if any(due.values()):
            window.restart()                                       # the rate is that of training
        if not last and (due["log_every"] or world.size == 1) and world.any(wished()):
            if not due["checkpoint_every"]:
                hooks.save(step, latest | window.fetch(hooks))
            world.any(False)                                       # no rank leaves while another one still writes
            raise Interrupted(f"step {step}: asked to stop; the checkpoint is saved; the same command goes on from it",
                              exit_code=interruption.exit_code())


class Window:
    """Metrics since the last fetch: kept on the device, fetched at once, means over steps and ranks."""

    def __init__(self, world: World, config: LoopConfig, batches: Batches) -> None:
        self.world, self.config, self.batches = world, config, batches
        self.rows: list[tuple[int, dict[str, Tensor]]] = []
        self.started = time.monotonic()
        self.waited = (0.0, 0.0)

    def add(self, step: int, metrics: dict[str, Tensor]) -> None:
        self.rows.append((step, metrics))

    def fetch(self, hooks: Hooks) -> Metrics:
        """Means of the window, and of each norm of gradients the largest, as …_max.

        Calls `hooks.not_finite` with the first step of which any metric is not finite.
        """
        if not self.rows:
            return {}
        names = sorted(self.rows[-1][1])
        absent = torch.full_like(self.rows[-1][1]["train/loss"], torch.nan)
        there = torch.tensor([[name in row for name in names] for _, row in self.rows])
        table = torch.stack([torch.stack([row.get(name, absent).float() for name in names])
                             for _, row in self.rows])                                   # (steps, metrics)
        table = self.world.mean(table).cpu()
        finite = (table.isfinite() | ~there).all(dim=1)
        if not bool(finite.all()):
            hooks.not_finite(self.rows[int((~finite).nonzero()[0])][0])
        seconds = time.monotonic() - self.started
        metrics = dict(zip(names, table.nanmean(0).tolist(), strict=True))
        metrics |= {f"{name}_max": float(table[:, column].nan_to_num(nan=0).max()) for column, name in enumerate(names)
                    if name.endswith("grad_norm")}
        metrics["speed/images_per_s"] = len(self.rows) * self.config.batch / max(seconds, 1e-9)
        metrics["speed/data_wait_fraction"] = self._wait_fraction()
        if self.world.device.type == "cuda":                       # rank 0's, the most since the last fetch
            metrics["train/gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated(self.world.device))
            torch.cuda.reset_peak_memory_stats(self.world.device)
        self.rows = []
        self.restart()
        return metrics

    def restart(self) -> None:
        """The window begins now."""
        self.started = time.monotonic()

    def _wait_fraction(self) -> float:
        """Share of the time since the last fetch in which a batch was waited for."""
        before, stats = self.waited, self.batches.stats()
        self.waited = stats["wait_s"], stats["total_s"]
        return (self.waited[0] - before[0]) / max(self.waited[1] - before[1], 1e-9)
