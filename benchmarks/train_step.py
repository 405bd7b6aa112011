"""Steps a second of stage one at `tiny`: ours, and the published way of the same networks and losses, in one run.

The published way runs the losses backward three times for the adaptive weight and renders the discriminator's fake
anew; ours differentiates each loss once and reuses the fake. Random data; LPIPS at weight 0, so that no weights are
needed: with it the published way has one more backward through its trunk.
"""

import dataclasses
import time

import torch

from infd.config import AutoencoderTrainingConfig, LossConfig
from infd.data.loader import Batch
from infd.losses.adversarial import adaptive_weight, hinge_d, hinge_g
from infd.presets import tiny
from infd.training.autoencoder import AutoencoderStage
from infd.training.world import World

STEPS = 40


def batch(config: AutoencoderTrainingConfig) -> Batch:
    crop, count = config.crop, config.loop.batch
    sides = (crop.lowres_px, crop.patch_px)
    lowres, patch = (torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8) for side in sides)
    r = torch.full((count,), crop.r_max)
    return Batch(step=0, g=torch.arange(count), lowres=lowres, patch=patch, r=r, y=r // 3, x=r // 4, rows=[0] * count)


def published_step(stage: AutoencoderStage, one: Batch) -> None:
    """The published order of reference and losses, on the networks of `stage`."""
    assert stage.discriminator is not None and stage.discriminator_adam is not None
    inputs, config = stage.inputs(one), stage.config.loss
    place = (inputs.lowres, inputs.r, inputs.y, inputs.x, inputs.patch.shape[-1])
    output = stage.autoencoder(*place, noise=inputs.noise)
    l1, g = (output.pred - inputs.patch).abs().mean(), hinge_g(stage.discriminator(output.pred))
    last = stage.autoencoder.renderer.last_layer.weight
    (rec,) = torch.autograd.grad(l1, last, retain_graph=True)
    (gan,) = torch.autograd.grad(g, last, retain_graph=True)
    loss = l1 + config.gan * adaptive_weight(rec, gan) * g + config.quantizer * output.quantizer_loss
    stage.generator_adam.zero_grad()
    stage.discriminator_adam.zero_grad()
    loss.backward()
    stage.generator_adam.step()
    with torch.no_grad():
        fake = stage.autoencoder(*place, noise=inputs.noise).pred
    loss = hinge_d(stage.discriminator(inputs.patch), stage.discriminator(fake))
    stage.discriminator_adam.zero_grad()
    loss.backward()
    stage.discriminator_adam.step()


def main() -> None:
    config = dataclasses.replace(tiny(), loss=LossConfig(lpips=0, quantizer=1e-6, gan=0.1))
    one = batch(config)
    print("| way | steps/s | images/s |\n|---|---|---|")
    for name in ("published", "ours"):
        stage = AutoencoderStage(config, world=World(), lpips=None, validation=[])
        begun = time.perf_counter()
        for step in range(1, STEPS + 6):
            if step == 6:
                begun = time.perf_counter()
            if name == "ours":
                stage.step(one, step)
            else:
                published_step(stage, one)
        rate = STEPS / (time.perf_counter() - begun)
        print(f"| {name} | {rate:.1f} | {rate * config.loop.batch:.0f} |")


if __name__ == "__main__":
    main()
