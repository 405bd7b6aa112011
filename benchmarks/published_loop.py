"""The published stage-one iteration, plainly, on the networks of a stage: what `train_step` compares ours with.

One iteration: forward E, Q, D, R, LPIPS and the discriminator; the losses of reconstruction and GAN each run backward to
R's last weight for the adaptive weight; the whole loss backward; Adam. Then E, Q, D, R once more with the new weights,
without gradients, and the discriminator on real and fake patches; its loss backward; its Adam. Source: the published
trainers/infd_trainer.py and models/infd.py.
"""

import contextlib
from dataclasses import dataclass

import torch

from infd.data.loader import Batch
from infd.losses.adversarial import adaptive_weight, hinge_d, hinge_g
from infd.training.autoencoder import AutoencoderStage


@dataclass(frozen=True, kw_only=True)
class Published:
    """`iteration(batch, step)` updates the networks of `stage`."""

    stage: AutoencoderStage
    reuse_fake: bool = False
    """One saving of ours alone: the fake of the first forward serves the discriminator."""

    def iteration(self, batch: Batch, step: int) -> None:
        stage, config = self.stage, self.stage.config.loss
        assert stage.discriminator is not None and stage.discriminator_adam is not None
        stage.generator.train()
        stage.discriminator.train()
        inputs = stage.inputs(batch)
        place = (inputs.lowres, inputs.r, inputs.y, inputs.x, inputs.patch.shape[-1])
        with self.autocast():
            output = stage.generator(*place, noise=inputs.noise)
            rec = config.l1 * (output.pred - inputs.patch).abs().mean()
            if stage.lpips is not None:
                rec = rec + config.lpips * stage.lpips(output.pred, inputs.patch).mean()
            g = hinge_g(stage.discriminator(output.pred))
        last = stage.autoencoder.renderer.last_layer.weight
        (rec_grad,) = torch.autograd.grad(rec, last, retain_graph=True)
        (gan_grad,) = torch.autograd.grad(g, last, retain_graph=True)
        loss = rec + config.gan * adaptive_weight(rec_grad, gan_grad) * g + config.quantizer * output.quantizer_loss
        stage.generator_adam.zero_grad()
        stage.discriminator_adam.zero_grad()
        loss.backward()
        stage.generator_adam.step()

        with self.autocast():
            if self.reuse_fake:
                fake = output.pred.detach()
            else:
                with torch.no_grad():
                    fake = stage.generator(*place, noise=inputs.noise).pred
            loss = hinge_d(stage.discriminator(inputs.patch), stage.discriminator(fake))
        stage.discriminator_adam.zero_grad()
        loss.backward()
        stage.discriminator_adam.step()

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.stage.config.loop.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.stage.world.device.type, torch.bfloat16)
