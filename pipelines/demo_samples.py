"""The demo's second stage: latents of the photographs, a denoiser, and what it draws, at several sizes."""

import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from infd import checkpoint
from infd.data.latents import open_latents
from infd.data.snapshot import Dataset
from infd.errors import InfdError, TrainingError
from infd.generation.model import load_model
from infd.generation.reconstruct import PANEL, Panel, to_image
from infd.models.boxes import Box
from infd.models.fields import Field
from infd.presets import DIFFUSION
from infd.training.run import default_run

logger = logging.getLogger(__name__)

PRESET = "tiny"
SEEDS = range(8)
SHOWN_SEEDS = (1, 4)
"""Those of which larger renders are shown."""
STEPS = 50
SQUARES, WIDE = (256, 512, 1024), (1024, 640)
ZOOMS = (2, 4, 8)


@dataclass(frozen=True)
class Drawn:
    """What the page shows of stage two."""

    run: str
    latents: str
    grid: list[Panel]
    """One small render for each of SEEDS."""
    rows: list[tuple[str, list[Panel]]]
    """Title and panels: sizes, then a zoom."""


def draw(
    dataset: Dataset, autoencoder_run: str, *, submit: Callable[[list[str]], int],
    clock: Callable[[str], AbstractContextManager[None]], steps: int = 0,
) -> Drawn:
    """Encode, train, sample: each part does only what is not done yet. `steps`: 0 means the preset's."""
    with clock("encode latents"):
        latents = encode(dataset.snapshot_uri, f"{autoencoder_run}/checkpoints/last")
    run = default_run(dataset.snapshot_uri, PRESET, DIFFUSION[PRESET](), latents=open_latents(latents).uri)
    options = ["--loop.steps", str(steps)] if steps else []
    with clock("train the denoiser"):
        train(run, ["python", "jobs/train_ldm.py", PRESET, "--latents", latents, "--run", run, "--workers", "2", *options],
              submit=submit, steps=steps or DIFFUSION[PRESET]().loop.steps)
    with clock("generate"):
        return Drawn(run, latents, *pictures(f"{run}/checkpoints/last"))


def train(run: str, command: list[str], *, submit: Callable[[list[str]], int], steps: int) -> None:
    """Submit a training job and follow it, unless its run is at its last step. Raises TrainingError where it failed."""
    done = checkpoint.newest(run)
    if done is not None and done.step >= steps:
        logger.info("demo: run %s is finished at step %d already", run, done.step)
        return
    if code := submit(command):
        raise TrainingError(f"the job {command[1]} ended with {code}; its log is above and on the Ray dashboard; mend the "
                            "cause and run make demo again: it goes on from the last checkpoint")


def encode(snapshot: str, autoencoder: str) -> str:
    """Run the job; the latents' address."""
    job = Path(__file__).parents[1] / "jobs" / "encode_latents.py"
    done = subprocess.run([sys.executable, str(job), "--dataset", snapshot, "--checkpoint", autoencoder],
                          stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InfdError(f"latents of {snapshot}: encoding failed; its message is above; mend it and run make demo again")
    return done.stdout.strip().splitlines()[-1]


def pictures(uri: str) -> tuple[list[Panel], list[tuple[str, list[Panel]]]]:
    """(small renders of all seeds, rows of some seeds at several sizes)."""
    model = load_model(uri)
    fields = [model.field(z) for z in model.latents(SEEDS, steps=STEPS).split(1)]
    grid = [Panel(to_image(field.render(PANEL, PANEL)), f"seed {seed}") for seed, field in zip(SEEDS, fields, strict=True)]
    return grid, [row for seed in SHOWN_SEEDS for row in rows_of(fields[SEEDS.index(seed)], seed)]


def rows_of(field: Field, seed: int) -> list[tuple[str, list[Panel]]]:
    """One field at SQUARES and WIDE, then ever smaller parts of its middle; the same statistics of the norms for all."""
    look = field.reference()
    sizes = [Panel(to_image(field.render(side, side, statistics=look)), f"{side} × {side}") for side in SQUARES]
    width, height = WIDE
    sizes.append(Panel(to_image(field.render(height, width, statistics=look)), f"{width} × {height}"))
    zooms = []
    for zoom in ZOOMS:
        side, edge = PANEL * zoom, (PANEL * zoom - PANEL) // 2
        part = field.render(side, side, box=Box(edge, edge, PANEL, PANEL), statistics=look)
        zooms.append(Panel(to_image(part), f"{PANEL} px of {side} × {side}"))
    return [(f"seed {seed} at several sizes", sizes), (f"seed {seed}, into its middle", zooms)]
