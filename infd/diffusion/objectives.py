"""What the denoiser learns: one interface for discrete diffusion (noise or v) and for flow matching (velocity).

Training draws a time, mixes the latent with noise, asks the network for the target, and averages the squared difference.
Source: Ho et al. 2020 (noise); Salimans and Ho 2022, appendix D (v); Hang et al. 2023 (min-SNR); Liu et al. 2022 and Lipman
et al. 2023 (flow); Esser et al. 2024, section 3.1 (logit-normal times). Shapes: z and noise (B, Z, l, l).
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from infd.config import DiffusionConfig
from infd.diffusion.schedules import Schedule

FLOW_TIMES = 1000.0
"""A flow's t in [0, 1] is told to the network times this, so that its sinusoids see the usual range."""


class Noised(NamedTuple):
    """z_t of some latents, and what the network shall say of it."""

    z_t: Tensor
    time: Tensor
    """(B,) as the network takes it."""
    target: Tensor
    weight: Tensor
    """(B,) of each sample's loss."""


class Objective(Protocol):
    """What training needs of a process. `uniform` and `normal` (B,) float32 are the only randomness of a time."""

    def noised(self, z: Tensor, noise: Tensor, *, uniform: Tensor, normal: Tensor) -> Noised: ...


class Discrete:
    """T steps of Gaussian noise; the target is the noise, or v = sqrt(a) noise - sqrt(1 - a) z."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config, self.schedule = config, Schedule.of(config)

    def noised(self, z: Tensor, noise: Tensor, *, uniform: Tensor, normal: Tensor) -> Noised:
        """t is uniform on 0 … T - 1."""
        t = (uniform * self.config.timesteps).long().clamp(max=self.config.timesteps - 1)
        return self.at(z, noise, t)

    def at(self, z: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """The latents at steps t (B,)."""
        signal, spread = self.schedule.signal(t), self.schedule.noise(t)
        target = noise if self.config.objective == "eps" else signal * noise - spread * z
        return Noised(signal * z + spread * noise, t, target, self.weight(t))

    def weight(self, t: Tensor) -> Tensor:
        """1, or min(SNR, gamma) as a weight of the error of z: over SNR for noise, over SNR + 1 for v."""
        if not self.config.min_snr_gamma:
            return torch.ones_like(t, dtype=torch.float32)
        snr = self.schedule.snr(t)
        return snr.clamp(max=self.config.min_snr_gamma) / (snr if self.config.objective == "eps" else snr + 1)


class Flow:
    """Straight paths z_t = (1 - t) z + t noise; the target is their velocity noise - z."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config

    def noised(self, z: Tensor, noise: Tensor, *, uniform: Tensor, normal: Tensor) -> Noised:
        """The logit of t is normal."""
        return self.at(z, noise, torch.sigmoid(self.config.flow_mean + self.config.flow_std * normal))

    def at(self, z: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """The latents at times t (B,) in [0, 1]."""
        part = t[:, None, None, None]
        return Noised(torch.lerp(z, noise, part), t * FLOW_TIMES, noise - z, torch.ones_like(t))


def objective(config: DiffusionConfig) -> Discrete | Flow:
    """The process that a config names."""
    return Flow(config) if config.objective == "flow" else Discrete(config)


def loss(found: Tensor, noised: Noised) -> Tensor:
    """Weighted mean squared difference of each sample: (B,) float32."""
    return (found.float() - noised.target).square().mean(dim=(1, 2, 3)) * noised.weight
