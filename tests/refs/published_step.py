"""One iteration of stage one in the published order, as plain autograd: the reference of the trainer.

Source: INFD, published code: forward, adaptive weight by two backward passes to CLIF's last layer, one backward, Adam;
then E, D and R again with the new weights, real, fake, hinge loss, Adam.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from infd.losses.adversarial import adaptive_weight, hinge_d, hinge_g
from infd.models.autoencoder import Autoencoder
from infd.models.discriminator import PatchDiscriminator

LEARNING_RATE, BETAS = 3.6e-5, (0.5, 0.9)


class PatchBatch(NamedTuple):
    """lowres (B, 3, L, L), patch (B, 3, P, P) in [-1, 1]; r, y, x (B,)."""

    lowres: Tensor
    patch: Tensor
    r: Tensor
    y: Tensor
    x: Tensor


class PublishedTrainer:
    """Networks and optimizers; `step` changes them in place and returns the terms. `hooks` name moments for tests."""

    def __init__(self, autoencoder: Autoencoder, discriminator: PatchDiscriminator, lpips: nn.Module, *,
                 gan: float = 0.75, lr: float = LEARNING_RATE) -> None:
        self.autoencoder, self.discriminator, self.lpips, self.gan = autoencoder, discriminator, lpips, gan
        self.generator_adam = torch.optim.Adam(autoencoder.parameters(), lr=lr, betas=BETAS)
        self.discriminator_adam = torch.optim.Adam(discriminator.parameters(), lr=lr, betas=BETAS)

    def step(self, batch: PatchBatch) -> dict[str, Tensor]:
        return self.generator_step(batch) | self.discriminator_step(batch)

    def generator_step(self, batch: PatchBatch) -> dict[str, Tensor]:
        terms = self.generator_loss(batch)
        self.generator_adam.zero_grad()
        self.discriminator_adam.zero_grad()
        terms["loss"].backward()
        self.generator_adam.step()
        return {name: value.detach() for name, value in terms.items()}

    def generator_loss(self, batch: PatchBatch, *, adaptive: bool = True) -> dict[str, Tensor]:
        """Terms, and `loss`: quantizer + l1 + lpips + 0.75 w g."""
        output = self.autoencoder(batch.lowres, batch.r, batch.y, batch.x, batch.patch.shape[-1])
        l1 = (output.pred - batch.patch).abs().mean()
        perceptual = self.lpips(output.pred, batch.patch).mean()
        terms = {"quant_loss": output.quantizer_loss, "l1_loss": l1, "perc_loss": perceptual}
        terms["psnr"] = -10 * ((output.pred - batch.patch) / 2).square().mean(dim=(1, 2, 3)).log10().mean()
        total = output.quantizer_loss + l1 + perceptual
        if self.gan > 0:
            g = terms["gan_g_loss"] = hinge_g(self.discriminator(output.pred))
            weight = torch.ones(())
            if adaptive:
                last = self.autoencoder.renderer.last_layer.weight
                (reconstruction,) = torch.autograd.grad(l1 + perceptual, last, retain_graph=True)
                (adversarial,) = torch.autograd.grad(g, last, retain_graph=True)
                weight = terms["adaptive_g_w"] = adaptive_weight(reconstruction, adversarial)
            total = total + self.gan * weight * g
        return terms | {"loss": total}

    def discriminator_step(self, batch: PatchBatch) -> dict[str, Tensor]:
        """Its fake is rendered anew, with the weights that the generator's step left."""
        with torch.no_grad():
            fake = self.autoencoder(batch.lowres, batch.r, batch.y, batch.x, batch.patch.shape[-1]).pred
        real_logits, fake_logits = self.discriminator(batch.patch), self.discriminator(fake)
        loss = hinge_d(real_logits, fake_logits)
        self.discriminator_adam.zero_grad()
        loss.backward()
        self.discriminator_adam.step()
        return {"disc.loss": loss.detach(), "disc.disc_logits_real": real_logits.detach().mean(),
                "disc.disc_logits_fake": fake_logits.detach().mean()}
