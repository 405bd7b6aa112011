"""bfloat16, compiled networks and channels last train as float32 does: after 200 steps their losses part from its by no more
than those of other seeds do."""

import dataclasses
import statistics

import pytest
import torch
from data import photographs
from PIL import Image
from training_batches import small

from infd.config import AutoencoderTrainingConfig, DiscriminatorConfig
from infd.data.loader import Batch
from infd.training.autoencoder import AutoencoderStage
from infd.training.world import World

STEPS, LAST = 200, 50


def photograph_batch(config: AutoencoderTrainingConfig, whole: Image.Image, step: int) -> Batch:
    """Whole views of squares of a photograph, a function of `step`."""
    generator = torch.Generator().manual_seed(step)
    crop, count = config.crop, config.loop.batch
    lowres, patches = [], []
    for y, x in torch.randint(0, 128, (count, 2), generator=generator).tolist():
        square = whole.crop((x, y, x + 256, y + 256))
        for side, images in ((crop.lowres_px, lowres), (crop.patch_px, patches)):
            pixels = bytearray(square.resize((side, side), Image.Resampling.LANCZOS).tobytes())
            images.append(torch.frombuffer(pixels, dtype=torch.uint8).reshape(side, side, 3).permute(2, 0, 1))
    zeros = torch.zeros(count, dtype=torch.int64)
    return Batch(step=step, g=torch.arange(count) + step * count, lowres=torch.stack(lowres), patch=torch.stack(patches),
                 r=zeros + crop.patch_px, y=zeros, x=zeros, rows=[0] * count)


def l1s(seed: int = 0, nudge: float = 0.0, **loop: object) -> list[float]:
    """The reconstruction loss of each step; `nudge` moves the first weights by that, relative: a rounding of our own."""
    base = small(gan_from_step=51)
    config = dataclasses.replace(
        base, loop=dataclasses.replace(base.loop, steps=STEPS, seed=seed, **loop),  # pyright: ignore
        model=dataclasses.replace(base.model, renderer_dim=16),
        crop=dataclasses.replace(base.crop, lowres_px=32, patch_px=32, r_min=32), discriminator=DiscriminatorConfig(base_dim=8))
    whole = photographs.opened(photographs.files()["china.jpg"]).resize((384, 384))
    stage = AutoencoderStage(config, world=World(), lpips=None, validation=[])
    with torch.no_grad():
        for parameter in stage.autoencoder.parameters():
            parameter.mul_(1 + nudge)
    return [float(stage.step(photograph_batch(config, whole, step), step)["train/l1"]) for step in range(1, STEPS + 1)]


@pytest.mark.long
def test_law_training_in_other_ways_stays_within_the_noise_of_float32():
    plain = l1s()
    end = statistics.mean(plain[-LAST:])
    assert end < 0.6 * plain[0]                                     # it learns
    noise = max(abs(statistics.mean(other[-LAST:]) / end - 1) for other in (l1s(seed=1), l1s(seed=2), l1s(nudge=1e-3)))
    ways = {"bfloat16": {"precision": "bfloat16"}, "compiled": {"compiled": True}, "channels last": {"channels_last": True}}
    parted = {name: abs(statistics.mean(l1s(**loop)[-LAST:]) / end - 1) for name, loop in ways.items()}
    print(f"\nl1 {plain[0]:.3f} to {end:.3f}; float32 with other seeds or nudged: {noise:.1%}; " +
          ", ".join(f"{name} {found:.1%}" for name, found in parted.items()))
    assert max(parted.values()) <= noise, (parted, noise)
