"""Stage two: the update of the denoiser on latents. Source: INFD supplement J.2 and published code.

Shapes: B batch, Z channels of z, l its side. Everything random is a function of
(seed, sample), so a resumed run and any number of workers draw the same.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from infd import checkpoint
from infd.config import DiffusionTrainingConfig
from infd.data.latents import LatentBatch
from infd.diffusion import objectives
from infd.models.denoiser import Denoiser
from infd.training import optimizers
from infd.training.noise import sample_noise, sample_uniform
from infd.training.posthoc import Averages
from infd.training.world import World, bare


class DiffusionStage:
    """The denoiser, its moving average and its optimizer, in one process of a world."""

    def __init__(self, config: DiffusionTrainingConfig, *, world: World, validation: Sequence[LatentBatch] = (),
                 start: dict[str, Tensor] | None = None) -> None:
        self.config, self.world, self.validation = config, world, validation
        torch.backends.cudnn.allow_tf32 = config.loop.precision != "float32"
        torch.manual_seed(config.loop.seed)
        denoiser = Denoiser(config.model).to(world.device)
        if config.loop.channels_last:
            denoiser.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if start is not None:
            checkpoint.put_into("the starting checkpoint's denoiser", denoiser, start)
        self.average = copy.deepcopy(denoiser).requires_grad_(False) if config.optimizer.ema_decay else None
        self.posthoc = Averages(denoiser) if config.optimizer.posthoc else None
        self.net = world.distribute(denoiser)
        self.adam = optimizers.adam(self.net, config.optimizer)
        self.objective = objectives.objective(config.diffusion)
        if config.loop.compiled:
            denoiser.compile()

    @property
    def denoiser(self) -> Denoiser:
        """The weights that learn."""
        return cast(Denoiser, bare(self.net))

    @property
    def shown(self) -> Denoiser:
        """The weights that are validated and sampled: the moving average where there is one."""
        return self.denoiser if self.average is None else self.average

    # ------------------------------------------------------------ one update

    def step(self, batch: LatentBatch, step: int) -> dict[str, Tensor]:
        """One update in place; metrics are scalars on the device."""
        self.net.train()
        self.adam.zero_grad(set_to_none=True)
        parts = self._parts(batch)
        losses = []
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last or self.world.size == 1 else self.world.unshared(self.net):
                loss = self.losses(self.net, part, conditioned=False).mean()
                (loss / len(parts)).backward()
            losses.append(loss.detach())
        norm = optimizers.update(self.adam, self.config.optimizer, step)
        if self.average is not None:
            optimizers.average_into(self.average.parameters(), self.denoiser.parameters(), self.config.optimizer.ema_decay)
        if self.posthoc is not None:
            self.posthoc.update(step)
        return {"train/loss": torch.stack(losses).mean(), "train/grad_norm": norm}

    def losses(self, net: nn.Module, batch: LatentBatch, *, conditioned: bool) -> Tensor:
        """The loss of each sample (B,), at times and noises that are functions of the sample's number. `conditioned`: no
        condition is dropped."""
        device, seed, g = self.world.device, self.config.loop.seed, batch.g.tolist()
        z = self.latents(batch)
        noise = sample_noise(seed, g, tuple(z.shape[1:]), purpose="diffusion").to(device)
        uniform, normal = (draw.to(device) for draw in (
            sample_uniform(seed, g, purpose="time"), sample_noise(seed, g, (), purpose="flow time")))
        noised = self.objective.noised(z, noise, uniform=uniform, normal=normal)
        keep = None
        if not conditioned and self.config.diffusion.p_unconditional > 0:
            keep = sample_uniform(seed, g, purpose="condition").to(device) >= self.config.diffusion.p_unconditional
        labels, context = (value if value is None else value.to(device) for value in (batch.labels, batch.context))
        with self._autocast():
            said = net(noised.z_t, noised.time, labels, context, keep)
        return objectives.loss(said, noised)

    def latents(self, batch: LatentBatch) -> Tensor:
        """z (B, Z, l, l) over its scale; of a Gaussian latent the sample that its number gives."""
        moments = batch.moments.to(self.world.device, non_blocking=True).float()
        z_dim = self.config.model.z_dim
        if moments.shape[1] == 2 * z_dim:
            mean, log_var = moments.chunk(2, dim=1)
            noise = sample_noise(self.config.loop.seed, batch.g.tolist(), tuple(mean.shape[1:])).to(mean.device)
            moments = mean + (0.5 * log_var.clamp(-30, 20)).exp() * noise
        z = moments / self.config.diffusion.scale
        return z.contiguous(memory_format=torch.channels_last) if self.config.loop.channels_last else z

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The mean loss over the fixed validation latents of all ranks, in eval mode; empty without any."""
        net, total = self.shown.eval(), torch.zeros(2, dtype=torch.float64, device=self.world.device)
        for batch in self.validation:
            losses = self.losses(net, batch, conditioned=True)
            total += torch.stack([losses.sum(), torch.tensor(float(len(losses)), device=losses.device)]).double()
        value, count = (self.world.mean(total) * self.world.size).tolist()
        return {"val/loss": value / count} if count else {}

    def finite(self) -> bool:
        """Whether all weights are finite numbers."""
        return bool(torch.stack([parameter.detach().isfinite().all() for parameter in self.denoiser.parameters()]).all())

    # ------------------------------------------------------------ state

    def model_state(self) -> dict[str, Tensor]:
        """denoiser.…, denoiser_average.…"""
        named = {"denoiser": self.denoiser, "denoiser_average": self.average}
        return {f"{name}.{key}": value for name, module in named.items() if module is not None
                for key, value in module.state_dict().items()}

    def train_state(self) -> dict[str, Tensor]:
        """AdamW's moments and counts by parameter; the post-hoc averages."""
        averages = self.posthoc.state() if self.posthoc is not None else {}
        return optimizers.moments("denoiser", self.net, self.adam) | averages

    def load_state(self, model: dict[str, Tensor], train_state: dict[str, Tensor]) -> None:
        """Take over a checkpoint; raises CheckpointError where names or shapes do not fit."""
        for name, module in (("denoiser", self.denoiser), ("denoiser_average", self.average)):
            if module is not None:
                part = {key.removeprefix(f"{name}."): value for key, value in model.items() if key.startswith(f"{name}.")}
                checkpoint.put_into(f"checkpoint's {name}", module, part)
        optimizers.load_moments("denoiser", self.net, self.adam, train_state)
        if self.posthoc is not None:
            self.posthoc.load(train_state)

    def _parts(self, batch: LatentBatch) -> list[LatentBatch]:
        """The batch in micro-batches of equal size."""
        size = len(batch.g) // self.config.loop.accumulate

        def cut(tensor: Tensor | None) -> Iterator[Tensor | None]:
            return iter([None] * self.config.loop.accumulate if tensor is None else tensor.split(size))

        return [LatentBatch(batch.step, cast(Tensor, g), cast(Tensor, moments), labels, context) for g, moments, labels, context
                in zip(cut(batch.g), cut(batch.moments), cut(batch.labels), cut(batch.context), strict=True)]

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.config.loop.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)
