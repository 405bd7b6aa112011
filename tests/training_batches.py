"""Random batches and small settings for tests of the training step."""

import dataclasses

import torch

from infd.config import AutoencoderTrainingConfig, LossConfig
from infd.data.loader import Batch
from infd.presets import tiny


def random_batch(config: AutoencoderTrainingConfig, step: int) -> Batch:
    """Noise of the config's sides, a function of `step`."""
    generator = torch.Generator().manual_seed(step)
    crop, batch = config.crop, config.loop.batch

    def pixels(side: int) -> torch.Tensor:
        return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)

    r = torch.randint(crop.r_min, crop.r_max + 1, (batch,), generator=generator)
    return Batch(step=step, g=torch.arange(batch) + step * batch, lowres=pixels(crop.lowres_px), patch=pixels(crop.patch_px),
                 r=r, y=(r - crop.patch_px) // 2, x=(r - crop.patch_px) // 3, rows=list(range(batch)))


def small(**loss: object) -> AutoencoderTrainingConfig:
    """`tiny` without network weights to fetch, the GAN on from step 2."""
    loss = {"lpips": 0.0, "quantizer": 1e-6, "gan": 0.1, "gan_from_step": 2} | loss
    return dataclasses.replace(tiny(), loss=LossConfig(**loss))  # pyright: ignore
