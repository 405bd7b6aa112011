"""Several processes train as one. GroupNorm knows one sample; the discriminator's BatchNorm sees a rank's share of the
batch, so equality with one process holds without it, and equality between ranks holds always."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from infd.config import AutoencoderTrainingConfig, LossConfig
from infd.data.loader import Batch
from infd.presets import tiny
from infd.training.autoencoder import AutoencoderStage
from infd.training.world import World

STEPS = 4


def config(gan: float) -> AutoencoderTrainingConfig:
    return dataclasses.replace(tiny(), loss=LossConfig(lpips=0, quantizer=1e-6, gan=gan))


def share(one: AutoencoderTrainingConfig, step: int, slots: range) -> Batch:
    """Those slots of a random global batch."""
    generator, crop, count = torch.Generator().manual_seed(step), one.crop, one.loop.batch
    lowres, patch = (torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
                     for side in (crop.lowres_px, crop.patch_px))
    r = torch.randint(crop.r_min, crop.r_max + 1, (count,), generator=generator)
    mine, g = slice(slots.start, slots.stop), torch.arange(count) + step * count
    return Batch(step=step, g=g[mine], lowres=lowres[mine], patch=patch[mine], r=r[mine], y=(r - crop.patch_px)[mine] // 2,
                 x=(r - crop.patch_px)[mine] // 3, rows=list(slots))


def run(world: World, gan: float) -> dict[str, torch.Tensor]:
    """Weights after STEPS steps, and what each step reported (means over ranks)."""
    torch.set_num_threads(1)
    one = config(gan)
    stage = AutoencoderStage(one, world=world, lpips=None, validation=[])
    out: dict[str, torch.Tensor] = {}
    for step in range(1, STEPS + 1):
        metrics = stage.step(share(one, step, world.slots(one.loop.batch)), step)
        out[f"loss.{step}"] = world.mean(metrics["train/loss"])
        out |= {f"{name}.{step}": value for name, value in metrics.items() if name == "train/gan_weight"}
    return out | stage.model_state()


def rank(index: int, folder: str, gan: float) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    torch.save(run(World.current(torch.device("cpu")), gan), f"{folder}/{index}.pt")
    dist.destroy_process_group()


def two_ranks(folder: Path, gan: float) -> list[dict[str, torch.Tensor]]:
    mp.spawn(rank, args=(str(folder), gan), nprocs=2, join=True)
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(2)]


@pytest.mark.slow
def test_law_two_ranks_agree_and_equal_one_process(tmp_path):
    alone, (first, second) = run(World(), gan=0.0), two_ranks(tmp_path, gan=0.0)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, msg=name)
    for step in range(1, STEPS + 1):
        torch.testing.assert_close(first[f"loss.{step}"], alone[f"loss.{step}"], rtol=1e-5, atol=0)


@pytest.mark.slow
def test_law_the_adaptive_weight_is_one_number_on_all_ranks(tmp_path):
    first, second = two_ranks(tmp_path, gan=0.5)
    weights = [name for name in first if name.startswith("train/gan_weight") or name.startswith("autoencoder.")]
    assert len(weights) > STEPS
    for name in weights:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)
