"""What stands between encoder and decoder: a codebook (VQ), rounding (FSQ) or a diagonal Gaussian (KL).

Shapes: B batch, Z channels of z, H W grid of z, N codes.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

ROWS_AT_ONCE = 16384
"""Positions whose distances to all codes are held at once: bounds memory, changes no number but by rounding."""


class Quantized(NamedTuple):
    """z_q (B, Z, H, W) for the decoder; loss, a scalar; codes (B, H, W) int64, None for kl."""

    z_q: Tensor
    loss: Tensor
    codes: Tensor | None


class VQ(nn.Module):
    """One code of a learned codebook for each position; the gradient goes straight through to z.

    loss = mean (sg(e) - z)^2 + mean (e - sg(z))^2, one of them times beta: the second where `beta_on` is
    "codebook" (as the published code runs), the first where it is "commitment" (as VQ-VAE states it).
    Source: van den Oord et al. 2017, equation 3; INFD section 4.1.
    """

    def __init__(
        self, *, size: int, z_dim: int, beta: float = 0.25, beta_on: Literal["codebook", "commitment"] = "codebook",
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, z_dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)
        self.codebook_weight = beta if beta_on == "codebook" else 1.0
        self.commitment_weight = beta if beta_on == "commitment" else 1.0

    def forward(self, z: Tensor) -> Quantized:
        """z (B, Z, H, W) -> the nearest codes. Float32 whatever autocast says: distances need it."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            codes = self.codes(z)
            e = rearrange(self.embedding(codes), "b h w z -> b z h w")
            commitment, codebook = F.mse_loss(z, e.detach()), F.mse_loss(e, z.detach())
            loss = self.commitment_weight * commitment + self.codebook_weight * codebook
            return Quantized(z + (e - z).detach(), loss, codes)

    @torch.no_grad()
    def codes(self, z: Tensor) -> Tensor:
        """z (B, Z, H, W) -> (B, H, W) int64: least |z|^2 + |e|^2 - 2<z, e>; the first of equals."""
        e = self.embedding.weight
        rows = rearrange(z, "b z h w -> (b h w) z")
        least = [
            (part.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * part @ e.T).argmin(1)
            for part in rows.split(ROWS_AT_ONCE)
        ]
        return rearrange(torch.cat(least), "(b h w) -> b h w", b=z.shape[0], h=z.shape[2])


class FSQ(nn.Module):
    """Each channel of z rounded to one of its few levels: a codebook that is not learned, and so cannot die.

    Channel i is squashed to L_i integers, rounded with a straight-through gradient, and divided by floor(L_i / 2), so z_q
    lies in [-1, 1]. No loss. Source: Mentzer et al. 2024, section 3.1 and appendix A.
    """

    EPSILON = 1e-3
    """By which the outermost levels can be reached by a finite z."""
    levels: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        sizes = torch.tensor(levels)
        self.register_buffer("levels", sizes.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("basis", (sizes.cumprod(0) // sizes).view(1, -1, 1, 1), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        """z (B, Z, H, W) -> z_q in [-1, 1]; codes count the combinations of levels, the first channel fastest."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = self.bound(z.float())
            rounded = bounded.round()
            codes = ((rounded + self.levels // 2).long() * self.basis).sum(1)
            z_q = bounded + (rounded - bounded).detach()
            return Quantized(z_q / (self.levels // 2), z_q.new_zeros(()), codes.detach())

    def bound(self, z: Tensor) -> Tensor:
        """z -> reals that round to the integers -floor(L / 2) … ceil(L / 2) - 1; 0 stays 0."""
        half = (self.levels - 1) * (1 + self.EPSILON) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset


class KL(nn.Module):
    """A diagonal Gaussian for each position: the encoder gives mean and log-variance.

    loss = 1/2 sum over z of (mean^2 + var - 1 - log var), mean over the batch. Source: Rombach et al. 2022, appendix G.
    """

    def forward(self, moments: Tensor, noise: Tensor | None = None) -> Quantized:
        """moments (B, 2 Z, H, W): means, then log-variances; noise (B, Z, H, W), or None for the means themselves."""
        with torch.autocast(moments.device.type, enabled=False):
            mean, log_var = split_moments(moments)
            per_sample = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1)
            z = mean if noise is None else mean + (0.5 * log_var).exp() * noise
            return Quantized(z, per_sample.mean(), None)


def split_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 2 Z, H, W) -> mean, and log-variance clamped to -30 … 20; each (B, Z, H, W), float32."""
    mean, log_var = moments.float().chunk(2, dim=1)
    return mean, log_var.clamp(-30, 20)
