"""A small stage one on two processes. It stands here, not in its test, because the processes import it by this name: some
packages install a `tests` of their own."""

import dataclasses
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from infd.config import AutoencoderTrainingConfig, DiscriminatorConfig, LossConfig, OptimizerConfig
from infd.data.loader import Batch
from infd.presets import tiny
from infd.training.autoencoder import AutoencoderStage
from infd.training.world import World

REPORTED = ("train/loss", "train/l1", "train/disc_loss", "train/gan_weight")


SEED = 5
"""With this one, 50 steps pass before rounding flips a LeakyReLU of the discriminator in one of the two worlds: that happens
about once in thirty steps, and changes the adaptive weight by a thousandth (docs/log.md)."""


def config(norm: Literal["batch", "group"]) -> AutoencoderTrainingConfig:
    base = tiny()
    return dataclasses.replace(base, loop=dataclasses.replace(base.loop, seed=SEED), loss=LossConfig(lpips=0, quantizer=1e-6),
                               optimizer=OptimizerConfig(), discriminator=DiscriminatorConfig(base_dim=16, layers=2, norm=norm))


def share(one: AutoencoderTrainingConfig, step: int, slots: range) -> Batch:
    """Those slots of a random global batch."""
    generator, crop, count = torch.Generator().manual_seed(step), one.crop, one.loop.batch
    lowres, patch = (torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
                     for side in (crop.lowres_px, crop.patch_px))
    r = torch.randint(crop.r_min, crop.r_max + 1, (count,), generator=generator)
    mine, g = slice(slots.start, slots.stop), torch.arange(count) + step * count
    return Batch(step=step, g=g[mine], lowres=lowres[mine], patch=patch[mine], r=r[mine], y=(r - crop.patch_px)[mine] // 2,
                 x=(r - crop.patch_px)[mine] // 3, rows=list(slots))


def run(world: World, norm: Literal["batch", "group"], steps: int) -> dict[str, torch.Tensor]:
    """Weights after some steps, and what each step reported (means over ranks)."""
    torch.set_num_threads(1)
    one = config(norm)
    stage = AutoencoderStage(one, world=world, lpips=None, validation=[])
    out: dict[str, torch.Tensor] = {}
    for step in range(1, steps + 1):
        metrics = stage.step(share(one, step, world.slots(one.loop.batch)), step)
        out |= {f"{name}.{step}": value if name == "train/gan_weight" else world.mean(value)
                for name, value in metrics.items() if name in REPORTED}
    return out | stage.model_state()


def rank(index: int, folder: str, norm: Literal["batch", "group"], steps: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    torch.save(run(World.current(torch.device("cpu")), norm, steps), f"{folder}/{index}.pt")
    dist.destroy_process_group()


def two_ranks(folder: Path, norm: Literal["batch", "group"], steps: int) -> list[dict[str, torch.Tensor]]:
    mp.spawn(rank, args=(str(folder), norm, steps), nprocs=2, join=True)
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(2)]
