"""Stage one: encoder, quantizer, decoder and renderer against the patch, with a patch discriminator.

Shapes: B batch, P patch side, L side of lowres. Images are uint8 in a batch and [-1, 1] in the networks.
Source: INFD section 4.2 and equation 2; order and weights as the published code runs them, but for three
savings: `LossConfig.fresh_fake`, the factored adaptive weight, and logits of the fakes that both updates use.
"""

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from infd import checkpoint
from infd.config import AutoencoderTrainingConfig
from infd.config_form import flat, seen_px
from infd.data.loader import Batch
from infd.losses.adversarial import (
    adaptive_weight,
    gradient_penalty,
    hinge_d,
    hinge_g,
    last_layer_gradient,
    relativistic_d,
    relativistic_g,
)
from infd.losses.perceptual import Lpips
from infd.models.autoencoder import Autoencoder, AutoencoderOutput
from infd.models.discriminator import PatchDiscriminator
from infd.training import optimizers
from infd.training.noise import sample_noise
from infd.training.scales import ScaleMeans
from infd.training.world import World, bare

logger = logging.getLogger(__name__)

ModuleT = TypeVar("ModuleT", bound=nn.Module)

FROZEN = {"encoder": ("encoder", "quant_conv", "quantizer"), "decoder": ("post_quant_conv", "decoder")}
"""Modules of each part that `AutoencoderTrainingConfig.freeze` names."""


class Inputs(NamedTuple):
    """A batch on the device: lowres (B, 3, L, L), patch (B, 3, P, P) in [-1, 1]; r, y, x (B,); noise (B, Z, l, l) or None."""

    lowres: Tensor
    patch: Tensor
    r: Tensor
    y: Tensor
    x: Tensor
    noise: Tensor | None

    def parts(self, count: int) -> "list[Inputs]":
        """Cut into `count` micro-batches of equal size."""
        cut = [[None] * count if value is None else value.chunk(count) for value in self]
        return [Inputs(*part) for part in zip(*cut, strict=True)]


@dataclass(frozen=True)
class PredictionGradients:
    """Gradients of the losses at a prediction (B, 3, P, P), and their values as metrics."""

    reconstruction: Tensor
    """Of L1 and LPIPS, with their weights."""
    adversarial: Tensor | None
    """Of the GAN loss alone; None without a GAN."""
    metrics: dict[str, Tensor]
    logits: Tensor | None = None
    """The discriminator's of the prediction, with their graph, where its own update can go on from them."""


class Fake(NamedTuple):
    """A prediction (B, 3, P, P) without graph, and `PredictionGradients.logits` of it."""

    rgb: Tensor
    logits: Tensor | None


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Decibels of each of two batches in [-1, 1], on a range of 1: (B,)."""
    error = ((prediction - target) / 2).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp(min=1e-10).log10()


class AutoencoderStage:
    """Networks, losses and optimizers of stage one, in one process of a world.

    `lpips` is None exactly where its weight is 0. Weights start from `config.loop.seed` alike on every rank, or from
    `start`, a `model_state` of the same autoencoder; a discriminator that it lacks, or of another kind, starts afresh.
    """

    def __init__(self, config: AutoencoderTrainingConfig, *, world: World, lpips: Lpips | None,
                 validation: list[Batch], start: dict[str, Tensor] | None = None) -> None:
        self.config, self.world, self.validation = config, world, validation
        self.layout = torch.channels_last if config.loop.channels_last else torch.contiguous_format
        torch.backends.cudnn.allow_tf32 = config.loop.precision != "float32"  # torch allows it where nobody says no
        torch.manual_seed(config.loop.seed)
        autoencoder = self._placed(Autoencoder(config.model))
        autoencoder.lowres_px, autoencoder.patch_px = config.crop.lowres_px, seen_px(flat(config))
        if start is not None:
            checkpoint.put_into("the starting checkpoint's autoencoder", autoencoder,
                         of_part(start, "autoencoder_average") or of_part(start, "autoencoder"))
        frozen(autoencoder, config.freeze)
        self.lpips = self._placed(lpips) if lpips is not None else None
        self.average = copy.deepcopy(autoencoder).requires_grad_(False) if config.optimizer.ema_decay else None
        self.generator = world.distribute(autoencoder)
        self.generator_adam = optimizers.adam(self.generator, config.optimizer)
        self.discriminator: nn.Module | None = None
        self.discriminator_adam: torch.optim.Adam | None = None
        if config.loss.gan > 0:
            discriminator = self._placed(PatchDiscriminator(config.discriminator))
            known = of_part(start or {}, "discriminator")
            if shapes(known) == shapes(discriminator.state_dict()):
                discriminator.load_state_dict(known)
            elif start is not None:
                logger.warning("the starting checkpoint has no discriminator of this kind; ours starts afresh")
            self.discriminator = world.distribute(discriminator)
            self.discriminator_adam = optimizers.adam(self.discriminator, config.optimizer)
        if config.loop.compiled:
            compiled = [self.autoencoder, self.lpips, self.discriminator and bare(self.discriminator)]
            if config.loss.gradient_penalty > 0 or (world.size > 1 and config.discriminator.norm == "batch"):
                compiled.pop()  # compiled networks have no second derivative, nor the means over ranks that BatchNorm takes
            for module in compiled:
                if module is not None:
                    module.compile()

    def _placed(self, module: ModuleT) -> ModuleT:
        """On the device, in the layout."""
        return cast(Any, module.to(self.world.device)).to(memory_format=self.layout)  # torch's types lack the argument

    @property
    def autoencoder(self) -> Autoencoder:
        """The weights that learn."""
        return cast(Autoencoder, bare(self.generator))

    @property
    def shown(self) -> Autoencoder:
        """The weights that are validated and shown: the moving average where there is one."""
        return self.autoencoder if self.average is None else self.average

    # ------------------------------------------------------------ one update

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One update of both networks in place; metrics are scalars on the device."""
        self._train_mode()
        parts = self.inputs(batch).parts(self.config.loop.accumulate)
        gan = self.discriminator is not None and step >= self.config.loss.gan_from_step
        fakes, metrics = self._generator_step(parts, step, gan=gan)
        if self.average is not None:
            optimizers.average_into(self.average.parameters(), self.autoencoder.parameters(),
                                    self.config.optimizer.ema_decay)
        return metrics | (self._discriminator_step(parts, fakes, step) if gan else {})

    def _generator_step(self, parts: list[Inputs], step: int, *, gan: bool) -> tuple[list[Fake], dict[str, Tensor]]:
        """Update the autoencoder; predictions of the parts, and metrics.

        With several parts the adaptive weight, which compares gradients of the whole batch, needs a pass of its own.
        """
        config, rows, fakes = self.config.loss, [], []
        weight = self._weight_of(parts) if gan and len(parts) > 1 else None
        self.generator_adam.zero_grad(set_to_none=True)
        for number, inputs in enumerate(parts):
            with self._gradients_shared(self.generator, number == len(parts) - 1):
                output = self._render(self.generator, inputs)
                found = self.prediction_gradients(output.pred, inputs.patch, gan=gan)
                gradient, metrics = found.reconstruction, found.metrics
                if found.adversarial is not None:
                    w = self._adaptive_weight([(output.last_features, found)]) if weight is None else weight
                    gradient = gradient + config.gan * w * found.adversarial
                    metrics = metrics | {"train/gan_weight": config.gan * w}
                    metrics["train/loss"] = metrics["train/loss"] + config.gan * w * metrics["train/gan"]
                others, terms = self._other_losses(inputs, output)
                metrics |= terms
                metrics["train/loss"] = metrics["train/loss"] + others.detach()
                ends: list[Tensor] = [output.pred]
                starts: list[Tensor | None] = [(gradient / len(parts)).to(output.pred.dtype)]
                if others.requires_grad:                           # not so of fsq, and of a frozen encoder
                    ends, starts = [*ends, others / len(parts)], [*starts, None]
                torch.autograd.backward(ends, starts)
            fakes.append(Fake(output.pred.detach(), found.logits))
            rows.append(metrics)
        norm = optimizers.update(self.generator_adam, self.config.optimizer, step)
        return fakes, means(rows) | {"train/grad_norm": norm}

    def prediction_gradients(self, pred: Tensor, target: Tensor, *, gan: bool) -> PredictionGradients:
        """Each loss of the prediction, differentiated once, down to the prediction; these graphs are freed, but for that
        of logits which the discriminator's update takes over.

        Law: with the gradients at CLIF's last convolution that follow from them this equals the published way, which
        runs LPIPS and the discriminator backward twice, to rounding.
        """
        config = self.config.loss
        leaf = pred.detach().float().requires_grad_()
        l1 = (leaf - target).abs().mean()
        loss = config.l1 * l1
        metrics = {"train/l1": l1.detach(), "train/psnr": psnr(leaf.detach(), target).mean()}
        if self.lpips is not None:
            with self._autocast():
                distance = self.lpips(leaf, target).float().mean()
            loss = loss + config.lpips * distance
            metrics["train/lpips"] = distance.detach()
        (reconstruction,) = torch.autograd.grad(loss, leaf)
        metrics["train/loss"] = loss.detach()
        if not gan or self.discriminator is None:
            return PredictionGradients(reconstruction, None, metrics)
        discriminator = bare(self.discriminator)
        with self._autocast():
            fake = discriminator(leaf).float()
            if config.gan_loss == "hinge":
                value = hinge_g(fake)
            else:
                with torch.no_grad():
                    real = discriminator(target).float()
                value = relativistic_g(real, fake)
        metrics["train/gan"] = value.detach()
        kept = not (config.fresh_fake or config.gradient_penalty or self.config.loop.accumulate > 1
                    or self.config.loop.compiled)  # a compiled network's backward frees what it read
        (adversarial,) = torch.autograd.grad(value, leaf, retain_graph=kept)
        return PredictionGradients(reconstruction, adversarial, metrics, fake if kept else None)

    def _other_losses(self, inputs: Inputs, output: AutoencoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of losses that are not of the prediction, with their graph; and metrics."""
        config, model = self.config.loss, self.config.model
        total = config.quantizer * output.quantizer_loss
        metrics = {"train/quantizer": output.quantizer_loss.detach()}
        if output.codes is not None:
            size = model.codebook_size if model.quantizer == "vq" else torch.Size(model.fsq_levels).numel()
            metrics |= codebook_use(output.codes, size)
        if config.scale_equivariance > 0:
            with self._autocast():
                distance = self.autoencoder.scale_equivariance(inputs.lowres, output.z)
            total = total + config.scale_equivariance * distance
            metrics["train/scale_equivariance"] = distance.detach()
        return total, metrics

    def _weight_of(self, parts: list[Inputs]) -> Tensor:
        """The adaptive weight of all parts together, by one pass over them that keeps no graph."""
        if not self.config.loss.adaptive_gan_weight:
            return torch.ones((), device=self.world.device)
        found = []
        for inputs in parts:
            with torch.no_grad():
                output = self._render(self.autoencoder, inputs)
            found.append((output.last_features, self.prediction_gradients(output.pred, inputs.patch, gan=True)))
        return self._adaptive_weight(found)

    def _adaptive_weight(self, parts: Sequence[tuple[Tensor, PredictionGradients]]) -> Tensor:
        """The published w, from gradients averaged over parts and ranks before their norms are taken."""
        if not self.config.loss.adaptive_gan_weight:
            return torch.ones((), device=self.world.device)
        last, gradients = self.autoencoder.renderer.last_layer, []
        for features, found in parts:
            both = torch.cat([found.reconstruction, cast(Tensor, found.adversarial)], dim=1)
            gradients.append(last_layer_gradient(features.float(), both, last))
        return adaptive_weight(*self.world.mean(torch.stack(gradients).mean(0)).chunk(2))

    def _discriminator_step(self, parts: list[Inputs], fakes: list[Fake], step: int) -> dict[str, Tensor]:
        """Update the discriminator on the parts' patches and predictions; metrics."""
        config, rows = self.config.loss, []
        assert self.discriminator is not None and self.discriminator_adam is not None
        self.discriminator_adam.zero_grad(set_to_none=True)
        for number, (inputs, fake) in enumerate(zip(parts, fakes, strict=True)):
            if config.fresh_fake:
                with torch.no_grad():
                    fake = Fake(self._render(self.autoencoder, inputs).pred, None)
            with self._gradients_shared(self.discriminator, number == len(parts) - 1):
                loss, metrics = self.discriminator_loss(inputs.patch, fake.rgb.float(), known_logits=fake.logits)
                (loss / len(parts)).backward()
            rows.append(metrics)
        norm = optimizers.update(self.discriminator_adam, self.config.optimizer, step)
        return means(rows) | {"train/disc_grad_norm": norm}

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, *, known_logits: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of two batches (B, 3, P, P): the loss with its graph, and metrics.

        known_logits (B, 1, h, w): the discriminator's of `fake`, with their graph; not with a gradient penalty.
        """
        config = self.config.loss
        assert self.discriminator is not None
        penalized = config.gradient_penalty > 0
        real, fake = (images.detach().requires_grad_(penalized) for images in (real, fake))
        with self._autocast():
            real_logits = self.discriminator(real).float()
            fake_logits = self.discriminator(fake).float() if known_logits is None else known_logits
        loss = hinge_d(real_logits, fake_logits) if config.gan_loss == "hinge" else relativistic_d(real_logits, fake_logits)
        right = ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean()) / 2
        if config.gan_loss == "relativistic":
            right = (real_logits > fake_logits).float().mean()
        metrics = {"train/disc_loss": loss.detach(), "train/disc_accuracy": right,
                   "train/logits_real": real_logits.detach().mean(), "train/logits_fake": fake_logits.detach().mean()}
        if penalized:
            penalty = gradient_penalty(real_logits, real) + gradient_penalty(fake_logits, fake)
            loss = loss + config.gradient_penalty * penalty
            metrics["train/disc_penalty"] = penalty.detach()
        return loss, metrics

    def _render(self, network: nn.Module, inputs: Inputs) -> AutoencoderOutput:
        with self._autocast():
            return network(inputs.lowres, inputs.r, inputs.y, inputs.x, inputs.patch.shape[-1], noise=inputs.noise,
                           pad_px=self.config.loss.query_pad_px)

    # ------------------------------------------------------------ inputs, validation

    def inputs(self, batch: Batch) -> Inputs:
        """uint8 to [-1, 1] on the device, and the noise of these samples where the latent is a Gaussian."""
        device = self.world.device

        def image(pixels: Tensor) -> Tensor:
            return pixels.to(device, non_blocking=True).to(torch.float32, memory_format=self.layout) / 127.5 - 1

        noise = None
        if self.config.model.quantizer == "kl":
            side = self.config.crop.lowres_px // self.config.model.factor
            shape = (self.config.model.z_dim, side, side)
            noise = sample_noise(self.config.loop.seed, batch.g.tolist(), shape).to(device)
        r, y, x = (value.to(device, non_blocking=True) for value in (batch.r, batch.y, batch.x))
        return Inputs(image(batch.lowres), image(batch.patch), r, y, x, noise)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means over the fixed validation crops of all ranks, in eval mode, in all and by side r; empty without crops."""
        network, weights = self.shown.eval(), self.config.loss
        names = ["val/loss", "val/l1", "val/psnr", *(["val/lpips"] if self.lpips is not None else [])]
        found = ScaleMeans(names, self.config.crop, self.world)
        for batch in self.validation:
            inputs = self.inputs(batch)._replace(noise=None)
            pred = self._render(network, inputs).pred.float()
            l1 = (pred - inputs.patch).abs().mean(dim=(1, 2, 3))
            rows = {"val/loss": weights.l1 * l1, "val/l1": l1, "val/psnr": psnr(pred.clamp(-1, 1), inputs.patch)}
            if self.lpips is not None:
                rows["val/lpips"] = self.lpips(pred, inputs.patch).float()
                rows["val/loss"] = rows["val/loss"] + weights.lpips * rows["val/lpips"]
            found.add(inputs.r, rows)
        return found.means()

    def finite(self) -> bool:
        """Whether all weights are finite numbers."""
        parameters = [parameter.detach() for _, module, _ in self._optimized() for parameter in module.parameters()]
        return bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())

    # ------------------------------------------------------------ state

    def model_state(self) -> dict[str, Tensor]:
        """All networks by name: autoencoder.…, autoencoder_average.…, discriminator.…"""
        named = {"autoencoder": self.generator, "autoencoder_average": self.average, "discriminator": self.discriminator}
        return {f"{name}.{key}": value for name, module in named.items() if module is not None
                for key, value in bare(module).state_dict().items()}

    def train_state(self) -> dict[str, Tensor]:
        """Adam's moments and counts by parameter: autoencoder.PARAMETER.exp_avg, …"""
        return {name: value for part, module, optimizer in self._optimized()
                for name, value in optimizers.moments(part, module, optimizer).items()}

    def load_state(self, model: dict[str, Tensor], train_state: dict[str, Tensor]) -> None:
        """Take over a checkpoint; raises CheckpointError where names or shapes do not fit."""
        for name, module, optimizer in self._optimized():
            checkpoint.put_into(f"checkpoint's {name}", bare(module), of_part(model, name))
            optimizers.load_moments(name, module, optimizer, train_state)
        if self.average is not None:
            checkpoint.put_into("checkpoint's autoencoder_average", self.average, of_part(model, "autoencoder_average"))

    def _optimized(self) -> Iterator[tuple[str, nn.Module, torch.optim.Adam]]:
        yield "autoencoder", self.generator, self.generator_adam
        if self.discriminator is not None and self.discriminator_adam is not None:
            yield "discriminator", self.discriminator, self.discriminator_adam

    def _train_mode(self) -> None:
        self.generator.train()
        if self.discriminator is not None:
            self.discriminator.train()

    def _gradients_shared(self, network: nn.Module, now: bool) -> contextlib.AbstractContextManager[None]:
        """Within it a backward averages gradients over the ranks, or leaves that to a later one."""
        return contextlib.nullcontext() if now or self.world.size == 1 else self.world.unshared(network)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.config.loop.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)


def means(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each metric over micro-batches."""
    return rows[0] if len(rows) == 1 else {name: torch.stack([row[name] for row in rows]).mean(0) for name in rows[0]}


def codebook_use(codes: Tensor, size: int) -> dict[str, Tensor]:
    """Of the codes of a batch (B, H, W): how many of `size` occur, as a share, and the perplexity exp(entropy)."""
    counts = torch.zeros(size, device=codes.device).index_add_(0, codes.flatten(), torch.ones_like(codes.flatten()).float())
    share = counts / counts.sum()
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {"train/codebook_use": (counts > 0).float().mean(), "train/codebook_perplexity": entropy.exp()}


def frozen(autoencoder: Autoencoder, parts: Sequence[str]) -> Autoencoder:
    """The same, the weights of `parts` without gradients."""
    for part in parts:
        for name in FROZEN[part]:
            getattr(autoencoder, name).requires_grad_(False)
    return autoencoder


def shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def of_part(model: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in model.items() if key.startswith(f"{name}.")}
