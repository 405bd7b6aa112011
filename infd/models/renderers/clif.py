"""CLIF, the renderer R: a small convolutional network over the queried grid. Source: INFD section 4.2.

Its convolutions reach `reach_px` pixels; its GroupNorms reach over all that is rendered in one call. To render a
large grid tile by tile as if in one call, the norms take statistics from outside (`Statistics`) and the network
can be run as far as the input of any of its norms (`hidden`); `fields.Field` streams both.

Shapes: B batch, C channels of phi, D hidden channels, G groups, N norms, h w rendered grid.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infd.config import AutoencoderConfig

COORD_DIM = 4
"""Channels that a query adds to phi's: rel_coord (row, column) and rel_cell (row, column)."""


class Statistics(NamedTuple):
    """Mean and variance of the inputs of the first N norms, each (N, B, G) float32; frozen statistics of a render."""

    mean: Tensor
    var: Tensor

    def at(self, norm: int) -> tuple[Tensor, Tensor]:
        """Of one norm, each (B, G, 1, 1)."""
        return self.mean[norm, :, :, None, None], self.var[norm, :, :, None, None]


class LocalStatistics(NamedTuple):
    """Statistics that differ from pixel to pixel of a call: those of a grid of i x j places, blended."""

    mean: Tensor
    """(N, B, G, i, j)"""
    var: Tensor
    """(N, B, G, i, j)"""
    rows: Tensor
    """(h, i): how much each row of places counts in each row of pixels."""
    columns: Tensor
    """(w, j)"""

    def at(self, norm: int) -> tuple[Tensor, Tensor]:
        """Of one norm, each (B, G, h, w)."""
        mean, var = (self.rows @ value[norm] @ self.columns.T for value in (self.mean, self.var))
        return mean, var


class ResBlock(nn.Module):
    """norm, act, conv, norm, act, conv, plus the input; the parts are run by CLIF."""

    def __init__(self, dim: int, *, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, dim, eps=1e-6)
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, dim, eps=1e-6)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)


class CLIF(nn.Module):
    """Queried features (B, C + 4, h, w) -> RGB (B, 3, h, w), nominally in [-1, 1], not clamped."""

    def __init__(self, *, phi_dim: int, dim: int = 256, blocks: int = 2, groups: int = 32) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(phi_dim + COORD_DIM, dim, 3, padding=1)
        self.blocks = nn.ModuleList([ResBlock(dim, groups=groups) for _ in range(blocks)])
        self.norm_out = nn.GroupNorm(groups, dim, eps=1e-6)
        self.conv_out = nn.Conv2d(dim, 3, 3, padding=1)

    @classmethod
    def from_config(cls, config: AutoencoderConfig) -> "CLIF":
        return cls(
            phi_dim=config.phi_dim, dim=config.renderer_dim, blocks=config.renderer_blocks, groups=config.norm_groups)

    @property
    def num_norms(self) -> int:
        return 2 * len(self.blocks) + 1

    @property
    def num_groups(self) -> int:
        return self.norm_out.num_groups

    @property
    def reach_px(self) -> int:
        """How far, in output pixels, a pixel of the input can matter through the convolutions."""
        return 2 * len(self.blocks) + 2

    @property
    def last_layer(self) -> nn.Conv2d:
        """The convolution at whose weight the adaptive GAN weight compares gradients."""
        return self.conv_out

    def forward(self, query: Tensor, statistics: Statistics | LocalStatistics | None = None) -> Tensor:
        return self.conv_out(self.features(query, statistics))

    def features(self, query: Tensor, statistics: Statistics | LocalStatistics | None = None) -> Tensor:
        """The input of the last convolution, (B, D, h, w). `statistics`: of all norms; None: each over this call."""
        last = self.num_norms - 1
        h = self.hidden(query, norm=last, statistics=statistics)
        return F.silu(normalize(h, self.norm_out, statistics, last))

    def hidden(self, query: Tensor, *, norm: int, statistics: Statistics | LocalStatistics | None = None) -> Tensor:
        """The input of norm number `norm` (0 … N-1, in running order), (B, D, h, w).

        It depends on `norm` + 1 convolutions, so on as many pixels each way, and on the statistics of earlier norms.
        """
        h = self.conv_in(query)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, ResBlock)
            first, second = 2 * index, 2 * index + 1
            if norm == first:
                return h
            inner = block.conv1(F.silu(normalize(h, block.norm1, statistics, first)))
            if norm == second:
                return inner
            h = h + block.conv2(F.silu(normalize(inner, block.norm2, statistics, second)))
        return h

    def own_statistics(self, query: Tensor) -> Statistics:
        """What the norms take when `query` is rendered in a call of its own, as `forward(query)` does."""
        found, h = [], self.conv_in(query)
        for block in self.blocks:
            assert isinstance(block, ResBlock)
            found.append(moments(h, block.norm1))
            inner = block.conv1(F.silu(block.norm1(h)))
            found.append(moments(inner, block.norm2))
            h = h + block.conv2(F.silu(block.norm2(inner)))
        found.append(moments(h, self.norm_out))
        return Statistics(*(torch.stack(values) for values in zip(*found, strict=True)))


def normalize(x: Tensor, norm: nn.GroupNorm, statistics: Statistics | LocalStatistics | None, index: int) -> Tensor:
    """`norm` over x (B, D, h, w), or with those of norm `index` of the given statistics in the place of x's own."""
    if statistics is None:
        return norm(x)
    groups = norm.num_groups
    weight, bias = (value.view(groups, -1, 1, 1) for value in (norm.weight, norm.bias))   # (G, D/G, 1, 1)
    mean, var = (value[:, :, None] for value in statistics.at(index))                     # (B, G, 1, 1 or h, 1 or w)
    scale = weight * torch.rsqrt(var + norm.eps)
    return torch.addcmul(bias - mean * scale, x.float().unflatten(1, (groups, -1)), scale).flatten(1, 2)


def moments(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, G) float32 of x (B, D, h, w), as `norm` takes them."""
    var, mean = torch.var_mean(x.float().unflatten(1, (norm.num_groups, -1)).flatten(2), dim=2, correction=0)
    return mean, var
