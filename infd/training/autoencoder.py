"""Stage one: encoder, quantizer, decoder and renderer against the patch, with a patch discriminator.

Shapes: B batch, P patch side, L side of lowres. Images are uint8 in a batch and [-1, 1] in the networks.
Source: INFD section 4.2 and equation 2; order and weights as the published code runs them, but for the two
savings that `LossConfig.fresh_fake` and the factored adaptive weight name.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infd.config import AutoencoderTrainingConfig, OptimizerConfig
from infd.data.loader import Batch
from infd.errors import CheckpointError
from infd.losses.adversarial import adaptive_weight, hinge_d, hinge_g, last_layer_gradient
from infd.losses.perceptual import Lpips
from infd.models.autoencoder import Autoencoder, AutoencoderOutput
from infd.models.discriminator import PatchDiscriminator
from infd.training.world import World, bare


@dataclass(frozen=True)
class Inputs:
    """A batch on the device: lowres (B, 3, L, L), patch (B, 3, P, P) in [-1, 1]; r, y, x (B,)."""

    lowres: Tensor
    patch: Tensor
    r: Tensor
    y: Tensor
    x: Tensor
    noise: Tensor | None


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """The rate of a step (from 1): a rise over `warmup_steps`, constant, then a linear fall to 1%."""
    rate = config.lr * min(1.0, step / max(config.warmup_steps, 1))
    if config.decay_from_step is None or config.decay_to_step is None or step <= config.decay_from_step:
        return rate
    passed = (step - config.decay_from_step) / (config.decay_to_step - config.decay_from_step)
    return rate * max(0.01, 1 - 0.99 * passed)


def sample_noise(seed: int, g: list[int], shape: tuple[int, ...]) -> Tensor:
    """Normal noise (B, *shape), each row a function of (seed, g) alone, so that no layout of workers changes it."""
    rows = []
    for number in g:
        key = hashlib.sha256(f"noise {seed} {number}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
        rows.append(torch.randn(shape, generator=generator))
    return torch.stack(rows)


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Decibels of two batches in [-1, 1], on a range of 1 (the prediction is clamped), mean over the batch."""
    error = ((prediction.clamp(-1, 1) - target) / 2).square().mean(dim=(1, 2, 3))
    return (-10 * error.clamp(min=1e-10).log10()).mean()


class AutoencoderStage:
    """Networks, losses and optimizers of stage one, in one process of a world.

    `lpips` is None exactly where its weight is 0. Weights start from `config.loop.seed` alike on every rank.
    """

    def __init__(self, config: AutoencoderTrainingConfig, *, world: World, lpips: Lpips | None,
                 validation: list[Batch]) -> None:
        self.config, self.world, self.validation = config, world, validation
        torch.manual_seed(config.loop.seed)
        autoencoder = Autoencoder(config.model).to(world.device)
        self.lpips = lpips.to(world.device) if lpips is not None else None
        self.generator = world.distribute(autoencoder)
        self.generator_adam = adam(self.generator, config.optimizer)
        self.discriminator: nn.Module | None = None
        self.discriminator_adam: torch.optim.Adam | None = None
        if config.loss.gan > 0:
            discriminator = PatchDiscriminator(config.discriminator).to(world.device)
            self.discriminator = world.distribute(discriminator)
            self.discriminator_adam = adam(self.discriminator, config.optimizer)

    @property
    def autoencoder(self) -> Autoencoder:
        return cast(Autoencoder, bare(self.generator))

    # ------------------------------------------------------------ one update

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One update of both networks in place; metrics are scalars on the device."""
        config = self.config.loss
        self._train_mode()
        inputs = self.inputs(batch)
        gan = self.discriminator is not None and step >= config.gan_from_step
        with self._autocast():
            output = cast(AutoencoderOutput, self.generator(
                inputs.lowres, inputs.r, inputs.y, inputs.x, inputs.patch.shape[-1], noise=inputs.noise))
        gradient, metrics = self.prediction_gradient(output, inputs.patch, gan=gan)

        set_rate(self.generator_adam, learning_rate(self.config.optimizer, step))
        self.generator_adam.zero_grad(set_to_none=True)
        torch.autograd.backward([output.pred, config.quantizer * output.quantizer_loss],
                                [gradient.to(output.pred.dtype), None])
        self.generator_adam.step()

        metrics["train/loss"] = metrics["train/loss"] + config.quantizer * output.quantizer_loss.detach()
        metrics["train/quantizer"] = output.quantizer_loss.detach()
        if gan:
            metrics |= self._discriminator_step(inputs, output.pred.detach(), step)
        return metrics

    def prediction_gradient(self, output: AutoencoderOutput, target: Tensor, *,
                            gan: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """dLoss/dprediction (B, 3, P, P) without the quantizer's term, and metrics.

        Each loss is differentiated once down to the prediction; their gradients at CLIF's last convolution,
        which the adaptive weight compares, follow from that convolution alone.
        Law: equals the published way, which runs LPIPS and the discriminator backward twice, to rounding.
        """
        config = self.config.loss
        leaf = output.pred.detach().float().requires_grad_()
        l1 = (leaf - target).abs().mean()
        loss = config.l1 * l1
        metrics = {"train/l1": l1.detach(), "train/psnr": psnr(leaf.detach(), target)}
        if self.lpips is not None:
            with self._autocast():
                distance = self.lpips(leaf, target).float().mean()
            loss = loss + config.lpips * distance
            metrics["train/lpips"] = distance.detach()
        (gradient,) = torch.autograd.grad(loss, leaf)
        metrics["train/loss"] = loss.detach()
        if gan and self.discriminator is not None:
            with self._autocast():
                adversarial = hinge_g(bare(self.discriminator)(leaf).float())
            (gan_gradient,) = torch.autograd.grad(adversarial, leaf)
            weight = config.gan * self._adaptive_weight(output, gradient, gan_gradient)
            gradient = gradient + weight * gan_gradient
            metrics["train/loss"] = metrics["train/loss"] + weight * adversarial.detach()
            metrics |= {"train/gan": adversarial.detach(), "train/gan_weight": weight}
        return gradient, metrics

    def _adaptive_weight(self, output: AutoencoderOutput, rec: Tensor, gan: Tensor) -> Tensor:
        """The published w, from gradients averaged over the ranks before their norms are taken."""
        if not self.config.loss.adaptive_gan_weight:
            return torch.ones((), device=rec.device)
        last = self.autoencoder.renderer.last_layer
        features = output.last_features.detach().float()
        return adaptive_weight(*(self.world.mean(last_layer_gradient(features, gradient, last))
                                 for gradient in (rec, gan)))

    def _discriminator_step(self, inputs: Inputs, fake: Tensor, step: int) -> dict[str, Tensor]:
        assert self.discriminator is not None and self.discriminator_adam is not None
        if self.config.loss.fresh_fake:
            with torch.no_grad(), self._autocast():
                fake = self.autoencoder(inputs.lowres, inputs.r, inputs.y, inputs.x, inputs.patch.shape[-1],
                                        noise=inputs.noise).pred
        with self._autocast():
            real_logits = self.discriminator(inputs.patch).float()
            fake_logits = self.discriminator(fake.float()).float()
        loss = hinge_d(real_logits, fake_logits)
        set_rate(self.discriminator_adam, learning_rate(self.config.optimizer, step))
        self.discriminator_adam.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator_adam.step()
        return {"train/disc_loss": loss.detach(), "train/logits_real": real_logits.detach().mean(),
                "train/logits_fake": fake_logits.detach().mean()}

    # ------------------------------------------------------------ inputs, validation

    def inputs(self, batch: Batch) -> Inputs:
        """uint8 to [-1, 1] on the device, and the noise of these samples where the latent is a Gaussian."""
        device = self.world.device

        def image(pixels: Tensor) -> Tensor:
            return pixels.to(device, non_blocking=True).float() / 127.5 - 1

        noise = None
        if self.config.model.quantizer == "kl":
            side = self.config.crop.lowres_px // self.config.model.factor
            shape = (self.config.model.z_dim, side, side)
            noise = sample_noise(self.config.loop.seed, batch.g.tolist(), shape).to(device)
        r, y, x = (value.to(device, non_blocking=True) for value in (batch.r, batch.y, batch.x))
        return Inputs(image(batch.lowres), image(batch.patch), r, y, x, noise)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means over the fixed validation crops of all ranks, in eval mode; empty where there are none."""
        self.autoencoder.eval()
        lpips = self.lpips
        sums = torch.zeros(4, device=self.world.device)            # samples, l1, psnr, lpips
        for batch in self.validation:
            inputs = self.inputs(batch)
            pred = self.autoencoder(inputs.lowres, inputs.r, inputs.y, inputs.x, inputs.patch.shape[-1]).pred.float()
            distance = lpips(pred, inputs.patch).float().mean() if lpips is not None else sums.new_zeros(())
            means = torch.stack([sums.new_ones(()), F.l1_loss(pred, inputs.patch), psnr(pred, inputs.patch), distance])
            sums += means * len(pred)
        samples, l1, psnr_db, distance = (self.world.mean(sums) * self.world.size).tolist()
        if not samples:
            return {}
        weights = self.config.loss
        metrics = {"val/loss": (weights.l1 * l1 + weights.lpips * distance) / samples,
                   "val/l1": l1 / samples, "val/psnr": psnr_db / samples}
        return metrics | ({"val/lpips": distance / samples} if lpips is not None else {})

    def finite(self) -> bool:
        """Whether all weights are finite numbers."""
        parameters = [parameter.detach() for _, module, _ in self._optimized() for parameter in module.parameters()]
        return bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())

    # ------------------------------------------------------------ state

    def model_state(self) -> dict[str, Tensor]:
        """All networks by name: autoencoder.…, discriminator.…"""
        named = {"autoencoder": self.generator, "discriminator": self.discriminator}
        return {f"{name}.{key}": value for name, module in named.items() if module is not None
                for key, value in bare(module).state_dict().items()}

    def train_state(self) -> dict[str, Tensor]:
        """Adam's moments and counts by parameter: generator.PARAMETER.exp_avg, …"""
        state: dict[str, Tensor] = {}
        for name, module, optimizer in self._optimized():
            for key, parameter in bare(module).named_parameters():
                for moment, value in optimizer.state.get(parameter, {}).items():
                    state[f"{name}.{key}.{moment}"] = torch.as_tensor(value)
        return state

    def load_state(self, model: dict[str, Tensor], train_state: dict[str, Tensor]) -> None:
        """Take over a checkpoint; raises CheckpointError where names or shapes do not fit."""
        for name, module, optimizer in self._optimized():
            weights = {key.removeprefix(f"{name}."): value for key, value in model.items() if key.startswith(f"{name}.")}
            try:
                bare(module).load_state_dict(weights)
            except RuntimeError as error:
                raise CheckpointError(f"checkpoint's {name}: {error}") from error
            load_moments(module, optimizer, {key.removeprefix(f"{name}."): value for key, value in train_state.items()
                                             if key.startswith(f"{name}.")})

    def _optimized(self) -> Iterator[tuple[str, nn.Module, torch.optim.Adam]]:
        yield "autoencoder", self.generator, self.generator_adam
        if self.discriminator is not None and self.discriminator_adam is not None:
            yield "discriminator", self.discriminator, self.discriminator_adam

    def _train_mode(self) -> None:
        self.generator.train()
        if self.discriminator is not None:
            self.discriminator.train()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.config.loop.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)


def adam(module: nn.Module, config: OptimizerConfig) -> torch.optim.Adam:
    """Adam over all parameters; fused where the device has it."""
    parameters = list(module.parameters())
    return torch.optim.Adam(parameters, lr=config.lr, betas=config.betas, fused=parameters[0].is_cuda)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def load_moments(module: nn.Module, optimizer: torch.optim.Adam, state: dict[str, Tensor]) -> None:
    """Give `optimizer` the state that `AutoencoderStage.train_state` wrote, on each parameter's device."""
    for key, parameter in bare(module).named_parameters():
        moments = {name.removeprefix(f"{key}."): value for name, value in state.items()
                   if name.startswith(f"{key}.") and "." not in name.removeprefix(f"{key}.")}
        if moments:
            fused = bool(optimizer.defaults["fused"])
            optimizer.state[parameter] = {
                name: value.clone() if name == "step" and not fused else value.to(parameter.device, copy=True)
                for name, value in moments.items()}
