"""How much of a latent is left at each time: tables of discrete diffusion. Source: Ho et al. 2020; INFD as published."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infd.config import DiffusionConfig


@dataclass(frozen=True)
class Schedule:
    """Tables over t = 0 … T - 1, (T,) float64; cast to float32 where they are used."""

    betas: Tensor
    alphas_cumprod: Tensor

    @classmethod
    def of(cls, config: DiffusionConfig) -> "Schedule":
        """linear: betas evenly spaced; scaled_linear: their square roots are."""
        if config.schedule == "linear":
            betas = np.linspace(config.beta_from, config.beta_to, config.timesteps, dtype=np.float64)
        else:
            betas = np.linspace(config.beta_from ** 0.5, config.beta_to ** 0.5, config.timesteps, dtype=np.float64) ** 2
        return cls(torch.from_numpy(betas), torch.from_numpy(np.cumprod(1 - betas)))

    def signal(self, t: Tensor) -> Tensor:
        """sqrt(alpha-bar) of t (B,), as (B, 1, 1, 1) float32 on t's device."""
        return self._taken(self.alphas_cumprod.sqrt(), t)

    def noise(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha-bar), likewise."""
        return self._taken((1 - self.alphas_cumprod).sqrt(), t)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha-bar / (1 - alpha-bar) of t: (B,) float32."""
        return self._taken(self.alphas_cumprod / (1 - self.alphas_cumprod), t).flatten()

    def _taken(self, table: Tensor, t: Tensor) -> Tensor:
        return table.to(t.device)[t].float()[:, None, None, None]
